"""Each row of the table ends in one line that names the input, without a traceback."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from builders import ROOT

from espnet_mvq.__main__ import MVQ_SH

TABLE = yaml.safe_load(Path(__file__).with_name("table.yaml").read_text())
ROWS = [
    pytest.param(section, options, words, id=f"{section}: {options}")
    for section, content in TABLE.items()
    for options, *words in content["bad"]
]


def run_command(section, options, world):
    """Run a command in this process: importing torch for each would take minutes."""
    name = TABLE[section].get("command", section)
    command = importlib.import_module(f"espnet_mvq.bin.{name}")
    status = command.main(shlex.split(options))
    if status:
        sys.exit(status)


def run_mvq_sh(section, options, world):
    """Run mvq.sh in the folder of a recipe."""
    done = subprocess.run(
        ["bash", str(MVQ_SH), *shlex.split(options)],
        cwd=world / "recipe",
        env={**os.environ, "PYTHONPATH": str(ROOT), "MVQ_PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert not (world / "recipe" / "dump" / "mvq").exists()
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)


def run_training(section, options, world):
    """Run an ESPnet training whose options are merged with those that work."""
    from espnet_mvq.run import main

    config = yaml.safe_load((world / "train.yaml").read_text())
    changes = yaml.safe_load(options)
    data = changes.pop("data", None)
    if data is not None:
        paths = config["train_data_path_and_name_and_type"][:2] + data
        config["train_data_path_and_name_and_type"] = paths
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(config.get(name), dict)
        config[name] = merged(config[name], value) if both else value
    path = world / "out" / "train.yaml"
    path.write_text(yaml.safe_dump(config))
    command = ["-m", "espnet2.bin.asr_train", "--config", str(path)]
    main([*command, "--output_dir", f"{world}/out/exp"])


def merged(old, new):
    """Merge nested dictionaries."""
    both = {k: v for k, v in new.items() if isinstance(v, dict) and k in old}
    return {**old, **new, **{k: merged(old[k], v) for k, v in both.items()}}


RUN = {"mvq.sh": run_mvq_sh, "training": run_training}


def run(section, options, world):
    """Run a command, with options added to those that work."""
    if section != "training":
        options = f"{TABLE[section]['good'] or ''} {options}"
    options = options.replace("{W}", str(world))
    RUN.get(section, run_command)(section, options, world)


def test_table_has_enough_rows():
    assert len(ROWS) >= 120


@pytest.mark.parametrize(
    "section", [s for s in TABLE if TABLE[s]["good"] and s != "mvq.sh"]
)
def test_options_without_fault_work(section, world):
    """Those of mvq.sh have tests of their own."""
    run(section, "{}" if section == "training" else "", world)


@pytest.mark.parametrize("section, options, words", ROWS)
def test_bad_input_ends_in_one_line(section, options, words, world, caplog, capfd):
    with pytest.raises(SystemExit) as ended:
        run(section, options, world)
    executed = (world / "executed").exists()
    (world / "executed").unlink(missing_ok=True)
    assert ended.value.code not in (0, None)
    stderr = capfd.readouterr().err
    (line,) = error_lines(caplog.records, stderr)
    assert "\n" not in line and "Traceback" not in line + stderr
    missing = [
        word for word in words if str(word).replace("{W}", str(world)) not in line
    ]
    assert not missing, f"{missing} not in: {line}"
    assert not executed, "a file of the table ran a command"


def error_lines(records, stderr):
    """Return the errors that a command logged; else those in its standard error."""
    logged = [r.getMessage() for r in records if r.levelname == "ERROR"]
    # ESPnet's data set logs a line of its own before our error.
    logged = [line for line in logged if "rror happened with" not in line]
    lines = stderr.splitlines()
    return logged or [line for line in lines if "error: " in line.lower()] or lines
