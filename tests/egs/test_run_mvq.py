"""run_mvq.sh of the overlays: stages, experiment names and checkpoints.

Stand-ins note the options of run.sh and mvq.sh: an ESPnet checkout is not part of the
tests (tests/integration/espnet_checkout.sh runs in one).
"""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from builders import ROOT

from espnet_mvq.__main__ import MVQ_SH

OVERLAY = ROOT / "egs" / "librispeech_100" / "asr1"
OVERLAYS = [OVERLAY, ROOT / "egs" / "mini_an4" / "asr1"]
NOTING = '#!/bin/sh\nfor word in {name} "$@"; do printf "%s\\t" "$word"; done >>{log}\n'
NOTING += "echo >>{log}\n"


@pytest.fixture
def run(tmp_path):
    """Return a function that runs an overlay with an environment.

    It gives the finished process and the commands. Only path.sh leads to the Python.
    """
    log = tmp_path / "log"
    for name in ("run.sh", "mvq.sh"):
        (tmp_path / name).write_text(NOTING.format(name=name, log=log))
        (tmp_path / name).chmod(0o755)
    for name in ("overlay.sh", "common.sh"):
        shutil.copy(MVQ_SH.with_name(name), tmp_path)
    (tmp_path / "path.sh").write_text("PATH=$PWD/bin:$PATH; [ -n $UNSET_VARIABLE ]\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f"#!/bin/sh\necho {tmp_path}/mvq.sh\n")
    (tmp_path / "bin" / "python3").chmod(0o755)

    def run(*options, overlay=OVERLAY, **variables):
        log.unlink(missing_ok=True)
        done = subprocess.run(
            [overlay / "run_mvq.sh", *options],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
        )
        lines = log.read_text().splitlines() if log.exists() else []
        words = [line.split("\t")[:-1] for line in lines]
        # As programs see options: the last of a name
        return done, [(name, dict(zip(w[::2], w[1::2]))) for name, *w in words]

    return run


@pytest.fixture
def run_mvq(run):
    """Return a function that runs an overlay well, and gives its commands."""

    def run_well(*options, **variables):
        done, commands = run(*options, **variables)
        assert done.returncode == 0, done.stderr
        return commands

    return run_well


def test_first_run(run_mvq):
    (data, first), (mvq, options), (training, second) = run_mvq("--ngpu", "4")
    assert (data, mvq, training) == ("run.sh", "mvq.sh", "run.sh")
    assert first == {"--stage": "1", "--stop_stage": "5", "--ngpu": "4"}
    assert options["--teacher"] == "s3prl/wavlm_large" and options["--layer"] == "18"
    # From the language model on, which asr.sh leaves out if there is none.
    assert second["--stage"] == "6" and second["--ngpu"] == "4"
    assert second["--python"] == "python3 -m espnet_mvq.run"


@pytest.mark.parametrize(
    "config",
    ["conformer", "e_branchformer", "streaming_conformer", "transducer_conformer"],
)
def test_experiments_are_named_after_the_teacher(run_mvq, config):
    teacher = "s3prl/wavlm_local:/models/large.pt"
    variables = {"teacher": teacher, "layer": "21", "config": config}
    (_, options), (_, training) = run_mvq(stage="6", **variables)
    assert options["--teacher"] == teacher and options["--layer"] == "21"
    check_checkpoint(OVERLAY, training)
    assert training["--asr_tag"] == f"train_asr_{config}_mvq_large.pt_layer21"


def check_checkpoint(overlay, training):
    """Decoding takes a checkpoint that the configuration keeps."""
    config = yaml.safe_load((overlay / training["--asr_config"]).read_text())
    ((phase, criterion, _),) = config["best_model_criterion"]
    assert training["--inference_asr_model"] == f"{phase}.{criterion}.ave.pth"


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.parent.name)
@pytest.mark.parametrize(
    "options, stages",
    [
        ("--stop_stage 3", [("1", "3")]),
        ("--stage 5 --stop-stage 6", [("5", "5"), None, ("6", "6")]),
        ("--stage 6 --stop_stage 12", [None, ("6", "12")]),
        ("--stop_stage 12 --stage 11", [("11", "12")]),
    ],
)
def test_stages_that_are_asked_for_and_no_others(run_mvq, overlay, options, stages):
    words = ["--asr_args", "--max_epoch 1", *options.split(), "--nj", "3"]
    commands = run_mvq(*words, overlay=overlay)
    assert [name for name, _ in commands] == [
        "run.sh" if pair else "mvq.sh" for pair in stages
    ]
    for (name, given), pair in zip(commands, stages):
        if name == "run.sh":
            assert (given["--stage"], given["--stop_stage"]) == pair
            assert (given["--asr_args"], given["--nj"]) == ("--max_epoch 1", "3")
            if int(pair[0]) > 5:
                check_checkpoint(overlay, given)


@pytest.mark.parametrize(
    "options",
    [["--stage", "x"], ["--stage", "0"], ["--stage"], ["--stop_stage", "5x"]]
    + [["--stage", "12", "--stop_stage", "11"]],
)
def test_wrong_stages_end_in_one_line(run, options):
    done, commands = run(*options)
    assert done.returncode == 2 and not commands
    assert re.search(r"--(stop_)?stage: got '(x|0|5x|11|)', expected", done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.parent.name)
def test_help_runs_nothing(run, overlay):
    done, commands = run("--ngpu", "1", "--help", overlay=overlay)
    assert done.returncode == 0 and "Options are those of run.sh" in done.stdout
    assert commands == [("run.sh", {})]  # its own help


def test_options_are_those_of_mvq_sh_and_the_documented_teachers_of_s3prl(run_mvq):
    options = run_mvq()[1][1]
    names = set(re.findall(r"^(\w+)=", MVQ_SH.read_text(), re.MULTILINE))
    assert {name.removeprefix("--") for name in options} <= names
    pytest.importorskip("s3prl")
    from s3prl.nn import S3PRLUpstream

    readme = (OVERLAY / "README.md").read_text()
    teachers = set(re.findall(r"s3prl/(\w+_(?:large|ll60k|local)\w*)", readme))
    assert len(teachers) == 4
    assert teachers <= set(S3PRLUpstream.available_names())


def test_documented_variables_exist():
    script = (OVERLAY / "run_mvq.sh").read_text()
    readme = (OVERLAY / "README.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| `?([\w/]+)`? \|", readme, re.M))
    assert documented == dict(re.findall(r"(\w+)=\$\{\1:-([\w/]+)\}", script))
    for config in re.findall(r"`((?:\w+_)?(?:con|branch)former)`", readme):
        assert (OVERLAY / f"conf/tuning/train_asr_{config}_mvq.yaml").is_file()
