"""Registration is one explicit act, and importing changes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

import espnet_mvq

ROOT = Path(__file__).resolve().parents[3]

IMPORT_CHANGES_NOTHING = """
from espnet2.tasks.asr import ASRTask, model_choices
from espnet2.train.dataset import DATA_TYPES
def state():
    return sorted(model_choices.classes), sorted(DATA_TYPES), ASRTask.main_worker
before = state()
import espnet_mvq.plugin.model, espnet_mvq.plugin.registration, espnet_mvq.run
assert state() == before
espnet_mvq.register()
after = state()
assert set(after[0]) - set(before[0]) == {"mvq"}
assert set(after[1]) - set(before[1]) == {"mvq_ark"}
model_choices.classes["mvq"] = object
espnet_mvq.plugin.registration.register.cache_clear()
try:
    espnet_mvq.register()
except ValueError as error:
    assert "'mvq' is already registered in ESPnet, by builtins.object" in str(error)
else:
    raise AssertionError("another plugin's model was replaced")
"""


def test_importing_changes_nothing_and_names_of_others_are_safe():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_CHANGES_NOTHING],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "registered model" in line]
    version = espnet_mvq.__version__
    expected = f"espnet_mvq {version}: registered model 'mvq' and data type 'mvq_ark'"
    assert lines == [expected]


def test_registering_again_changes_nothing(capsys):
    from espnet2.tasks.asr import ASRTask, model_choices

    espnet_mvq.register()
    before = model_choices.classes["mvq"], ASRTask.main_worker
    capsys.readouterr()
    espnet_mvq.register()
    assert (model_choices.classes["mvq"], ASRTask.main_worker) == before
    assert capsys.readouterr().err == ""


def test_no_type_of_espnet_is_a_prefix_of_ours():
    """ESPnet's data set takes the first entry that a type's name begins with."""
    from espnet2.train.dataset import DATA_TYPES

    espnet_mvq.register()
    assert [name for name in DATA_TYPES if "mvq_ark".startswith(name)] == ["mvq_ark"]


@pytest.mark.parametrize("model", ["mvq", "espnet"])
def test_only_trainings_of_our_model_are_completed(monkeypatch, model):
    import argparse

    from espnet_mvq.plugin import registration

    called = []

    class Task:
        @classmethod
        def main_worker(cls, args):
            called.append(args.model)

    registration._complete_options_before_training(Task)
    monkeypatch.setattr(
        registration, "complete_mvq_conf", lambda args: called.append("completed")
    )
    Task.main_worker(argparse.Namespace(model=model))
    assert called == (["completed", "mvq"] if model == "mvq" else ["espnet"])
