"""The overlays' run_mvq.sh hands teacher, student and stages on to what they run."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from espnet_mvq.where import MVQ_SH

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / "egs" / "librispeech_100" / "asr1"
# Stand in for ESPnet's run.sh, mvq.sh and `python3 -m espnet_mvq.where`
NOTING = '#!/bin/sh\nfor word in {name} "$@"; do printf "%s\\t" "$word"; done >>{log}\n'
NOTING += "echo >>{log}\n"


@pytest.fixture
def run_mvq(tmp_path):
    """Return a function that runs it with an environment, and gives its commands."""
    log = tmp_path / "log"
    for name in ("run.sh", "mvq.sh"):
        (tmp_path / name).write_text(NOTING.format(name=name, log=log))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "python3").write_text(f"#!/bin/sh\necho {tmp_path}/mvq.sh\n")
    (tmp_path / "python3").chmod(0o755)

    def run(*options, **variables):
        log.unlink(missing_ok=True)
        subprocess.run(
            [OVERLAY / "run_mvq.sh", *options],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **variables},
            check=True,
        )
        lines = [line.split("\t")[:-1] for line in log.read_text().splitlines()]
        # As programs see options: the last of a name
        return [(name, dict(zip(w[::2], w[1::2]))) for name, *w in lines]

    return run


def test_first_run(run_mvq):
    (data, first), (mvq, options), (training, second) = run_mvq("--ngpu", "4")
    assert (data, mvq, training) == ("run.sh", "mvq.sh", "run.sh")
    assert first == {"--stage": "1", "--stop_stage": "5"}
    assert options["--teacher"] == "s3prl/wavlm_large" and options["--layer"] == "18"
    assert second["--stage"] == "10" and second["--ngpu"] == "4"
    assert second["--python"] == "python3 -m espnet_mvq.run"


@pytest.mark.parametrize("teacher", ["wavlm_large", "hubert_large_ll60k"])
@pytest.mark.parametrize(
    "config", ["conformer", "e_branchformer", "streaming_conformer"]
)
def test_teachers_share_yamls_but_not_experiments(run_mvq, teacher, config):
    variables = {"teacher": f"s3prl/{teacher}", "layer": "21", "config": config}
    (_, options), (_, training) = run_mvq(stage="6", **variables)
    assert options["--teacher"] == f"s3prl/{teacher}" and options["--layer"] == "21"
    assert (OVERLAY / training["--asr_config"]).is_file()
    assert training["--asr_tag"] == f"train_asr_{config}_mvq_{teacher}_layer21"


def test_checkpoint_in_a_folder_gives_a_name_without_slashes(run_mvq):
    training = run_mvq(teacher="s3prl/wavlm_local:/models/large.pt")[-1][1]
    assert training["--asr_tag"].endswith("_large.pt_layer18")


@pytest.mark.parametrize("stage, num_commands", [("6", 2), ("10", 1), ("12", 1)])
def test_later_stages(run_mvq, stage, num_commands):
    commands = run_mvq("--stop_stage", "13", stage=stage)
    assert len(commands) == num_commands
    training = commands[-1][1]
    assert training["--stage"] == str(max(10, int(stage)))
    assert training["--stop_stage"] == "13"


def test_options_are_those_of_mvq_sh_and_the_documented_teachers_of_s3prl(run_mvq):
    options = run_mvq()[1][1]
    there = set(re.findall(r"^(\w+)=", MVQ_SH.read_text(), re.MULTILINE))
    assert {name.removeprefix("--") for name in options} <= there
    pytest.importorskip("s3prl")
    from s3prl.nn import S3PRLUpstream

    readme = (OVERLAY / "README.md").read_text()
    teachers = set(re.findall(r"s3prl/(\w+_(?:large|ll60k|local)\w*)", readme))
    assert len(teachers) == 4
    assert teachers <= set(S3PRLUpstream.available_names())


def test_documented_variables_are_there():
    script = (OVERLAY / "run_mvq.sh").read_text()
    readme = (OVERLAY / "README.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| `?([\w/]+)`? \|", readme, re.M))
    assert documented == dict(re.findall(r"(\w+)=\$\{\1:-([\w/]+)\}", script))
    for config in re.findall(r"`((?:\w+_)?(?:con|branch)former)`", readme):
        assert (OVERLAY / f"conf/tuning/train_asr_{config}_mvq.yaml").is_file()
    assert shlex.split(script, comments=True)
