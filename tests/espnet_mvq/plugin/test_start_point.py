"""What a new training, or one that goes on, must not take over from another."""

import argparse

import pytest
import torch
import yaml

from espnet_mvq.plugin.training_checks import (
    refuse_counted_updates,
    refuse_other_indexes,
)


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that writes a checkpoint after so many updates."""

    def write(number):
        path = tmp_path / "valid.loss.ave.pth"
        counted = {} if number is None else {"mvq.num_updates": torch.tensor(number)}
        torch.save({"encoder.weight": torch.ones(2), **counted}, path)
        return str(path)

    return write


def refuse(*init_param):
    refuse_counted_updates(argparse.Namespace(init_param=list(init_param)))


def test_count_of_another_training_is_refused(checkpoint):
    path = checkpoint(7.0)
    with pytest.raises(ValueError, match="got a model after 7 updates") as refused:
        refuse(path)
    assert f"{path}:::mvq.num_updates" in str(refused.value)
    with pytest.raises(ValueError, match="after 7 updates"):
        refuse(f"{path}:::decoder.,encoder.")
    with pytest.raises(ValueError, match="after 7 updates"):
        refuse(f"{path}:mvq:mvq")


@pytest.mark.parametrize(
    "rest", [":::mvq.", ":::mvq.num_updates", ":::decoder.,mvq", ":encoder:encoder"]
)
def test_what_leaves_the_count_out_is_taken(checkpoint, rest):
    refuse(checkpoint(7.0) + rest)


@pytest.mark.parametrize("number", [None, 0.0])
def test_models_without_a_count_are_taken(checkpoint, number):
    refuse(checkpoint(number))


def test_what_cannot_be_read_is_left_to_espnet(tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"no checkpoint")
    refuse(str(tmp_path / "damaged.pth"), str(tmp_path / "none.pth"))
    refuse_counted_updates(argparse.Namespace())


LONE = {"quantizer_id": "old"}
TARGETS = {"targets": {"codebook_indexes": LONE, "embeddings": {"dim": 3}}}


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


@pytest.mark.parametrize("before", [LONE, TARGETS])
@pytest.mark.parametrize("several", [False, True])
def test_training_does_not_go_on_with_other_indexes(experiment, before, several):
    now = {"quantizer_id": "new"}
    now = {"targets": {"codebook_indexes": now}} if several else now
    with pytest.raises(ValueError, match="of quantizer old, but those here are of new"):
        refuse_other_indexes(experiment(before), now)


def test_training_goes_on_with_the_same_indexes(experiment):
    for before in (LONE, TARGETS, None, {}, {"targets": {"codebook_indexes": None}}):
        refuse_other_indexes(experiment(before), LONE)
        refuse_other_indexes(experiment(before), {"loss": "l2"})


def test_new_training_may_have_any_indexes(experiment):
    refuse_other_indexes(experiment(LONE, resume=False), {"quantizer_id": "new"})


def test_training_without_a_checkpoint_starts_anew(experiment):
    refuse_other_indexes(experiment(LONE, checkpoint=False), {"quantizer_id": "new"})
    refuse_other_indexes(argparse.Namespace(), {"quantizer_id": "new"})
