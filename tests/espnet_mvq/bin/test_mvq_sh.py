"""mvq.sh, from a data folder to checked indexes and a report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_mvq.indexes import FrameReader, IndexMetadata
from espnet_mvq.indexes.metadata import EmbeddingMetadata
from espnet_mvq.quantization import Quantizer
from espnet_mvq.where import MVQ_SH

ROOT = Path(__file__).resolve().parents[3]
SIZES = [
    *("--num_codebooks", "2", "--nj", "2"),
    *("--quantizer_args", "--codebook_size 4 --num_iterations 2"),
]


@pytest.fixture
def recipe(data_dir, tmp_path):
    """Return a folder with dump/raw/train and dump/raw/dev, as a recipe has."""
    raw = tmp_path / "recipe" / "dump" / "raw"
    raw.mkdir(parents=True)
    data_dir.rename(raw / "train")
    dev = raw / "dev"
    dev.mkdir()
    for name in ("wav.scp", "utt2num_samples"):
        path = raw / "train" / name
        lines = path.read_text().replace(str(data_dir), str(raw / "train"))
        path.write_text(lines)
        (dev / name).write_text("".join(lines.splitlines(True)[:2]))
    return tmp_path / "recipe"


@pytest.fixture
def mvq(recipe, teacher_options):
    """Return a function that runs mvq.sh in the recipe's folder."""

    def run(*options):
        return subprocess.run(
            ["bash", str(MVQ_SH), *teacher_options, *options],
            cwd=recipe,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MVQ_PYTHON": sys.executable},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return run


def test_all_stages_and_again(mvq, recipe):
    done = mvq("--train_set", "train", "--dev_set", "dev", *SIZES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Successfully finished" in done.stdout
    (mvq_dir,) = (recipe / "dump" / "mvq").iterdir()
    assert mvq_dir.name == "tiny_hubert_layer1_cb2"
    quantizer = Quantizer.load(mvq_dir / "quantizer.safetensors")
    for name, count in (("train", 6), ("dev", 2)):
        folder = recipe / "dump" / "raw" / name
        reader = FrameReader(folder / "codebook_indexes.scp")
        assert len(reader) == count
        metadata = IndexMetadata.load(folder / "codebook_indexes.json")
        assert metadata.quantizer_id == quantizer.id
    assert (mvq_dir / "quantizer_report.html").is_file()
    arks = {path: path.read_bytes() for path in mvq_dir.rglob("*.ark")}
    assert len(arks) == 4

    # Again: all is kept, and the indexes of a quantizer from elsewhere stand apart
    again = mvq("--train_set", "train", "--dev_set", "dev", *SIZES)
    assert again.returncode == 0, again.stdout + again.stderr
    assert arks == {path: path.read_bytes() for path in mvq_dir.rglob("*.ark")}
    other = mvq(
        *("--train_set", "train", "--quantizer", f"{mvq_dir}/quantizer.safetensors"),
        *("--stop_stage", "4"),
    )
    assert other.returncode == 0, other.stdout + other.stderr
    assert (recipe / "dump" / "mvq" / "tiny_hubert_layer1_quantizer").is_dir()


def test_two_layers_get_two_sets_of_indexes(mvq, recipe):
    done = mvq("--train_set", "train", "--layer", "1 2", "--stop_stage", "4", *SIZES)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = recipe / "dump" / "raw" / "train"
    for layer in (1, 2):
        scp = folder / f"codebook_indexes_tiny_hubert_layer{layer}.scp"
        reader = FrameReader(scp)
        assert len(reader) == 6 and reader.metadata.layer == layer
    assert not (folder / "codebook_indexes.scp").exists()
    wrong = mvq("--train_set", "train", "--layer", "1 2", "--quantizer", "q")
    assert wrong.returncode == 2
    assert "--quantizer is of one teacher and layer" in wrong.stderr


def test_embeddings(mvq, recipe):
    done = mvq("--train_set", "train", "--target", "embeddings", "--nj", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = recipe / "dump" / "raw" / "train"
    metadata = EmbeddingMetadata.beside(folder / "embeddings.scp")
    assert (metadata.num_utterances, metadata.dim) == (6, 16)
    assert not list(recipe.rglob("*.safetensors"))
    wrong = mvq("--train_set", "train", "--target", "floats")
    assert wrong.returncode == 2 and "expected indexes or embeddings" in wrong.stderr


def test_one_index_of_each_utterance(mvq, recipe):
    sizes = ["--level", "utterance", "--codebook_size", "3", "--nj", "2"]
    done = mvq("--train_set", "train", "--dev_set", "dev", *sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    (mvq_dir,) = (recipe / "dump" / "mvq").iterdir()
    assert mvq_dir.name == "tiny_hubert_layer1_utterance_cb1"
    assert len((mvq_dir / "selected" / "wav.scp").read_text().splitlines()) == 6
    for name, count in (("train", 6), ("dev", 2)):
        folder = recipe / "dump" / "raw" / name
        reader = FrameReader(folder / "codebook_indexes_utterance.scp")
        assert [reader[utt_id].shape for utt_id in reader] == count * [(1, 1)]
        assert reader.metadata.level == "utterance"
        assert reader.metadata.codebook_size == 3
        assert not (folder / "codebook_indexes.scp").exists()
    wrong = mvq("--train_set", "train", "--level", "word")
    assert wrong.returncode == 2 and "expected frame or utterance" in wrong.stderr


def test_failing_job_shows_its_error(mvq, recipe):
    (recipe / "dump" / "raw" / "train" / "3.wav").write_bytes(b"RIFF")
    done = mvq("--train_set", "train", *SIZES)
    assert done.returncode == 1
    assert "a job failed" in done.stderr and "3.wav" in done.stderr


def test_unusable_audio_is_skipped_in_all_stages(mvq, recipe):
    """And the last line of wav.scp counts without its line break too."""
    train = recipe / "dump" / "raw" / "train"
    (train / "3.wav").write_bytes(b"RIFF")
    wav_scp = train / "wav.scp"
    wav_scp.write_text(wav_scp.read_text().rstrip("\n"))
    done = mvq("--train_set", "train", "--on_error", "skip", *SIZES)
    assert done.returncode == 0, done.stdout + done.stderr
    reader = FrameReader(train / "codebook_indexes.scp")
    assert sorted(reader) == [f"utt{n}" for n in (0, 1, 2, 4, 5)]
    assert reader.metadata.skipped == ["utt3"]


def test_teachers_that_would_be_named_alike_are_refused(mvq, recipe):
    done = mvq("--train_set", "train", "--teacher", "espnet/a/exp espnet/b/exp")
    assert done.returncode == 2 and "would be named exp_layer1" in done.stderr
    assert not (recipe / "dump" / "mvq").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--train_set is required"),
        (["--train_set", "none"], "none/wav.scp: no such file; run the recipe's data"),
        (["--train_set", "train", "--usegpu", "true"], "invalid option --usegpu"),
        (["--train_set", "train", "--use_gpu", "1"], "takes true or false"),
        (
            ["--train_set", "train", "--python", "python0"],
            "not installed for 'python0'",
        ),
        (["--train_set", "train", "more"], "no positional arguments"),
    ],
)
def test_wrong_options_end_with_a_line_that_says_what(mvq, options, message):
    done = mvq(*options)
    assert done.returncode != 0 and message in done.stderr


def test_help_shows_defaults_and_stages(mvq):
    done = mvq("--help")
    assert done.returncode == 0
    assert "--num_codebooks N [16]" in done.stdout and "5 report" in done.stdout


def test_where_prints_its_path():
    done = subprocess.run(
        [sys.executable, "-m", "espnet_mvq.where"], capture_output=True, text=True
    )
    assert done.stdout.strip() == str(MVQ_SH) and MVQ_SH.is_file()


def test_recipe_commands_are_used(mvq, recipe):
    """The recipe's cmd.sh decides how jobs run, its path.sh is sourced before."""
    (recipe / "path.sh").write_text("export FROM_PATH=${UNSET_VARIABLE}yes\n")
    (recipe / "cmd.sh").write_text(
        f'export train_cmd="{recipe}/mine.sh ${{FROM_PATH}}"\nexport cuda_cmd=false\n'
    )
    mine = recipe / "mine.sh"
    mine.write_text(
        f'#!/bin/sh\necho "$@" >> {recipe}/calls\nshift\n'
        f'exec {sys.executable} -m espnet_mvq.bin.run_jobs "$@"\n'
    )
    mine.chmod(0o755)
    done = mvq("--train_set", "train", *SIZES, "--stop_stage", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (recipe / "calls").read_text().splitlines()
    assert len(calls) == 2 and all(line.startswith("yes --gpu 0 ") for line in calls)
    assert "JOB=1:2" in calls[1]
