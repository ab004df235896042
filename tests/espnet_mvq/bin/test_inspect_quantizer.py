"""The command that reports how good a quantizer is."""

import json

import numpy as np
import pytest
import torch
from corpus_builders import write_features

from espnet_mvq import __version__
from espnet_mvq.bin.inspect_quantizer import main
from espnet_mvq.extraction import quantizer_inspection as module
from espnet_mvq.quantization import Quantizer, QuantizerTrainer
from espnet_mvq.quantization.quality_text import findings, text_report, worst_channels


@pytest.fixture
def frames():
    return torch.randn(240, 8) * torch.arange(1, 9)


@pytest.fixture
def path(frames, tmp_path):
    """Train a quantizer of 2 codebooks with 4 entries."""
    path = tmp_path / "q" / "quantizer.safetensors"
    path.parent.mkdir()
    trainer = QuantizerTrainer(8, 2, codebook_size=4, num_iterations=2)
    trainer.fit(frames, frames, {"teacher": "<b>own</b>"}).save(path)
    return path


@pytest.fixture
def feats(frames, tmp_path):
    """Write 6 utterances of 40 frames."""
    parts = {f"utt{n}": part.numpy() for n, part in enumerate(frames.split(40))}
    return write_features(tmp_path, parts)


def inspect(path, *options):
    """Run the command; return the content of the report beside the quantizer."""
    main([str(path), *map(str, options)])
    return json.loads((path.parent / "quantizer_report.json").read_text())


@pytest.fixture
def content(path, feats):
    return inspect(path, "--feats", feats)


def test_report_describes_quantizer_and_frames(content, path, feats, frames):
    quantizer = Quantizer.load(path)
    assert content["format"] == "espnet_mvq.quality_report"
    assert content["espnet_mvq_version"] == __version__
    assert content["quantizer"] == {
        "file": str(path),
        "id": quantizer.id,
        "num_codebooks": 2,
        "codebook_size": 4,
        "dim": 8,
        "has_classifier": False,
        "provenance": quantizer.provenance,
    }
    expected = {"source": str(feats), "measured": 240, "seen": 240, "utterances": 6}
    assert content["frames"] == expected
    error = quantizer.relative_reconstruction_error(frames)
    assert content["quality"]["relative_error"] == pytest.approx(error)
    assert content["quality"]["probe"]["num_train_frames"] == 120
    assert not list(path.parent.glob("*.tmp*"))


def test_report_is_printed(path, feats, capsys):
    content = inspect(path, "--feats", feats)
    report = text_report(content)
    assert capsys.readouterr().out == f"{report}\n"
    assert f"{content['quality']['relative_error']:.4f}  beam, 5 passes\n" in report


def test_same_seed_same_report_in_another_folder(content, path, feats, tmp_path):
    folder = tmp_path / "new" / "folder"
    main([str(path), "--feats", str(feats), "--output_dir", str(folder)])
    assert json.loads((folder / "quantizer_report.json").read_text()) == content
    assert [file.name for file in folder.iterdir()] == ["quantizer_report.json"]


def test_sample_of_the_frames(path, feats, frames, tmp_path):
    options = ["--feats", feats, "--max_frames", 100]
    first = inspect(path, *options)
    assert (first["frames"]["measured"], first["frames"]["seen"]) == (100, 240)
    second = inspect(path, *options, "--seed", 1)
    assert first["quality"]["relative_error"] != second["quality"]["relative_error"]


def test_one_array_is_read_in_pieces(path, frames, tmp_path, content, monkeypatch):
    np.save(tmp_path / "all.npy", frames.numpy().astype(np.float64))
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 7)
    actual = inspect(path, "--feats", tmp_path / "all.npy")
    assert actual["frames"]["utterances"] == 1 and actual["frames"]["seen"] == 240
    for name in ("relative_error", "usage", "errors"):
        assert actual["quality"][name] == content["quality"][name]


def test_quantizer_of_multi_quantization(path, feats, frames):
    quantizer = Quantizer.load(path)
    state = {
        "centers": quantizer.codebooks,
        "centers_scale": torch.zeros(()),
        "logits_scale": torch.zeros(()),
        "to_logits.weight": torch.randn(8, 8),
        "to_logits.bias": torch.zeros(8),
    }
    checkpoint = path.with_name("theirs.pt")
    torch.save(state, checkpoint)
    actual = inspect(checkpoint, "--feats", feats)
    assert actual["quantizer"]["has_classifier"]
    assert actual["quality"]["effort"][0]["search"] == "classifier, 0 passes"


def test_audio_and_teacher(quantizer, data_dir, teacher_options, capsys):
    options = ["--wav_scp", f"{data_dir}/wav.scp", *teacher_options]
    actual = inspect(quantizer, *options)
    total = sum((6400 + 1600 * n - 400) // 320 + 1 for n in range(6))
    assert actual["frames"]["measured"] == actual["frames"]["seen"] == total
    assert actual["frames"]["utterances"] == 6


def test_bad_values_name_the_utterance(path, frames, tmp_path, ends_with_error):
    frames[17, 2] = float("nan")
    np.save(tmp_path / "x.npy", frames.numpy())
    error = ends_with_error(main, [str(path), "--feats", str(tmp_path / "x.npy")])
    assert "utterance x in" in error and "frame 17" in error


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_frames(path, frames, tmp_path, ends_with_error, count):
    np.save(tmp_path / "x.npy", frames[:count].numpy())
    error = ends_with_error(main, [str(path), "--feats", str(tmp_path / "x.npy")])
    assert f"{tmp_path}/x.npy: " in error and f"got {count or 'no'} frames" in error
    assert not (path.parent / "quantizer_report.json").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "one of the arguments --feats --wav_scp is required"),
        (["--feats", "a.npy", "--wav_scp", "b"], "not allowed with argument"),
        (["--wav_scp", "wav.scp"], "--wav_scp needs --teacher"),
        (["--feats", "a.npy", "--max_frames", "1"], "got 1, expected at least 2"),
    ],
)
def test_wrong_options(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["quantizer.safetensors", *words])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_seed_out_of_range(path, feats, ends_with_error):
    words = [str(path), "--feats", str(feats), "--seed", str(2**64)]
    error = ends_with_error(main, words)
    assert f"seed: got {2**64}, expected a whole number" in error


def verdict_of(content, word):
    """Return the verdict of the one sentence that holds a word."""
    (verdict,) = [v for v, sentence in findings(content) if word in sentence]
    return verdict


def test_verdicts(content):
    quality, provenance = content["quality"], content["quantizer"]["provenance"]
    quality["relative_error"] = 0.2
    provenance["relative_reconstruction_error"] = 0.19
    assert verdict_of(content, "variance of the frames") == "good"
    provenance["relative_reconstruction_error"] = 0.1
    assert verdict_of(content, "unlike those") == "bad"
    assert verdict_of(content, "On the held-out frames of its training") == "bad"
    del provenance["relative_reconstruction_error"]
    provenance["training_relative_reconstruction_error"] = 0.1
    assert verdict_of(content, "On the frames it was trained on it was 10") == "good"
    assert not any("held-out" in sentence for _, sentence in findings(content))
    quality["usage"]["dead_entries"] = [0, 0]
    assert verdict_of(content, "never used") == "good"
    quality["usage"]["dead_entries"] = [2, 0]
    assert verdict_of(content, "never used") == "bad"
    content["frames"]["measured"] = 30
    assert verdict_of(content, "too few frames") == "note"
    quality["usage"]["entropy_bits"] = [2.0, 0.5]
    assert verdict_of(content, "bits on average, at least 0.50 (codebook 1)") == "bad"
    quality["codebook_correlation"][1][0] = 0.99
    assert verdict_of(content, "correlation of 0.99") == "note"
    quality["stability"][0]["mean_unchanged"] = 0.3
    assert verdict_of(content, "close to arbitrary") == "bad"
    quality["probe"]["cross_entropy_nats"] = [0.5, quality["probe"]["entropy_nats"][1]]
    assert verdict_of(content, "codebook 1 is the hardest (0.00 nats)") == "bad"
    quality["effort"][-1]["relative_error"] = 0.0
    assert verdict_of(content, "A larger search effort") == "note"


def test_constant_channels_and_one_codebook(content):
    """Constant channels and single codebooks are left out of words and table."""
    quality = content["quality"]
    quality["errors"]["channel_error"][2] = None
    quality["codebook_correlation"] = [[1.0]]
    assert "1 channels are constant" in text_report(content)
    assert not any("overlap" in sentence for _, sentence in findings(content))
    assert 2 not in worst_channels(quality["errors"]["channel_error"])


def test_quantizer_without_error(tmp_path):
    """Nothing is divided by an error or a variance of 0."""
    codebooks = torch.zeros(2, 4, 8)
    codebooks[0] = torch.arange(32).reshape(4, 8)
    path = tmp_path / "quantizer.safetensors"
    Quantizer(codebooks).save(path)
    np.save(tmp_path / "x.npy", codebooks[0].repeat(20, 1).numpy())
    actual = inspect(path, "--feats", tmp_path / "x.npy")["quality"]
    assert actual["relative_error"] == 0
    assert actual["errors"]["channel_error"] == [0] * 8
    assert actual["codebook_correlation"] == [[1, None], [None, None]]


def test_worst_channels():
    assert worst_channels([0.1, None, 0.9, 0.5]) == [2, 3, 0]
    assert worst_channels([n / 20 for n in range(20)]) == list(range(19, 9, -1))
