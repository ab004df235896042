"""mvq.sh, from a data folder to checked indexes and a report."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from builders import ROOT
from corpus_builders import save_ctc

from espnet_mvq.__main__ import MVQ_SH
from espnet_mvq.bin import extract, select_utterances, train_quantizer
from espnet_mvq.indexes import FrameReader, IndexMetadata
from espnet_mvq.indexes.metadata import EmbeddingMetadata
from espnet_mvq.quantization import Quantizer

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

    def run(*options, **variables):
        env = {"PYTHONPATH": str(ROOT), "MVQ_PYTHON": sys.executable, **variables}
        return subprocess.run(
            ["bash", str(MVQ_SH), *teacher_options, *options],
            cwd=recipe,
            env={**os.environ, **env},
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
    assert (mvq_dir / "quantizer_report.json").is_file()
    arks = {path: path.read_bytes() for path in mvq_dir.rglob("*.ark")}
    assert len(arks) == 4

    # A second run keeps everything; another quantizer gets its own folder.
    again = mvq("--train_set", "train", "--dev_set", "dev", *SIZES)
    assert again.returncode == 0, again.stdout + again.stderr
    assert arks == {path: path.read_bytes() for path in mvq_dir.rglob("*.ark")}
    other = mvq(
        *("--train_set", "train", "--quantizer", f"{mvq_dir}/quantizer.safetensors"),
        *("--stop_stage", "4", "--nj", "1"),
    )
    assert other.returncode == 0, other.stdout + other.stderr
    assert (recipe / "dump" / "mvq" / "tiny_hubert_layer1_quantizer").is_dir()


def test_two_layers_get_two_sets_of_indexes(mvq, recipe):
    words = ["--train_set", "train", "--layer", "1 2", "--stop_stage", "4"]
    done = mvq(*words, *SIZES, "--nj", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = recipe / "dump" / "raw" / "train"
    for layer in (1, 2):
        scp = folder / f"codebook_indexes_tiny_hubert_layer{layer}.scp"
        reader = FrameReader(scp)
        assert len(reader) == 6 and reader.metadata.layer == layer
    assert not (folder / "codebook_indexes.scp").exists()
    wrong = mvq("--train_set", "train", "--layer", "1 2", "--mvq_dir", "q")
    assert wrong.returncode == 2
    assert "--mvq_dir is for one teacher and layer" in wrong.stderr


def test_embeddings(mvq, recipe):
    done = mvq("--train_set", "train", "--target", "embeddings", "--nj", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = recipe / "dump" / "raw" / "train"
    metadata = EmbeddingMetadata.beside(folder / "embeddings.scp")
    assert (metadata.num_utterances, metadata.dim) == (6, 16)
    assert not list(recipe.rglob("*.safetensors"))


def test_posteriors(mvq, recipe, tmp_path):
    teacher = f"transformers/{save_ctc(tmp_path / 'ctc', list('_<#|AB'))}"
    words = ["--teacher", teacher, "--layer", "-1", "--target", "posteriors"]
    done = mvq("--train_set", "train", *words, "--top_k", "2", "--nj", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    reader = FrameReader(recipe / "dump" / "raw" / "train" / "posteriors.scp")
    assert len(reader) == 6 and reader.metadata.top_k == 2
    assert (recipe / "dump" / "mvq" / "ctc_layer-1_posteriors").is_dir()


def test_one_index_of_each_utterance(mvq, recipe):
    sizes = ["--level", "utterance", "--codebook_size", "3", "--nj", "1"]
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


def test_failing_job_shows_its_error(mvq, recipe):
    (recipe / "dump" / "raw" / "train" / "3.wav").write_bytes(b"RIFF")
    done = mvq("--train_set", "train", *SIZES)
    assert done.returncode == 1
    assert "1 of 1 jobs did not end well" in done.stderr and "3.wav" in done.stderr


def test_unusable_audio_is_skipped_in_all_stages(mvq, recipe):
    """The last line of wav.scp, without a line break, is included."""
    train = recipe / "dump" / "raw" / "train"
    (train / "3.wav").write_bytes(b"RIFF")
    wav_scp = train / "wav.scp"
    wav_scp.write_text(wav_scp.read_text().rstrip("\n"))
    done = mvq("--train_set", "train", "--on_error", "skip", *SIZES, "--nj", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    reader = FrameReader(train / "codebook_indexes.scp")
    assert sorted(reader) == [f"utt{n}" for n in (0, 1, 2, 4, 5)]
    assert reader.metadata.skipped == ["utt3"]


def test_teachers_that_would_be_named_alike_are_refused(mvq, recipe):
    done = mvq("--train_set", "train", "--teacher", "espnet/a/exp espnet/b/exp")
    assert done.returncode == 2 and "would be named exp_layer1" in done.stderr
    assert not (recipe / "dump" / "mvq").exists()


TRAIN = ("--train_set", "train")


def test_another_teacher_does_not_write_into_a_folder(mvq, recipe, teacher_dir):
    """Nor does another layer. A folder without made_of.txt is accepted as it is."""
    for name in ("t1", "t2"):
        shutil.copytree(teacher_dir, recipe / name / "enc")
    # At utterance level there is no stage 5: nothing runs.
    options = (*TRAIN, "--level", "utterance", "--stage", "5")
    first = (*options, "--teacher", "transformers/./t1/enc")
    second = (*options, "--teacher", "transformers/./t2/enc")
    assert mvq(*first).returncode == 0
    (mvq_dir,) = (recipe / "dump" / "mvq").iterdir()
    # Accepted: there is no quantizer and no ark yet.
    assert mvq(*second).returncode == 0
    (mvq_dir / "quantizer.safetensors").write_text("of t2")
    refused = mvq(*first)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert (
        f"--teacher: got 'transformers/{recipe}/t1/enc', but "
        f"{mvq_dir.relative_to(recipe)} was made with 'transformers/{recipe}/t2/enc'; "
        "choose another folder with --mvq_dir" in refused.stderr
    )
    other = mvq(*second, "--mvq_dir", str(mvq_dir), "--layer", "2")
    assert other.returncode == 2 and "--layer: got '2', but" in other.stderr
    again = mvq(*options, "--teacher", f"transformers/{recipe}/t2/enc")
    assert again.returncode == 0, again.stderr
    (mvq_dir / "made_of.txt").unlink()
    assert mvq(*first).returncode == 0
    assert (
        f"teacher=transformers/{recipe}/t1/enc" in (mvq_dir / "made_of.txt").read_text()
    )


def test_paths_with_spaces(mvq, recipe):
    """In the paths of data, quantizer and Python."""
    (recipe / "dump" / "raw").rename(recipe / "dump" / "my raw")
    paths = (recipe / "dump" / "my raw").glob("*/wav.scp")
    for path in paths:
        path.write_text(path.read_text().replace("dump/raw", "dump/my raw"))
    (recipe / "my python").symlink_to(sys.executable)
    path_sh = ROOT / "egs" / "TEMPLATE" / "asr1" / "path.sh"
    (recipe / "path.sh").symlink_to(path_sh)
    # Python started through this link does not see the virtual environment's packages.
    packages = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    options = [*TRAIN, "--datadir", "dump/my raw", "--python", f"{recipe}/my python"]
    done = mvq(*options, *SIZES, "--stop_stage", "2", PYTHONPATH=packages)
    assert done.returncode == 0, done.stdout + done.stderr
    (mvq_dir,) = (recipe / "dump" / "mvq").iterdir()
    shutil.move(mvq_dir / "quantizer.safetensors", recipe / "my quantizer.safetensors")
    options += ["--quantizer", "my quantizer.safetensors", "--nj", "1"]
    refused = mvq(*options, PYTHONPATH=packages)
    assert "--mvq_dir: got 'dump/mvq/tiny_hubert_layer1_my quan" in refused.stderr
    options += ["--mvq_dir", "dump/mvq/given", "--stop_stage", "4"]
    done = mvq(*options, PYTHONPATH=packages)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(FrameReader(recipe / "dump/my raw/train/codebook_indexes.scp")) == 6


def test_help_shows_the_defaults_of_the_commands(mvq):
    done = mvq("--help")
    assert done.returncode == 0 and "5 report" in done.stdout
    defaults = dict(re.findall(r"--(\w+) \S+ \[(.+?)\]", done.stdout))
    hours = select_utterances.get_parser().get_default("hours")
    assert float(defaults["quantizer_hours"]) == hours
    for name in ("codebook_size", "max_frames", "seed", "dtype", "level", "on_error"):
        assert defaults[name] == str(train_quantizer.get_parser().get_default(name))
    for name in ("dtype", "target", "level", "on_error"):
        assert defaults[name] == extract.get_parser().get_default(name)


def test_recipe_commands_are_used(mvq, recipe):
    """The recipe's cmd.sh decides how jobs run, its path.sh is sourced before."""
    (recipe / "path.sh").write_text("export FROM_PATH=${UNSET_VARIABLE}yes\n")
    (recipe / "cmd.sh").write_text(
        f'export train_cmd="{recipe}/mine.sh ${{FROM_PATH}}"\nexport cuda_cmd=false\n'
    )
    mine = recipe / "mine.sh"
    mine.write_text(
        f'#!/bin/sh\necho "$@" >> {recipe}/calls\nshift\n'
        f'exec "{sys.executable}" -m espnet_mvq.bin.run_jobs "$@"\n'
    )
    mine.chmod(0o755)
    done = mvq("--train_set", "train", *SIZES, "--stop_stage", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = (recipe / "calls").read_text().splitlines()
    assert len(calls) == 2 and all(line.startswith("yes --gpu 0 ") for line in calls)
    assert "JOB=1:2" in calls[1]
    # Without OMP_NUM_THREADS, the job would use all cores.
    assert " env OMP_NUM_THREADS=4 " in calls[0]


def test_back_end_that_is_not_installed(mvq, recipe):
    (recipe / "cmd.sh").write_text('train_cmd="no_such.pl --mem 4G"\ncuda_cmd=false\n')
    refused = mvq(*TRAIN)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "train_cmd is 'no_such.pl --mem 4G', but no_such.pl is not" in refused.stderr
    assert not (recipe / "dump" / "mvq").exists()
