"""Registration is one explicit act, and importing changes nothing."""

import pytest
from builders import run_python

import espnet_mvq
from espnet_mvq.plugin import registration

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
assert set(after[0]) - set(before[0]) == {"mvq", "mvq_maskctc"}
assert set(after[1]) - set(before[1]) == {"mvq_ark", "mvq_loss", "mvq_list"}
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
    done = run_python("-c", IMPORT_CHANGES_NOTHING)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "registered model" in line]
    tasks = "asr, slu, s2t, s2t_ctc, asr_transducer, st, ssl"
    assert lines == [
        f"espnet_mvq {espnet_mvq.__version__}: registered model 'mvq' (tasks {tasks}), "
        "data types mvq_ark, mvq_loss, mvq_list"
    ]


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


def test_name_taken_in_one_task_leaves_all_as_they_were(monkeypatch):
    from espnet2.tasks import asr, s2t

    for module in (asr, s2t):
        stock = {"espnet": module.model_choices.classes["espnet"]}
        monkeypatch.setattr(module.model_choices, "classes", stock)
    s2t.model_choices.classes["mvq"] = dict
    rows = {name: registration.TASKS[name] for name in ("asr", "s2t")}
    monkeypatch.setattr(registration, "TASKS", rows)
    before = asr.ASRTask.main_worker, asr.ASRTask.build_model
    with pytest.raises(ValueError, match="dict; expected .* free in espnet2.tasks.s2t"):
        registration.register.__wrapped__()
    assert list(asr.model_choices.classes) == ["espnet"]
    assert (asr.ASRTask.main_worker, asr.ASRTask.build_model) == before


def test_tasks_that_an_espnet_lacks_are_left_out(monkeypatch):
    row = registration.TASKS["asr"]
    monkeypatch.setattr(registration, "TASKS", {"not_yet": row, "asr": row})
    assert list(registration.import_tasks()) == ["asr"]


def test_task_that_is_broken_is_told_of(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'torchaudio'", name="torchaudio")

    monkeypatch.setattr(registration.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="torchaudio"):
        registration.import_tasks()
