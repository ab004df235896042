"""Every shipped yaml is one that ESPnet takes; MVQ students differ only by MVQ."""

import inspect
from pathlib import Path

import pytest
import yaml

import espnet_mvq

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    p for p in ROOT.glob("egs/*/asr1/conf/**/*.yaml") if not p.is_symlink()
)
TRAINING = [path for path in CONFIGS if path.name.startswith("train_")]
DECODING = [path for path in CONFIGS if path.name.startswith("decode_")]
OURS = {
    "model",
    "allow_variable_data_keys",
    "train_data_path_and_name_and_type",
}


def name_of(path):
    return str(path.relative_to(ROOT / "egs"))


def baseline_of(path):
    return path.with_name(path.name.replace("_mvq", ""))


def parse(path):
    from espnet2.tasks.asr import ASRTask

    espnet_mvq.register()
    return ASRTask.get_parser().parse_args(["--config", str(path)])


def test_all_are_training_or_decoding():
    assert TRAINING and DECODING
    assert set(CONFIGS) == set(TRAINING) | set(DECODING)


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_training_config_parses_and_its_options_exist(path):
    from espnet2.tasks.asr import ASRTask

    args = parse(path)
    for choices in ASRTask.class_choices_list:
        chosen = getattr(args, choices.name)
        conf = getattr(args, f"{choices.name}_conf", None) or {}
        if chosen is None:
            assert not conf, choices.name
            continue
        signature = inspect.signature(choices.get_class(chosen)).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.values())
        unknown = set() if takes_any else set(conf) - set(signature)
        assert not unknown, f"{choices.name}_conf: {unknown}"


@pytest.mark.parametrize("path", DECODING, ids=name_of)
def test_decoding_config_parses(path):
    from espnet2.bin.asr_inference import get_parser

    options = yaml.safe_load(path.read_text())
    known = {action.dest for action in get_parser()._actions}
    assert options and set(options) <= known


@pytest.mark.parametrize("path", [p for p in TRAINING if "_mvq" in p.name], ids=name_of)
def test_mvq_config_is_its_baseline_and_the_mvq_loss(path):
    student = yaml.safe_load(path.read_text())
    baseline = yaml.safe_load(baseline_of(path).read_text())
    assert OURS <= set(student) and not OURS & set(baseline)
    assert student["model_conf"].pop("mvq_conf")["weight"] > 0
    assert {k: v for k, v in student.items() if k not in OURS} == baseline
    ((scp, name, kind),) = student["train_data_path_and_name_and_type"]
    assert scp.startswith("dump/raw/") and scp.endswith("/codebook_indexes.scp")
    assert (name, kind) == ("codebook_indexes", "mvq_ark")


def test_documented_block_has_the_options_and_their_defaults():
    from espnet_mvq.plugin.config import MVQConfig

    block = yaml.safe_load((ROOT / "conf" / "mvq.yaml").read_text())
    assert set(block) == OURS | {"model_conf"}
    conf = block["model_conf"]["mvq_conf"]
    defaults = MVQConfig()
    for name, value in conf.items():
        if name != "layer":  # an example, to be set for each student
            assert value == getattr(defaults, name)
