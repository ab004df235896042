"""The command that trains a quantizer."""

import argparse
import errno
import functools
import io
import re
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from corpus_builders import QUANTIZER_SIZES

from espnet_mvq.bin import train_quantizer as module
from espnet_mvq.bin.options import device_from_options
from espnet_mvq.bin.train_quantizer import main
from espnet_mvq.extraction import quantizer_training
from espnet_mvq.quantization import Quantizer, QuantizerTrainer
from espnet_mvq.teachers import build_teacher


@pytest.fixture
def options(data_dir, teacher_options, tmp_path):
    """The options `quantizer` was trained with."""
    path = tmp_path / "q" / "quantizer.safetensors"
    words = ["--wav_scp", f"{data_dir}/wav.scp", "--quantizer", str(path)]
    return [*words, *QUANTIZER_SIZES, *teacher_options]


def test_quantizer_knows_how_it_was_made(quantizer, teacher_dir):
    made = Quantizer.load(quantizer)
    assert (made.num_codebooks, made.codebook_size, made.dim) == (2, 4, 16)
    teacher = build_teacher(f"transformers/{teacher_dir}", 1)
    assert made.provenance["teacher"] == teacher.id
    assert (made.provenance["layer"], made.provenance["seed"]) == (1, 0)
    assert made.provenance["corpus_utterances"] == 6
    assert made.provenance["relative_reconstruction_error"] < 1


def test_nothing_but_the_quantizer_is_left(quantizer):
    assert [path.name for path in quantizer.parent.iterdir()] == [quantizer.name]


def test_same_options_keep_the_file(quantizer, options):
    before = quantizer.stat().st_mtime_ns
    main(options)
    assert quantizer.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "other", [["--seed", "1"], ["--num_codebooks", "1"], ["--layer", "2"]]
)
def test_other_options_train_again(quantizer, options, other):
    before = Quantizer.load(quantizer).id
    main([*options, *other])
    assert Quantizer.load(quantizer).id != before


def test_as_many_other_utterances_train_again(quantizer, options, data_dir, caplog):
    wav_scp = data_dir / "wav.scp"
    lines = wav_scp.read_text().splitlines()
    wav_scp.write_text("".join(f"other-{line}\n" for line in lines))
    (data_dir / "utt2spk").unlink(missing_ok=True)
    main(options)
    assert "was trained with another corpus; it is replaced" in caplog.text


def test_damaged_file_is_trained_anew(quantizer, options, caplog):
    before = Quantizer.load(quantizer).id
    quantizer.write_bytes(quantizer.read_bytes()[:200])
    main(options)
    assert Quantizer.load(quantizer).id == before
    assert any("not a whole safetensors file" in r.message for r in caplog.records)


def test_vectors_of_utterances(options, tmp_path, ends_with_error):
    """Of six utterances one is held out: a codebook can have five entries."""
    words = [*options, "--level", "utterance", "--codebook_size"]
    for codebook_size in (2, 5):
        main([*words, str(codebook_size)])
        made = Quantizer.load(tmp_path / "q" / "quantizer.safetensors")
        assert made.codebook_size == codebook_size
        assert made.provenance["level"] == "utterance"
        assert made.provenance["training_frames"] == 5
    error = ends_with_error(main, [*words, "6"])
    assert "--codebook_size: got 6, expected at most 5" in error


def test_default_number_of_codebooks_by_level(options):
    at = options.index("--num_codebooks")
    words = options[:at] + options[at + 2 :]
    main([*words, "--level", "utterance"])
    path = words[words.index("--quantizer") + 1]
    assert Quantizer.load(path).num_codebooks == 1
    main([*words])
    assert Quantizer.load(path).num_codebooks == 16


def test_file_older_than_the_level_is_of_frames(quantizer, options):
    made = Quantizer.load(quantizer)
    del made.provenance["level"], made.provenance["corpus"]
    made.save(quantizer)
    before = quantizer.stat().st_mtime_ns
    main(options)
    assert quantizer.stat().st_mtime_ns == before
    main([*options, "--level", "utterance"])
    assert Quantizer.load(quantizer).id != made.id


@pytest.fixture
def no_teacher(monkeypatch):
    """Let the test fail if the teacher is loaded."""
    monkeypatch.setattr(module, "load_teacher", lambda args: pytest.fail("loaded"))


@pytest.mark.parametrize(
    "words, message",
    [
        ("--num_codebooks 0", "--num_codebooks: got 0, expected at least 1"),
        ("--num_codebooks 999999", "--num_codebooks: got 999999 .* expected at most"),
        ("--codebook_size 1", "--codebook_size: got 1, expected 2 to 256"),
        ("--max_frames 3", "--max_frames: got 3, expected at least 4"),
        ("--num_iterations 0", "--num_iterations: got 0, expected at least 1"),
        ("--oversampling nan", "--oversampling: got nan, expected"),
        ("--seed 99999999999999999999", "--seed: got 9*, expected a whole number"),
        ("--quantizer {data}", "--quantizer: got the folder .*/data, expected a file"),
        ("--quantizer {data}/wav.scp/q", "wav.scp is a file; expected a folder"),
        ("--wav_scp {data}/none", "data/none: no such file"),
        ("--wav_scp {data}", "data: no such file"),
        ("--utt2spk {data}/none", "data/none: no such file"),
    ],
)
def test_options_out_of_range_end_before_the_teacher_is_loaded(
    words, message, options, data_dir, no_teacher, ends_with_error
):
    before = (data_dir / "wav.scp").read_bytes()
    words = words.format(data=data_dir).split()
    assert re.search(message, ends_with_error(main, [*options, *words]))
    assert (data_dir / "wav.scp").read_bytes() == before


@pytest.fixture
def no_frames(monkeypatch):
    """Let the teacher fail as soon as it runs."""
    monkeypatch.setattr(quantizer_training, "sample_training_frames", None)


@pytest.mark.parametrize("name", ["model.safetensors", "quantizer.pt", "text"])
def test_other_files_are_not_replaced(
    options, name, tmp_path, no_frames, ends_with_error
):
    path = tmp_path / name
    if name == "model.safetensors":
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    else:
        path.write_text("something else")
    before = path.read_bytes()
    error = ends_with_error(main, [*options, "--quantizer", str(path)])
    assert str(path) in error and "is not replaced: name another one" in error
    assert path.read_bytes() == before


class FullDisk(io.BytesIO):
    """A file without room."""

    def write(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_stops_before_the_teacher_runs(
    quantizer, options, no_frames, ends_with_error, monkeypatch
):
    before = quantizer.read_bytes()
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: FullDisk())
    error = ends_with_error(main, [*options, "--seed", "1"])
    assert f"--quantizer: {quantizer} cannot be written (No space left" in error
    assert "expected 512 bytes of free space" in error
    assert quantizer.read_bytes() == before
    assert [path.name for path in quantizer.parent.iterdir()] == [quantizer.name]


def test_disk_that_fills_up_meanwhile_loses_nothing(
    quantizer, options, ends_with_error, monkeypatch
):
    """The older file stays, and training resumes from the checkpoint."""
    before = quantizer.read_bytes()
    write_bytes = Path.write_bytes

    def write_half(path, content):
        if "checkpoint" in path.name:
            return write_bytes(path, content)
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        error = ends_with_error(main, [*options, "--seed", "1"])
    assert f"{quantizer}: could not be written (No space left on device)" in error
    assert quantizer.read_bytes() == before
    checkpoint = quantizer.with_suffix(".checkpoint.pt")
    assert set(quantizer.parent.iterdir()) == {quantizer, checkpoint}
    monkeypatch.setattr(QuantizerTrainer, "_round", None)  # no round is left to do
    main([*options, "--seed", "1"])
    assert Quantizer.load(quantizer).provenance["seed"] == 1
    assert not checkpoint.exists()


def test_damaged_checkpoint_does_not_block(quantizer, options, caplog):
    before = Quantizer.load(quantizer).id
    quantizer.unlink()
    checkpoint = quantizer.with_suffix(".checkpoint.pt")
    checkpoint.write_bytes(b"PK no checkpoint")
    main(options)
    assert Quantizer.load(quantizer).id == before
    assert f"{checkpoint} is damaged" in caplog.text
    names = sorted(path.name for path in quantizer.parent.iterdir())
    assert names == [f"{checkpoint.name}.damaged", quantizer.name]


def test_error_of_few_vectors_is_that_of_training(options, caplog):
    caplog.set_level("INFO")
    main([*options, "--level", "utterance"])
    made = Quantizer.load(options[options.index("--quantizer") + 1])
    assert "relative_reconstruction_error" not in made.provenance
    assert made.provenance["training_relative_reconstruction_error"] < 1
    assert "held-out after" not in caplog.text
    assert "on the training frames after round" in caplog.text


def test_speakers_of_other_utterances(options, data_dir, caplog):
    (data_dir / "utt2spk").write_text("utt0 a\nother b\n")
    main(options)
    assert "5 of 6 utterances are not in it, first utt1" in caplog.text


def test_unusable_audio_stops_or_is_skipped(options, data_dir, ends_with_error):
    for number in range(6):
        (data_dir / f"{number}.wav").write_bytes(b"RIFF")
    error = ends_with_error(main, options)
    assert error.startswith("utterance utt") and ".wav" in error
    error = ends_with_error(main, [*options, "--on_error", "skip"])
    assert "no utterance is left, all 1 were skipped" in error


def test_too_few_frames_for_the_codebooks(options, ends_with_error):
    error = ends_with_error(main, [*options, "--codebook_size", "256"])
    assert "expected at least the codebook size 256" in error


def test_missing_gpu(options, ends_with_error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no GPU here" in ends_with_error(main, [*options, "--ngpu", "1"])


def test_jobs_share_the_gpus_that_they_see(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    actual = [
        device_from_options(argparse.Namespace(ngpu=1, batch_s=None, job=job))[0]
        for job in (1, 2, 3)
    ]
    assert [str(device) for device in actual] == ["cuda:0", "cuda:1", "cuda:0"]
    alone = argparse.Namespace(ngpu=1, batch_s=3.0)
    assert device_from_options(alone) == (torch.device("cuda:0"), 3.0)


def test_all_frames_asked_for_are_trained_on(options, tmp_path, monkeypatch):
    """The trainer's own limit is another one."""
    seen = {}
    original = QuantizerTrainer.__init__

    @functools.wraps(original)
    def spy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        seen["max_frames"] = self.max_frames

    monkeypatch.setattr(QuantizerTrainer, "__init__", spy)
    main([*options, "--max_frames", "200000"])
    assert seen["max_frames"] == 200_000
