"""asr_mvq.sh: its calls of ESPnet, noted by a stand-in for Python."""

import shutil
import sys

import pytest
from builders import ROOT
from corpus_builders import run_script

# Notes its arguments; leaves a hypothesis where ESPnet would, and the place of mvq.sh.
STAND_IN = """#!/usr/bin/env python3
import pathlib, sys
words = sys.argv[1:]
with open({calls!r}, "a") as file:
    file.write(" ".join(words) + "\\n")
if "--mvq_sh" in words:
    print({mvq!r})
if "espnet2.bin.asr_inference" in words:
    folder = pathlib.Path(words[words.index("--output_dir") + 1], "1best_recog")
    folder.mkdir(parents=True)
    (folder / "text").write_text("utt A\\n")
"""


@pytest.fixture
def recipe(tmp_path):
    """Return a recipe's folder with formatted data and three configurations."""
    folder = tmp_path / "egs" / "mini" / "asr1"
    template = ROOT / "egs" / "TEMPLATE" / "asr1"
    shutil.copytree(template, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train", "dev", "test"):
        (folder / "dump" / "raw" / name).mkdir(parents=True)
        (folder / "dump" / "raw" / name / "wav.scp").write_text("utt a.wav\n")
    (folder / "conf").mkdir()
    for name in ("plain", "one", "two", "decode"):
        (folder / "conf" / f"{name}.yaml").write_text("{}\n")
    (folder / "mvq.sh").write_text('echo "mvq.sh $*" >> calls\n')
    stand_in = folder / "python0"
    text = STAND_IN.format(calls=str(folder / "calls"), mvq=str(folder / "mvq.sh"))
    stand_in.write_text(text)
    stand_in.chmod(0o755)
    (folder / "my python").symlink_to(sys.executable)
    return folder


@pytest.fixture
def run(recipe):
    """Return a function that runs the script and returns its calls.

    With conf/plain.yaml and no MVQ student, if the options say nothing else.
    """

    def run(*options):
        words = ["--train_set", "train", "--valid_set", "dev", "--test_sets", "test"]
        words += ["--asr_config", "conf/plain.yaml", "--mvq_asr_config", ""]
        words += ["--inference_config", "conf/decode.yaml", "--python", "./python0"]
        done = run_script(recipe, "asr_mvq.sh", *words, *options)
        calls = recipe / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


def of_kind(calls, word):
    return [call for call in calls if word in call.split()]


def test_baseline_and_two_students(run):
    done, calls = run(
        *("--stage", "11", "--mvq_asr_config", "conf/one.yaml conf/two.yaml"),
        *("--teacher", "espnet/exp/a", "--exp_tag", "tag"),
        *("--token_list_dir", "tokens", "--asr_stats_dir", "stats"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = [f"exp/asr_{name}_raw_en_bpe100_tag" for name in ("plain", "one", "two")]
    trainings = of_kind(calls, "espnet2.bin.asr_train")
    assert len(trainings) == 3
    for call, name, config in zip(trainings, names, ("plain", "one", "two")):
        launcher = call.split(" -- ")[1].split(" -m espnet2.bin.asr_train")[0]
        ours = "" if config == "plain" else " -m espnet_mvq.run"
        assert launcher == f"./python0{ours}"
        assert f"--output_dir {name} --config conf/{config}.yaml" in call
        assert "--token_list tokens/tokens.txt --" in call
        assert "stats_file=stats/train/feats_stats.npz" in call
    decodings = of_kind(calls, "espnet2.bin.asr_inference")
    assert ["espnet_mvq.run" in call for call in decodings] == [False, True, True]
    assert [f"{name}/config.yaml" in c for name, c in zip(names, decodings)] == 3 * [1]
    assert len(of_kind(calls, "pyscripts/score.py")) == 3
    (table,) = of_kind(calls, "pyscripts/results_table.py")
    assert table.endswith(f"--exp {' '.join(names)}")
    (report,) = of_kind(calls, "espnet_mvq.bin.report")
    assert f"report {' '.join(names)} --baseline {names[0]} --output exp/re" in report
    watchers = of_kind(calls, "espnet_mvq.bin.watch_training")
    assert [w.split("--exp ")[1] for w in watchers] == [
        f"{name} --baseline {names[0]}" for name in names
    ]


def test_student_without_baseline(recipe, run):
    """Statistics, too, are made with its configuration."""
    (recipe / "stats" / "train").mkdir(parents=True)
    (recipe / "stats" / "valid").mkdir()
    (recipe / "tokens").mkdir()
    for name in ("stats/train/text_shape", "stats/valid/text_shape"):
        (recipe / name).write_text("utt 3\n")
    (recipe / "tokens" / "tokens.txt").write_text("a\nb\n")
    done, calls = run(
        *("--stage", "10", "--asr_config", "", "--mvq_asr_config", "conf/one.yaml"),
        *("--teacher", "t", "--asr_stats_dir", "stats", "--token_list_dir", "tokens"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stats, training = of_kind(calls, "espnet2.bin.asr_train")
    assert stats.startswith(
        "-m espnet_mvq.run -m espnet2.bin.asr_train --collect_stats"
    )
    assert "--config conf/one.yaml" in stats and "--config conf/one.yaml" in training
    assert (recipe / "stats/train/text_shape.bpe").read_text() == "utt 3,2\n"
    (report,) = of_kind(calls, "espnet_mvq.bin.report")
    assert "--baseline" not in report


def test_baseline_alone_needs_no_teacher(run):
    done, calls = run("--stage", "6", "--skip_stages", "10")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(of_kind(calls, "espnet2.bin.asr_train")) == 1
    assert not of_kind(calls, "mvq.sh")
    assert len(of_kind(calls, "espnet_mvq.bin.report")) == 1


def test_training_fails_with_its_own_errors_only(recipe, run):
    """The watcher may fail; a training that fails ends the script."""
    python = recipe / "python0"
    text = python.read_text()
    broken = 'sys.exit("no such program" if "{}" in words else 0)\n'.format
    python.write_text(text + broken("espnet_mvq.bin.watch_training"))
    done, _ = run("--stage", "11", "--stop_stage", "11")
    assert done.returncode == 0, done.stdout + done.stderr
    log = recipe / "exp/asr_plain_raw_en_bpe100/train.log"
    log.write_text("Error: no disk\n")
    python.write_text(text + broken("espnet2.bin.launch"))
    done, _ = run("--stage", "11", "--stop_stage", "11")
    assert done.returncode == 1 and "train.log:Error: no disk" in done.stderr
    assert "no such program" not in done.stderr
    log.write_text("# Ended (code 0) at noon\n")  # of an earlier training
    done, _ = run("--stage", "11", "--stop_stage", "11")
    assert done.returncode == 1 and "no such program" in done.stderr


def test_more_options_of_mvq_sh_come_last(run):
    done, calls = run(
        *("--stage", "6", "--stop_stage", "8", "--teacher", "t"),
        *("--mvq_asr_config", "conf/one.yaml", "--num_codebooks", "4"),
        *("--mvq_dir", "dump/mvq/mine"),
        *("--mvq_args", "--level utterance --num_codebooks 1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours = of_kind(calls, "mvq.sh")
    assert len(ours) == 3 and all("--num_codebooks 4 " in call for call in ours)
    assert all("--mvq_dir dump/mvq/mine " in call for call in ours)
    assert all(call.endswith(" --level utterance --num_codebooks 1") for call in ours)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--asr_config", ""], "got none, expected at least one"),
        (["--mvq_asr_config", "conf/one.yaml"], "--teacher: got '', expected BACKEND"),
        (["--mvq_asr_config", "conf/one.yaml conf/0.yaml", "--teacher", "t"], "0.yaml"),
        (["--asr_config", "conf/0.yaml"], "no such configuration: conf/0.yaml"),
        (["--train_set", ""], "--train_set: got '', expected the name of a set"),
        (["more"], "expected no positional arguments, got 'more'"),
        (["--stage", "x"], "--stage: got 'x', expected a whole number from 1 up"),
        (["--stage", "15"], "--stop_stage: got '14', expected no stage before"),
        (["--stage", "2", "--stop_stage", "3"], "--stage: got '2', expected one of"),
        (["--skip_stages", "ten"], "--skip_stages: got 'ten', expected numbers"),
        (["--ngpu", "-1"], "--ngpu: got '-1', expected a whole number from 0 up"),
        (["--nj", "abc"], "--nj: got 'abc', expected a whole number from 1 up"),
        (["--inference_nj", "0"], "--inference_nj: got '0'"),
        (["--num_threads", "all"], "--num_threads: got 'all'"),
        (["--layer", "6 12"], "--layer: got '6 12', expected a whole number from -1"),
        (["--max_wav_duration", "long"], "--max_wav_duration: got 'long', expected"),
        (["--bpemode", "word"], "--bpemode: got 'word', expected one of: unigram bpe"),
        (["--on_error", "ignore"], "--on_error: got 'ignore', expected one of: stop"),
        (["--python", "./my python"], "--python: got './my python', expected a path"),
        (["--expdir", "a b"], "--expdir: got 'a b', expected a path without spaces"),
    ],
)
def test_wrong_options_are_named(recipe, run, options, message):
    before = sorted(recipe.rglob("*"))
    done, calls = run(*options)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not calls and sorted(recipe.rglob("*")) == before
