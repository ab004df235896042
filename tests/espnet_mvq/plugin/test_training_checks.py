"""What the index files say goes into the options, or stops the training."""

import argparse
import dataclasses
import re

import pytest

from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME

METADATA = IndexMetadata(
    teacher="teacher",
    layer=3,
    quantizer_id="0123",
    num_codebooks=2,
    codebook_size=4,
    sample_rate=16000,
    frame_shift_samples=320,
    frame_offset_samples=199.5,
)
SAYS = {
    "num_codebooks": 2,
    "codebook_size": 4,
    "sample_rate": 16000,
    "frame_shift_samples": 320,
    "frame_offset_samples": 199.5,
    "quantizer_id": "0123",
    "level": "frame",
}


@pytest.fixture
def options(tmp_path):
    """Return a function that makes data folders and a training's options."""

    def make(conf=None, train=METADATA, valid=METADATA):
        paths = {}
        for name, metadata in (("train", train), ("valid", valid)):
            (tmp_path / name).mkdir()
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
    from espnet_mvq.plugin.training_checks import complete_mvq_conf

    complete_mvq_conf(args)
    return args.model_conf["mvq_conf"]


@pytest.mark.parametrize("conf", [None, {}, {"weight": 0.5}, {"codebook_size": None}])
def test_what_the_yaml_leaves_out_is_filled_in(options, conf):
    args = options(conf)
    assert complete(args) == {**(conf or {}), **SAYS}
    assert args.model_conf["ctc_weight"] == 0.3


def test_yaml_without_mvq_conf(options):
    args = options()
    del args.model_conf["mvq_conf"]
    assert complete(args) == SAYS


def test_what_the_yaml_gives_may_agree(options):
    assert complete(options(dict(SAYS))) == SAYS


@pytest.mark.parametrize("name", list(SAYS))
def test_yaml_that_disagrees_is_refused_naming_both(options, name):
    other = "other" if isinstance(SAYS[name], str) else 77
    message = f"mvq_conf {name}: got {other!r} in the yaml"
    with pytest.raises(ValueError, match=message + f".*{re.escape(repr(SAYS[name]))}"):
        complete(options({name: other}))


def test_training_and_validation_that_disagree_are_refused(options):
    other = dataclasses.replace(METADATA, quantizer_id="ffff", layer=4)
    with pytest.raises(ValueError, match="do not mean the same: layer: 3 and 4; quant"):
        complete(options(valid=other))


def test_validation_may_have_no_indexes(options):
    assert complete(options(valid=None)) == SAYS


def test_no_indexes_say_what_to_add(options):
    with pytest.raises(ValueError, match="codebook_indexes.scp,codebook_indexes,mvq"):
        complete(options(train=None, valid=None))


def test_no_indexes_are_fine_where_all_is_given(options):
    assert complete(options(SAYS, train=None, valid=None)) == SAYS


def test_indexes_of_the_validation_alone_are_refused(options):
    with pytest.raises(ValueError, match="data of the validation alone"):
        complete(options(train=None))


def test_student_at_another_rate_is_refused(options):
    args = options()
    args.frontend_conf = {"fs": 16_000}
    complete(args)
    args.frontend_conf = {"fs": "8k"}
    with pytest.raises(ValueError, match="at 16000 Hz, but the student hears 8000"):
        complete(args)


def test_preprocessor_that_pads_speech(options):
    """Those of the s2t tasks do, and put silence before it unless told otherwise."""
    args = options()
    vars(args).update(use_preprocessor=True, preprocessor="s2t", preprocessor_conf={})
    with pytest.raises(ValueError, match="speech_init_silence: got 1.0"):
        complete(args)
    args.preprocessor_conf = {"speech_init_silence": 0}
    assert complete(args) == {**SAYS, "speech_is_padded": True}
    args.preprocessor, args.preprocessor_conf = "default", {}
    args.model_conf["mvq_conf"] = {}
    assert complete(args) == SAYS


def test_checkpoints_of_adapters_alone_are_refused(options):
    args = options()
    vars(args).update(use_adapter=True, save_strategy="adapter_only")
    with pytest.raises(
        ValueError, match="save_strategy: got adapter_only, .* expected"
    ):
        complete(args)
    args.save_strategy = "required_grad_only"
    assert complete(args) == SAYS
    vars(args).update(use_adapter=False, save_strategy="adapter_only")
    assert complete(args) == SAYS


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
    args.train_data_path_and_name_and_type.append(("there", "elsewise", kind))
    with pytest.raises(ValueError, match=f"got the name 'elsewise', expected '{name}'"):
        complete(args)


@pytest.mark.parametrize(
    "conf, message",
    [
        (
            {"wieght": 1},
            "unknown option wieght; expected some of loss, weight, schedule",
        ),
        ({"num_codebooks": None}, "num_codebooks missing.*espnet_mvq.run"),
        ({"weight": -1}, "weight: got -1, expected at least 0"),
        ({"codebook_size": 1}, "codebook_size: got 1, expected at least 2"),
        ({"num_codebooks": 0}, "num_codebooks: got 0, expected at least 1"),
    ],
)
def test_bad_options_are_refused(conf, message):
    from espnet_mvq.plugin.config import MVQConfig

    with pytest.raises(ValueError, match=message):
        MVQConfig.from_dict({**SAYS, **conf})
