"""Taking the plugin out of options and checkpoints, and the proof that it is out."""

import copy
import shutil

import pytest
import torch
import yaml
from builders import (
    INTERCTC,
    RECURRENT,
    TASKS,
    build_model,
    find_task,
    make_task_args,
    run_python,
)

from espnet_mvq.plugin import export

FEATURES = {
    "input_size": 10,
    "mvq_conf": {"student_frame_shift_samples": 640, "student_frame_offset_samples": 0},
}
# Options of the tiny model
MODELS = {
    "transformer": {},
    "interctc": {"encoder_conf": INTERCTC, "model_conf": {"interctc_weight": 0.5}},
    "rnn": {"encoder": "rnn", "encoder_conf": RECURRENT},
    "features": FEATURES,
}
INDEXES = ["dump/train/codebook_indexes.scp", "codebook_indexes", "mvq_ark"]
SPEECH, TEXT = ["dump/wav.scp", "speech", "sound"], ["dump/text", "text", "text"]


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """Return a function that writes an experiment with a checkpoint 1epoch.pth."""
    from espnet2.tasks.asr import ASRTask

    build, options = ASRTask.build_model, []

    def build_and_keep(args):
        options.append(vars(args))
        return build(args)

    monkeypatch.setattr(ASRTask, "build_model", build_and_keep)

    def make(model="mvq", **kwargs):
        folder = tmp_path / model
        folder.mkdir()
        state = build_model(model=model, **kwargs).state_dict()
        export.write_config(options[-1], folder / "config.yaml")
        torch.save(state, folder / "1epoch.pth")
        return folder

    return make


@pytest.fixture
def exported(experiment, tmp_path):
    """Return a function that makes an experiment and one without the plugin."""

    def make(**kwargs):
        source, target = experiment(**kwargs), tmp_path / "exported"
        target.mkdir()
        config = yaml.safe_load((source / "config.yaml").read_text())
        plain = export.plain_config(config, "asr", str(target))
        export.write_config(plain, target / "config.yaml")
        export.strip_checkpoint(source / "1epoch.pth", target / "1epoch.pth")
        return source, target

    return make


def encode(folder):
    files = folder / "config.yaml", [folder / "1epoch.pth"]
    return export.encode_noise(export.find_task("asr"), *files)


def change(path, name, value=None):
    """Change one weight of a checkpoint, or take it away."""
    state = torch.load(path)
    if value is None:
        del state[name]
    else:
        state[name] = value
    torch.save(state, path)


def options_of_training(**changes):
    return {
        "output_dir": "exp/mvq",
        "model": "mvq",
        "model_conf": {"ctc_weight": 0.3, "mvq_conf": {"weight": 1.0}},
        "allow_variable_data_keys": True,
        "train_data_path_and_name_and_type": [INDEXES, SPEECH, TEXT],
        "valid_data_path_and_name_and_type": [SPEECH, TEXT, INDEXES],
        "encoder": "conformer",
        **changes,
    }


def test_options_without_the_plugin():
    config = options_of_training()
    assert export.plain_config(config, "asr", "exp/plain") == {
        "output_dir": "exp/plain",
        "model": "espnet",
        "model_conf": {"ctc_weight": 0.3},
        "allow_variable_data_keys": False,
        "train_data_path_and_name_and_type": [SPEECH, TEXT],
        "valid_data_path_and_name_and_type": [SPEECH, TEXT],
        "encoder": "conformer",
    }
    assert config == options_of_training()


@pytest.mark.parametrize(
    "other, allowed",
    [("text_spk2", False), ("prompt", False), ("speaker", True), ("speech_ref1", True)],
)
def test_data_that_the_task_does_not_know_stay_allowed(other, allowed):
    data = [SPEECH, INDEXES, ["dump/other", other, "text"], TEXT]
    config = options_of_training(train_data_path_and_name_and_type=data)
    plain = export.plain_config(config, "asr", "exp/plain")
    assert plain["allow_variable_data_keys"] is allowed
    assert plain["train_data_path_and_name_and_type"] == [SPEECH, data[2], TEXT]


@pytest.mark.parametrize("nothing", [None, []])
def test_absent_options_stay_absent(nothing):
    changes = {
        "valid_data_path_and_name_and_type": nothing,
        "allow_variable_data_keys": False,
        "model_conf": {},
    }
    config = options_of_training(**changes)
    plain = export.plain_config(config, "asr", "exp/plain")
    assert {name: plain[name] for name in changes} == changes


@pytest.mark.parametrize("model", ["espnet", "maskctc", None])
def test_other_models_are_named(model):
    with pytest.raises(ValueError, match=f"got model: {model}, expected mvq"):
        export.plain_config(options_of_training(model=model), "asr", "exp/plain")


def test_checkpoint_is_that_of_stock_espnet(tmp_path):
    """Weights, their order, and torch's versions of the modules."""
    expected = build_model(model="espnet").state_dict()
    torch.save(build_model().state_dict(), tmp_path / "a.pth")
    counts = export.strip_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")
    state = torch.load(tmp_path / "b.pth", weights_only=True)
    assert list(state) == list(expected) and len(state) == counts["kept"]
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    assert state._metadata == expected._metadata
    assert counts["removed"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


def test_weights_are_kept_bit_for_bit(tmp_path):
    """NaN, the sign of 0, half precision and integers too; tied weights stay one."""
    tied = torch.tensor([[float("nan"), -0.0], [1e-45, 3.0]])
    state = {
        "mvq.head.weight": torch.ones(3),
        "encoder.weight": tied,
        "decoder.mvq.weight": tied,
        "norm.num_batches_tracked": torch.tensor(7),
        "half": torch.rand(3, 2).half().T,
        "mvqx": torch.tensor(True),
    }
    torch.save(state, tmp_path / "a.pth")
    counts = export.strip_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")
    assert counts == {"kept": 5, "removed": 1}
    written = torch.load(tmp_path / "b.pth", weights_only=True)
    del state["mvq.head.weight"]
    assert list(written) == list(state)
    for name, value in state.items():
        assert export._same_bits(written[name], value), name
    tied = written["encoder.weight"], written["decoder.mvq.weight"]
    assert tied[0].data_ptr() == tied[1].data_ptr()
    counts = export.strip_checkpoint(tmp_path / "b.pth", tmp_path / "c.pth")
    assert counts == {"kept": 5, "removed": 0}


@pytest.mark.parametrize(
    "content, message",
    [
        (torch.nn.Linear(2, 2), "a.pth: damaged, or holds other objects"),
        ([torch.ones(1)], "a.pth: got a list, expected weights by name"),
        ({"model": {"w": torch.ones(1)}}, "a.pth: 'model' is a dict, expected weights"),
        (b"cut off", "a.pth: damaged"),
        (b"", "a.pth: damaged"),
    ],
)
def test_files_that_are_no_checkpoints_are_refused(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "a.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message) as raised:
        export.strip_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_damaged_copy_is_noticed(tmp_path, monkeypatch):
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pth")
    save = torch.save
    for other in (-1, torch.zeros(2)):
        damaged = {"weight": other}
        monkeypatch.setattr(torch, "save", lambda state, path: save(damaged, path))
        with pytest.raises(ValueError, match="b.pth: .*weight"):
            export.strip_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth")


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_encodings_of_original_and_export_are_the_same(exported, options):
    source, target = exported(**options)
    (expected,), (result,) = encode(source), encode(target)
    assert export._compare(target, result, expected) == "equal bit for bit"
    lengths = result[-1]
    assert len(lengths) == 3 and len(set(lengths.tolist())) == 3
    assert float(result[0].std()) > 0.1


def test_another_weight_is_noticed(exported):
    source, target = exported()
    weight = torch.load(target / "1epoch.pth")["encoder.after_norm.weight"]
    change(target / "1epoch.pth", "encoder.after_norm.weight", weight * 1.0001)
    with pytest.raises(ValueError, match="1epoch.pth: encode.* differs .* by 0.0001"):
        export._compare(target / "1epoch.pth", *encode(target), *encode(source))


def test_rounding_is_accepted_and_reported():
    x = torch.randn(3, 4)
    words = export._compare("a.pth", [x * (1 + 3e-7)], [x])
    assert words.startswith("equal to 3e-07") or words.startswith("equal to 2e-07")
    for other in (x * (1 + 1e-5), x * float("nan"), x[:2]):
        with pytest.raises(ValueError, match="a.pth: encode"):
            export._compare("a.pth", [other], [x])


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("ctc.ctc_lo.bias", None, "Missing key.*ctc.ctc_lo.bias"),
        ("mvq.head.weight", torch.ones(1), "Unexpected key.*mvq.head.weight"),
        ("ctc.ctc_lo.bias", torch.ones(99), "size mismatch for ctc.ctc_lo.bias"),
    ],
)
def test_weights_must_be_those_of_the_stock_model(exported, name, value, message):
    _, target = exported()
    change(target / "1epoch.pth", name, value)
    with pytest.raises(ValueError, match=f"1epoch.pth: does not fit .*{message}") as e:
        encode(target)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["", "mvq.head.of_another_version"])
def test_weights_of_the_plugin_are_not_looked_at(exported, name):
    """Of stock ESPnet, or another version: the student is the same."""
    source, target = exported()
    expected = encode(source)[0]
    shutil.copy(target / "1epoch.pth", source / "1epoch.pth")
    if name:
        change(source / "1epoch.pth", name, torch.ones(3))
    assert export._compare(source, encode(source)[0], expected) == "equal bit for bit"


def test_model_that_cannot_be_built_is_named(exported):
    _, target = exported()
    config = yaml.safe_load((target / "config.yaml").read_text())
    config["encoder_conf"]["no_such_option"] = 1
    export.write_config(config, target / "config.yaml")
    with pytest.raises(ValueError, match="asr could not build.*no_such_option"):
        encode(target)


@pytest.mark.parametrize("name", [*TASKS][2:])
@pytest.mark.usefixtures("rnnt_loss")
def test_other_tasks(tmp_path, name):
    task, task_class = TASKS[name], find_task(name)
    args = make_task_args(name)
    config = copy.deepcopy(vars(args))
    torch.save(task_class.build_model(args).state_dict(), tmp_path / "1epoch.pth")
    plain = export.plain_config(config, task.module, "exp_exported")
    expected = {k: v for k, v in config["model_conf"].items() if k != "mvq_conf"}
    assert (plain.get("model"), plain["model_conf"]) == (task.stock, expected)
    export.strip_checkpoint(tmp_path / "1epoch.pth", tmp_path / "1exported.pth")
    outputs = []
    for content, checkpoint in ((config, "1epoch.pth"), (plain, "1exported.pth")):
        export.write_config(content, tmp_path / "config.yaml")
        paths = tmp_path / "config.yaml", [tmp_path / checkpoint]
        outputs += export.encode_noise(task_class, *paths)
    assert export._compare(tmp_path, *outputs) == "equal bit for bit"


def test_tasks_without_a_choice_of_models_go_by_mvq_conf():
    config = options_of_training(model_conf={"mvq_conf": {}})
    del config["model"]
    plain = export.plain_config(config, "st", "exp/plain")
    assert plain["model_conf"] == {} and "model" not in plain
    with pytest.raises(ValueError, match="no mvq_conf in model_conf.*of the task st"):
        export.plain_config(plain, "st", "exp/plain")


def test_proof_in_a_process_without_the_plugin(exported):
    source, target = exported()
    words = export.verify("asr", source, target, ["1epoch.pth"])
    assert words == {"1epoch.pth": "equal bit for bit"}


def test_plugin_cannot_be_imported_in_that_process(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text("import espnet_mvq.plugin.layer_hook\n")
    done = run_python("-c", export._WITHOUT_PLUGIN, probe)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr and "espnet_mvq" in done.stderr


def test_error_of_the_other_process_is_reported(tmp_path):
    message = "without espnet_mvq, could.*config.yaml: the task asr could not build"
    with pytest.raises(ValueError, match=message):
        task = export.find_task("asr")
        export._encode_noise_without_plugin(task, tmp_path / "config.yaml", [])
