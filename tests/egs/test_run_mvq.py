"""run_mvq.sh and the overlays: sets, stages, experiment names and checkpoints.

Stand-ins note the options of run.sh and mvq.sh: an ESPnet checkout is not part of the
tests (tests/integration/espnet_checkout.sh runs in one). So does
one for make_config, except where the yaml counts.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from builders import ROOT

from espnet_mvq.__main__ import MVQ_SH

RUN_MVQ = MVQ_SH.with_name("run_mvq.sh")
OVERLAYS = sorted(ROOT.glob("egs/*/asr1/run_mvq.sh"))
TEACHER = ("--teacher", "s3prl/wavlm_large", "--layer", "18")
NOTING = '#!/bin/sh\nfor word in {name} "$@"; do printf "%s\\t" "$word"; done >>{log}\n'
NOTING += "echo >>{log}\n"
# As ESPnet's: run.sh calls asr.sh, which logs its options.
RUN = 'echo "2026-01-01T00:00:00 (asr.sh:285:main) ./{kind}.sh --{kind}_config own.yaml'
RUN += " --train_set train --valid_set dev {options}"
# Python that needs not import ESPnet to print the command of make_config
PYTHON = """#!/bin/sh
case "$2" in
espnet_mvq.bin.make_config)
    echo ./run.sh --asr_config x --inference_${{10}}_model valid.acc.ave.pth ;;
*) exec {python} "$@" ;;
esac
"""
RUN += ' --speed_perturb_factors 0.9 1.0 1.1 $*"\n'
YAML = {
    "encoder": "conformer",
    "encoder_conf": {"num_blocks": 3, "output_size": 8, "attention_heads": 2},
    "model_conf": {"ctc_weight": 0.3},
    "best_model_criterion": [["valid", "acc", "max"]],
}


@pytest.fixture
def recipe(tmp_path):
    """Return a function that makes the folder of a recipe, with stand-ins."""

    def make(kind="asr", options="", real_yaml=False, **changes):
        log = tmp_path / "log"
        for name in ("run.sh", "mvq.sh"):
            (tmp_path / name).write_text(NOTING.format(name=name, log=log))
            (tmp_path / name).chmod(0o755)
        with (tmp_path / "run.sh").open("a") as file:
            file.write(RUN.format(kind=kind, options=options))
        for name in ("run_mvq.sh", "common.sh"):
            shutil.copy(MVQ_SH.with_name(name), tmp_path)
        bin_dir = tmp_path / "bin"
        bin_dir.mkdir()
        text = f'#!/bin/sh\nexec {sys.executable} "$@"\n' if real_yaml else None
        (bin_dir / "python3").write_text(text or PYTHON.format(python=sys.executable))
        (bin_dir / "python3").chmod(0o755)
        path = f"PATH={bin_dir}:$PATH; [ -n $UNSET_VARIABLE ]\n"
        (tmp_path / "path.sh").write_text(path)
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({**YAML, **changes}))
        data = tmp_path / "dump" / "raw" / "train_sp"
        data.mkdir(parents=True)
        (data / "codebook_indexes.scp").touch()
        return tmp_path

    return make


def run(folder, *options, script=None):
    """Run in a recipe; return the finished process, and commands with options.

    The call that asks run.sh for its options is left out.
    """
    log = folder / "log"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [script or folder / "run_mvq.sh", *options],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = log.read_text().splitlines() if log.exists() else []
    words = [line.split("\t")[:-1] for line in lines]
    # As programs see options: the last of a name
    commands = [(name, dict(zip(w[::2], w[1::2]))) for name, *w in words]
    return done, [c for c in commands if c[1].get("--stage") != "99999"]


def test_first_run(recipe):
    folder = recipe()
    done, commands = run(
        folder, *TEACHER, "--mvq_args", "--use_gpu true", "--ngpu", "4"
    )
    assert done.returncode == 0, done.stderr
    (data, first), (mvq, options), (training, second) = commands
    assert (data, mvq, training) == ("run.sh", "mvq.sh", "run.sh")
    assert first == {"--stage": "1", "--stop_stage": "5", "--ngpu": "4"}
    assert options == {
        "--datadir": "dump/raw",
        "--train_set": "train_sp",
        "--dev_set": "dev",
        "--teacher": "s3prl/wavlm_large",
        "--layer": "18",
        "--use_gpu": "true",
    }
    # From the language model on, which asr.sh leaves out if there is none.
    assert second["--stage"] == "6" and second["--ngpu"] == "4"
    assert second["--python"] == "python3 -m espnet_mvq.run"
    assert second["--asr_tag"] == "own_mvq_wavlm_large_layer18"
    assert second["--inference_asr_model"] == "valid.acc.ave.pth"
    assert second["--asr_config"] == "exp/asr_own_mvq_wavlm_large_layer18.yaml"


def test_the_config_and_the_options_of_the_command_line_win(recipe):
    folder = recipe(options="--dumpdir data2 --use_lm false", real_yaml=True)
    (folder / "dump").rename(folder / "data2")
    other = folder / "transducer.yaml"
    other.write_text(yaml.safe_dump({**YAML, "decoder": "transducer"}))
    words = [*TEACHER, "--config", other.name, "--stage", "7", "--asr_tag", "mine"]
    old = (
        folder / "exp" / "asr_transducer_mvq_wavlm_large_layer18_layer3_weight0.5.yaml"
    )
    old.parent.mkdir()
    old.write_text("from an earlier run")
    done, commands = run(folder, *words, "--config_args", "--layer 3 --weight 0.5")
    assert done.returncode == 0, done.stderr
    ((_, training),) = commands
    assert training["--asr_tag"] == "mine" and training["--stage"] == "7"
    assert training["--inference_asr_model"] == "valid.loss.ave.pth"
    student = yaml.safe_load((folder / training["--asr_config"]).read_text())
    assert student["model_conf"]["mvq_conf"] == {"weight": 0.5, "layer": 3}
    assert student["train_data_path_and_name_and_type"][0][0].startswith("data2/raw/")


def test_other_tasks(recipe):
    folder = recipe(
        "st", "--speed_perturb_factors  --st_task st", decoder="transformer"
    )
    data = folder / "dump" / "raw"
    done, commands = run(folder, *TEACHER, "--stage", "7", "--st_config", "own.yaml")
    assert done.returncode == 0, done.stderr
    ((_, training),) = commands
    assert training["--inference_st_model"] == "valid.acc.ave.pth"
    assert training["--st_tag"] == "own_mvq_wavlm_large_layer18"
    assert (data / "train_sp").is_dir()


@pytest.mark.parametrize(
    "options, stages",
    [
        ("--stop_stage 3", [("1", "3")]),
        ("--stage 5 --stop-stage 6", [("5", "5"), None, ("6", "6")]),
        ("--stop_stage 12 --stage 11", [("11", "12")]),
    ],
)
def test_stages_that_are_asked_for_and_no_others(recipe, options, stages):
    words = ["--asr_args", "--max_epoch 1", *options.split(), "--nj", "3"]
    done, commands = run(recipe(), *TEACHER, *words)
    assert done.returncode == 0, done.stderr
    assert [name for name, _ in commands] == [
        "run.sh" if pair else "mvq.sh" for pair in stages
    ]
    for (name, given), pair in zip(commands, stages):
        if name == "run.sh":
            assert (given["--stage"], given["--stop_stage"]) == pair
            assert (given["--asr_args"], given["--nj"]) == ("--max_epoch 1", "3")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stage", "x"], "--stage: got 'x', expected"),
        (["--stage"], "--stage: got '', expected"),
        (["--stage", "12", "--stop_stage", "11"], "--stop_stage: got '11', expected"),
        (["--teacher", ""], "--teacher: got '', expected"),
        (["--config", "none.yaml"], "--config: got 'none.yaml', expected"),
    ],
)
def test_bad_options_end_in_one_line(recipe, options, message):
    done, commands = run(recipe(), *TEACHER, *options)
    assert done.returncode == 2 and not commands
    assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("missing", ["run.sh", "path.sh"])
def test_a_folder_without_recipe_ends_in_one_line(recipe, missing):
    folder = recipe()
    (folder / missing).unlink()
    done, _ = run(folder, *TEACHER)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"got no {missing}, expected the folder of an ESPnet recipe" in done.stderr


def test_help_runs_nothing(recipe):
    done, commands = run(recipe(), "--ngpu", "1", "--help")
    assert done.returncode == 0 and "Usage: run_mvq.sh" in done.stdout and not commands


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.parents[1].name)
def test_overlays_name_options_of_mvq_sh(recipe, overlay):
    folder = recipe()
    script = folder / "bin" / "python3"
    where = f'#!/bin/sh\n[ "$3" != --mvq_sh ] || exec echo {folder}/mvq.sh\n'
    script.write_text(where + script.read_text().split("\n", 1)[1])
    done, commands = run(folder, "--stage", "6", "--stop_stage", "6", script=overlay)
    assert done.returncode == 0, done.stderr
    names = set(re.findall(r"^(\w+)=", MVQ_SH.read_text(), re.MULTILINE))
    assert [name for name, _ in commands] == ["mvq.sh", "run.sh"]
    assert {name.removeprefix("--") for name in commands[0][1]} <= names
