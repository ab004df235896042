"""Every shipped yaml is one that ESPnet takes; MVQ students differ only by MVQ."""

import inspect

import pytest
import torch
import yaml
from builders import MVQ_CONF, ROOT
from corpus_builders import load_script

import espnet_mvq

CONFIGS = sorted(p for p in ROOT.glob("egs/*/*/conf/**/*.yaml") if not p.is_symlink())
TRAINING = [path for path in CONFIGS if path.name.startswith("train_")]
# Options that run_losses.sh adds to a baseline for a loss
LOSSES = [path for path in CONFIGS if path.parent.name == "losses"]
PRETRAINING = [path for path in CONFIGS if path.name.startswith("pretrain_")]
DECODING = [path for path in CONFIGS if path.name.startswith("decode_")]
MVQ_TRAINING = [path for path in TRAINING if "_mvq" in path.name]
# Metadata of 16 codebooks of WavLM-large or HuBERT-large
INDEXES = {**MVQ_CONF, "num_codebooks": 16, "codebook_size": 256}
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
    assert TRAINING and DECODING and PRETRAINING
    assert set(CONFIGS) == {*TRAINING, *DECODING, *LOSSES, *PRETRAINING}


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


@pytest.mark.parametrize("path", PRETRAINING, ids=name_of)
def test_pretrained_encoder_is_that_of_a_student(path):
    from espnet2.tasks.asr import ASRTask

    espnet_mvq.register()
    from espnet2.tasks.ssl import SSLTask

    args = SSLTask.get_parser().parse_args(["--config", str(path)])
    args.model_conf["mvq_conf"].update(INDEXES)
    pretrained = SSLTask.build_model(args).encoder.state_dict()
    student = parse(path.parents[2] / "asr1" / "conf" / "train_asr_small.yaml")
    student.token_list = ["<blank>", "<unk>", "a", "<sos/eos>"]
    encoder = ASRTask.build_model(student).encoder
    encoder.load_state_dict(pretrained)


@pytest.mark.parametrize("path", DECODING, ids=name_of)
def test_decoding_config_parses(path):
    from espnet2.bin.asr_inference import get_parser

    options = yaml.safe_load(path.read_text())
    known = {action.dest for action in get_parser()._actions}
    assert options and set(options) <= known


@pytest.mark.parametrize("path", MVQ_TRAINING, ids=name_of)
def test_mvq_config_is_its_baseline_and_the_mvq_loss(path):
    student = yaml.safe_load(path.read_text())
    baseline = yaml.safe_load(baseline_of(path).read_text())
    assert OURS <= set(student) and not OURS & set(baseline)
    assert student["model_conf"].pop("mvq_conf")["weight"] > 0
    assert {k: v for k, v in student.items() if k not in OURS} == baseline
    ((scp, name, kind),) = student["train_data_path_and_name_and_type"]
    assert scp.startswith("dump/raw/") and scp.endswith("/codebook_indexes.scp")
    assert (name, kind) == ("codebook_indexes", "mvq_ark")


@pytest.mark.parametrize("path", MVQ_TRAINING, ids=name_of)
def test_mvq_model_is_built_and_predicts_indexes(path):
    """Its layer is there, and its frames are where the teacher's are."""
    from espnet2.tasks.asr import ASRTask

    args = parse(path)
    args.token_list = ["<blank>", "<unk>", "a", "<sos/eos>"]
    args.model_conf["mvq_conf"].update(INDEXES)
    model = ASRTask.build_model(args).eval()
    speech = 0.1 * torch.randn(2, 32_000), torch.tensor([32_000, 24_000])
    batch = {
        "text": torch.tensor([[2, 2], [2, -1]]),
        "text_lengths": torch.tensor([2, 1]),
        "codebook_indexes": torch.randint(256, (2, 100, 16)),
        "codebook_indexes_lengths": torch.tensor([100, 75]),
    }
    with torch.no_grad():
        _, stats, _ = model(*speech, **batch)
        num_frames = int(model.encode(*speech)[1].sum())
    assert stats["loss_mvq"].isfinite() and stats["loss_mvq"] > 0
    # All but a few at the ends that lie outside of the teacher's
    assert num_frames - 4 <= stats["mvq_frames"] <= num_frames


def test_documented_block_has_the_options_and_their_defaults():
    from espnet_mvq.plugin.config import MVQConfig

    block = yaml.safe_load((ROOT / "conf" / "mvq.yaml").read_text())
    assert set(block) == OURS | {"model_conf"}
    conf = block["model_conf"]["mvq_conf"]
    defaults = MVQConfig()
    for name, value in conf.items():
        if name != "layer":  # an example, to be set for each student
            assert value == getattr(defaults, name)


@pytest.mark.parametrize("path", LOSSES, ids=name_of)
def test_losses_are_accepted_by_espnet_and_the_model(tmp_path, path):
    from espnet_mvq.plugin.config import parse_targets, parse_weighting

    values = {
        "train": "dump/raw/train",
        "teacher": "s3prl/hubert",
        "layer": 3,
        "teacher_conf": "{window_s: 0}",
        "updates": 9,
        "quantizer": "quantizer.safetensors",
    }
    merged = tmp_path / "merged.yaml"
    base = path.parents[1] / "train_asr_debug.yaml"
    load_script("egs/TEMPLATE/asr1/pyscripts/merge_yaml.py").main(
        ["--base", str(base), "--added", str(path), "--out", str(merged), "--set"]
        + [f"{name}={value}" for name, value in values.items()]
    )
    args = parse(merged)
    conf = args.model_conf["mvq_conf"]
    names = [name for _, name, _ in args.train_data_path_and_name_and_type or []]
    stored = [name for name in names if name != "teacher_loss"]
    if stored == ["embeddings"]:
        conf = {"targets": {"embeddings": conf}}
    targets = parse_targets({**INDEXES, "dim": 4, "token_list": ["a"], **conf})
    layers = [[-1]] if stored == ["posteriors"] else [[3], [3, 4]]
    assert [target.layer for target in targets.values()] in layers
    assert set(conf.get("targets", ())) <= set(names)
    weighting = parse_weighting(conf)
    assert ("teacher_loss" in names) == bool(weighting and weighting.needs_teacher_loss)
