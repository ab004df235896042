"""Completion of `mvq_conf` from metadata, and refusals before a training starts."""

import argparse
import dataclasses
import re

import pytest
import torch
import yaml
from builders import MVQ_CONF, index_metadata

from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME
from espnet_mvq.plugin.config import MVQConfig
from espnet_mvq.plugin.training_checks import (
    complete_mvq_conf,
    refuse_counted_updates,
    refuse_other_indexes,
)

METADATA = index_metadata(layer=3)
COMPLETE = {**MVQ_CONF, "level": "frame", "teacher_id": "teacher, layer 3"}


@pytest.fixture
def options(tmp_path):
    """Return a function that makes data folders and a training's options."""

    def make(conf=None, train=METADATA, valid=METADATA):
        paths = {}
        for name, metadata in (("train", train), ("valid", valid)):
            (tmp_path / name).mkdir(exist_ok=True)
            scp = str(tmp_path / name / SCP_NAME)
            paths[name] = [(str(tmp_path / "wav.scp"), "speech", "sound")]
            if metadata is not None:
                metadata.save(tmp_path / name / METADATA_NAME)
                paths[name].append((scp, "codebook_indexes", "mvq_ark"))
        return argparse.Namespace(
            model_conf={"ctc_weight": 0.3, "mvq_conf": conf},
            train_data_path_and_name_and_type=paths["train"],
            valid_data_path_and_name_and_type=paths["valid"],
        )

    return make


def complete(args):
    complete_mvq_conf(args)
    return args.model_conf["mvq_conf"]


@pytest.mark.parametrize("conf", [None, {}, {"weight": 0.5}, {"codebook_size": None}])
def test_missing_options_are_read_from_the_metadata(options, conf):
    args = options(conf)
    assert complete(args) == {**(conf or {}), **COMPLETE}
    assert args.model_conf["ctc_weight"] == 0.3


def test_options_may_be_absent_or_agree_with_the_metadata(options):
    assert complete(options(dict(COMPLETE))) == COMPLETE
    args = options()
    del args.model_conf["mvq_conf"]
    assert complete(args) == COMPLETE


@pytest.mark.parametrize("name", list(COMPLETE))
def test_yaml_that_disagrees_is_refused_naming_both(options, name):
    other = "other" if isinstance(COMPLETE[name], str) else 77
    expected = re.escape(repr(COMPLETE[name]))
    message = f"mvq_conf {name}: got {other!r}, but .*{expected}"
    with pytest.raises(ValueError, match=message):
        complete(options({name: other}))


def test_training_and_validation_that_disagree_are_refused(options):
    other = dataclasses.replace(METADATA, quantizer_id="ffff", layer=4)
    with pytest.raises(ValueError, match="have different metadata: layer: 3 and 4; q"):
        complete(options(valid=other))


def test_training_or_validation_may_have_no_indexes_where_all_is_given(options):
    assert complete(options(valid=None)) == COMPLETE
    assert complete(options(COMPLETE, train=None, valid=None)) == COMPLETE


@pytest.mark.parametrize(
    "valid, message",
    [
        (None, "codebook_indexes.scp,codebook_indexes,mvq"),
        (METADATA, "in the validation data alone"),
    ],
)
def test_training_without_indexes_is_refused(options, valid, message):
    with pytest.raises(ValueError, match=message):
        complete(options(train=None, valid=valid))


def test_student_at_another_rate_is_refused(options):
    args = options()
    args.frontend_conf = {"fs": 16_000}
    complete(args)
    args.frontend_conf = {"fs": "8k"}
    with pytest.raises(ValueError, match="at 16000 Hz, but the student reads 8000"):
        complete(args)


def test_preprocessor_that_pads_speech(options):
    """Those of the s2t tasks do, and put silence before it unless told otherwise."""
    args = options()
    vars(args).update(use_preprocessor=True, preprocessor="s2t", preprocessor_conf={})
    with pytest.raises(ValueError, match="speech_init_silence: got 1.0"):
        complete(args)
    args.preprocessor_conf = {"speech_init_silence": 0}
    assert complete(args) == {**COMPLETE, "speech_is_padded": True}
    args.preprocessor, args.preprocessor_conf = "default", {}
    args.model_conf["mvq_conf"] = {}
    assert complete(args) == COMPLETE


def test_checkpoints_of_adapters_alone_are_refused(options):
    args = options()
    vars(args).update(use_adapter=True, save_strategy="adapter_only")
    with pytest.raises(ValueError, match="save_strategy: got adapter_only, .* expec"):
        complete(args)
    args.save_strategy = "required_grad_only"
    assert complete(args) == COMPLETE
    vars(args).update(use_adapter=False, save_strategy="adapter_only")
    assert complete(args) == COMPLETE


@pytest.mark.parametrize("by_hand", [False, True])
def test_means_of_padded_speech_are_refused(options, by_hand):
    """They would be means of silence; of padding by other means the yaml tells."""
    metadata = dataclasses.replace(METADATA, level="utterance")
    args = options({"speech_is_padded": True} if by_hand else {}, metadata, metadata)
    if not by_hand:
        vars(args).update(use_preprocessor=True, preprocessor="s2t_ctc")
    message = "mvq_conf level of codebook_indexes: got utterance where the preproces"
    with pytest.raises(ValueError, match=message):
        complete(args)
    args.preprocessor, args.model_conf["mvq_conf"] = "default", {}
    assert complete(args)["level"] == "utterance"


def test_missing_metadata_are_named(options, tmp_path):
    args = options()
    (tmp_path / "train" / METADATA_NAME).unlink()
    with pytest.raises(FileNotFoundError, match="train/codebook_indexes.json"):
        complete(args)


def test_indexes_under_another_name_are_refused(options):
    """The model would never see them, and train without the MVQ loss."""
    args = options()
    path, _, kind = args.train_data_path_and_name_and_type[1]
    args.train_data_path_and_name_and_type[1] = (path, "codes", kind)
    with pytest.raises(ValueError, match="codes"):
        complete(args)


@pytest.mark.parametrize(
    "kind, name", [("mvq_list", "unlabelled"), ("mvq_loss", "teacher_loss")]
)
def test_other_data_of_ours_have_one_name(options, kind, name):
    args = options()
    args.train_data_path_and_name_and_type.append(("path", "elsewise", kind))
    with pytest.raises(ValueError, match=f"got the name 'elsewise', expected '{name}'"):
        complete(args)


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"wieght": 1}, "unknown option: wieght; expected some of loss, weight, sch"),
        ({"num_codebooks": None}, "num_codebooks missing.*espnet_mvq.run"),
        ({"weight": -1}, "weight: got -1, expected at least 0"),
        ({"codebook_size": 1}, "codebook_size: got 1, expected at least 2"),
        ({"num_codebooks": 0}, "num_codebooks: got 0, expected at least 1"),
    ],
)
def test_bad_options_are_refused(conf, message):
    with pytest.raises(ValueError, match=message):
        MVQConfig.from_dict({**COMPLETE, **conf})


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that writes a checkpoint after so many updates."""

    def write(number):
        path = tmp_path / "valid.loss.ave.pth"
        counted = {} if number is None else {"mvq.num_updates": torch.tensor(number)}
        torch.save({"encoder.weight": torch.ones(2), **counted}, path)
        return str(path)

    return write


def check_init_param(*init_param):
    refuse_counted_updates(argparse.Namespace(init_param=list(init_param)))


def test_count_of_another_training_is_refused(checkpoint):
    path = checkpoint(7.0)
    for rest in ("", ":::decoder.,encoder.", ":mvq:mvq"):
        with pytest.raises(ValueError, match="got a model after 7 updates") as refused:
            check_init_param(path + rest)
        if not rest:
            assert f"{path}:::mvq.num_updates" in str(refused.value)


@pytest.mark.parametrize(
    "number, rest",
    [(7.0, ":::mvq."), (7.0, ":::mvq.num_updates"), (7.0, ":::decoder.,mvq")]
    + [(7.0, ":encoder:encoder"), (None, ""), (0.0, "")],
)
def test_init_param_without_a_count_is_accepted(checkpoint, number, rest):
    check_init_param(checkpoint(number) + rest)


def test_unreadable_checkpoints_are_left_to_espnet(tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"no checkpoint")
    check_init_param(str(tmp_path / "damaged.pth"), str(tmp_path / "none.pth"))
    refuse_counted_updates(argparse.Namespace())


LONE = {"quantizer_id": "old", "teacher_id": "old"}
SEVERAL = {"targets": {"codebook_indexes": LONE, "embeddings": {"dim": 3}}}


@pytest.fixture
def experiment(tmp_path):
    """Return a function that makes an experiment's options and what it left."""

    def make(conf, checkpoint=True, resume=True):
        written = {"model_conf": {"mvq_conf": conf}} if conf is not None else {}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(written))
        if checkpoint:
            (tmp_path / "checkpoint.pth").touch()
        return argparse.Namespace(output_dir=str(tmp_path), resume=resume)

    return make


@pytest.mark.parametrize("before", [LONE, SEVERAL])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", ["quantizer", "teacher"])
def test_training_does_not_go_on_with_other_data(experiment, before, several, kind):
    now = {**LONE, f"{kind}_id": "new"}
    now = {"targets": {"codebook_indexes": now}} if several else now
    with pytest.raises(ValueError, match=f"{kind} old, but the data are of .* new"):
        refuse_other_indexes(experiment(before), now)


def test_training_goes_on_with_the_same_indexes(experiment):
    for before in (LONE, SEVERAL, None, {}, {"targets": {"codebook_indexes": None}}):
        refuse_other_indexes(experiment(before), LONE)
        refuse_other_indexes(experiment(before), {"loss": "l2"})


def test_new_training_may_have_any_indexes(experiment):
    new = {"quantizer_id": "new"}
    refuse_other_indexes(experiment(LONE, resume=False), new)
    refuse_other_indexes(argparse.Namespace(), new)


def test_training_without_a_checkpoint_may_have_any_indexes(experiment):
    args = experiment(LONE, checkpoint=False)
    refuse_other_indexes(args, {"quantizer_id": "new"})
