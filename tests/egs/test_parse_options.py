"""Options of the recipes' shell scripts."""

import subprocess
from pathlib import Path

import pytest

PARSER = Path(__file__).parents[2] / "egs/TEMPLATE/asr1/utils/parse_options.sh"
SCRIPT = f"""#!/usr/bin/env bash
set -euo pipefail
nj=4
train_set="train"
use_gpu=false
empty=
help_message="Usage: x.sh [--nj ${{nj}}]"
. "{PARSER}"
echo "nj=${{nj}};train_set=${{train_set}};use_gpu=${{use_gpu}};empty=${{empty}};$*"
"""


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "x.sh"
    script.write_text(SCRIPT)

    def run_script(*options):
        command = ["bash", str(script), *options]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    return run_script


def test_defaults_stay(run):
    assert run().stdout == "nj=4;train_set=train;use_gpu=false;empty=;\n"


def test_options_then_positional_arguments(run):
    done = run("--nj", "8", "--train-set", "a b", "--use_gpu", "true", "dir", "--nj")
    assert done.stdout == "nj=8;train_set=a b;use_gpu=true;empty=;dir --nj\n"


def test_a_value_may_be_empty_or_look_like_an_option(run):
    done = run("--train_set", "", "--empty", "--max_epoch 1")
    assert done.stdout == "nj=4;train_set=;use_gpu=false;empty=--max_epoch 1;\n"


def test_config_is_read_before_the_other_options(run, tmp_path):
    (tmp_path / "test").write_text("nj=16\ntrain_set=from_config\n")
    done = run("--nj", "2", "--config", "test")
    assert done.stdout == "nj=2;train_set=from_config;use_gpu=false;empty=;\n"


def test_help(run):
    done = run("--nj", "2", "--help")
    assert (done.returncode, done.stdout) == (0, "Usage: x.sh [--nj 4]\n")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--x", "1"], "invalid option --x"),
        (["--a.b", "1"], "invalid option --a.b"),
        (["--", "1"], "invalid option --"),
        (["--nj"], "option --nj needs a value"),
        (["--nj", "--nj"], "option --nj needs a value, got the option '--nj'"),
        (["--nj=3"], "write '--name value' instead of '--nj=3'"),
        (["--use-gpu", "yes"], "option --use-gpu takes true or false, not 'yes'"),
        (["--config", "nowhere"], "cannot read the file given to --config: 'nowhere'"),
        (["--config"], "option --config needs a value"),
    ],
)
def test_refusals(run, tmp_path, options, message):
    done = run(*options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path / 'x.sh'}: {message}\n"
