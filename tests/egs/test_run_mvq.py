"""run_mvq.sh: stages, names and options of the calls in an ESPnet recipe.

Stand-ins note the options of run.sh, mvq.sh and make_config: an ESPnet checkout is not
part of the tests (tests/integration/espnet_checkout.sh runs in one).
"""

import os
import re
import shutil
import subprocess

import pytest
from builders import ROOT

from espnet_mvq.__main__ import MVQ_SH, RUN_MVQ_SH

OVERLAYS = sorted(ROOT.glob("egs/*/asr1/run_mvq.sh"))
NOTING = '#!/bin/sh\nfor word in {name} "$@"; do printf "%s\\t" "$word"; done >>{log}\n'
NOTING += "echo >>{log}\n"
RUN_SH = """
train_set="train_clean_100"
asr_config=conf/train.yaml
./asr.sh \\
    --asr_config "${asr_config}" \\
    --speed_perturb_factors "0.9 1.0 1.1" "$@"
"""
# Prints what make_config prints, and has espnet_mvq
PYTHON = """#!/bin/sh
case "$2" in
*make_config) {tool}; echo --asr_config exp/x.yaml --inference_asr_model valid.loss.ave.pth;;
espnet_mvq) echo {scripts}/run_mvq.sh;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs run_mvq.sh, or an overlay.

    It gives the finished process and the commands. Only path.sh leads to the Python.
    """
    log, scripts, recipe = (tmp_path / name for name in ("log", "scripts", "recipe"))
    for folder in (scripts, recipe / "conf", tmp_path / "bin"):
        folder.mkdir(parents=True)
    noting = {"run.sh": recipe / "run.sh", "mvq.sh": scripts / "mvq.sh"}
    noting["make_config"] = tmp_path / "bin" / "make_config"
    for name, path in noting.items():
        path.write_text(NOTING.format(name=name, log=log))
        path.chmod(0o755)
    with open(recipe / "run.sh", "a") as file:
        file.write(f"exit 0\n{RUN_SH}")
    for script in (RUN_MVQ_SH, MVQ_SH.with_name("common.sh")):
        shutil.copy(script, scripts)
    (recipe / "conf" / "train.yaml").touch()
    (recipe / "path.sh").write_text(
        f"PATH={tmp_path}/bin:$PATH; [ -n $UNSET_VARIABLE ]\n"
    )
    python = tmp_path / "bin" / "python3"
    python.write_text(PYTHON.format(tool='make_config "$@"', scripts=scripts))
    python.chmod(0o755)

    def run(*options, script=scripts / "run_mvq.sh", cwd=recipe):
        log.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", script, *options],
            cwd=cwd,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
        )
        lines = log.read_text().splitlines() if log.exists() else []
        words = [line.split("\t")[:-1] for line in lines]
        words = [[n, *(o[2:] if n == "make_config" else o)] for n, *o in words]
        # As programs see options: the last of a name
        return done, [(name, dict(zip(w[::2], w[1::2]))) for name, *w in words]

    return run


@pytest.fixture
def run_mvq(run):
    """Return a function that runs it well, and gives its commands."""

    def run_well(*options, **kwargs):
        done, commands = run("--teacher", "s3prl/big", *options, **kwargs)
        assert done.returncode == 0, done.stderr
        return commands

    return run_well


def test_first_run(run_mvq):
    words = ["--ngpu", "4", "--layer", "18", "--student_layer", "3", "--mvq-nj", "2"]
    (_, data), (_, mvq), (tool, config), (_, training) = run_mvq(*words)
    assert data == {"--stage": "1", "--stop_stage": "5", "--ngpu": "4"}
    assert mvq["--train_set"] == "train_clean_100_sp" and mvq["--nj"] == "2"
    assert mvq["--teacher"] == "s3prl/big" and mvq["--layer"] == "18"
    assert tool == "make_config" and config == {
        "--asr_config": "conf/train.yaml",
        "--set": "dump/raw/train_clean_100_sp",
        "--output": "exp/train_mvq_big_layer18.yaml",
        "--layer": "3",
    }
    # From the language model on, which asr.sh leaves out if there is none.
    assert training == {
        "--python": "python3 -m espnet_mvq.run",
        "--asr_config": "exp/x.yaml",
        "--inference_asr_model": "valid.loss.ave.pth",
        "--asr_tag": "train_mvq_big_layer18",
        "--ngpu": "4",
        "--stage": "6",
        "--stop_stage": "10000",
    }


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], "train_clean_100_sp"),
        (["--speed_perturb_factors", ""], "train_clean_100"),
        (["--train_set", "other"], "other_sp"),
    ],
)
def test_train_set_is_that_of_run_sh(run_mvq, options, expected):
    (_, data), (_, mvq), *_ = run_mvq(*options)
    assert mvq["--train_set"] == expected
    assert dict([options]).items() <= data.items() if options else True


@pytest.mark.parametrize(
    "options, stages",
    [
        ("--stop_stage 3", [("1", "3")]),
        ("--stage 5 --stop-stage 6", [("5", "5"), None, None, ("6", "6")]),
        ("--stage 6 --stop_stage 12", [None, None, ("6", "12")]),
        ("--stop_stage 12 --stage 11", [None, ("11", "12")]),
    ],
)
def test_stages_that_are_asked_for_and_no_others(run_mvq, options, stages):
    words = ["--asr_args", "--max_epoch 1", *options.split(), "--nj", "3"]
    commands = run_mvq(*words)
    calls = [options for name, options in commands if name == "run.sh"]
    asked = [pair for pair in stages if pair]
    assert len(commands) == len(stages)
    assert [(c["--stage"], c["--stop_stage"]) for c in calls] == asked
    for call in calls:
        assert (call["--asr_args"], call["--nj"]) == ("--max_epoch 1", "3")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stage", "x"], "--stage: got 'x', expected"),
        (["--stage", "12", "--stop_stage", "11"], "--stop_stage: got '11', expected"),
        (["--stage"], "got '--stage', expected options with values"),
        (["--teacher", ""], "--teacher: got '', expected"),
        (["--asr_config", "none.yaml"], "--asr_config: got 'none.yaml', expected"),
        (["--use_gpu", "yes"], "--use_gpu: got 'yes', expected"),
    ],
)
def test_wrong_options_end_in_one_line(run, options, message):
    done, commands = run("--teacher", "s3prl/big", *options)
    assert done.returncode == 2 and not commands
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_other_folders_are_refused(run, tmp_path):
    done, commands = run("--teacher", "s3prl/big", cwd=tmp_path)
    assert done.returncode == 2 and not commands and done.stderr.count("\n") == 1
    assert f"{tmp_path}: got no run.sh, expected the folder of an ESPnet" in done.stderr


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.parents[1].name)
def test_overlay_has_a_teacher_and_options_of_mvq_sh(run, overlay):
    done, commands = run("--stage", "6", "--stop_stage", "12", script=overlay)
    assert done.returncode == 0, done.stderr
    names = set(re.findall(r"^(\w+)=", MVQ_SH.read_text(), re.MULTILINE))
    (_, mvq), _, _ = commands
    assert {name.removeprefix("--") for name in mvq} <= names
    assert int(mvq["--layer"]) > 0 and int(mvq["--num_codebooks"]) > 0
    if mvq["--teacher"].startswith("s3prl/"):
        pytest.importorskip("s3prl")
        from s3prl.nn import S3PRLUpstream

        assert mvq["--teacher"].removeprefix("s3prl/") in set(
            S3PRLUpstream.available_names()
        )
    done, commands = run("--help", script=overlay)
    assert done.returncode == 0 and not commands and "--student_layer" in done.stdout
