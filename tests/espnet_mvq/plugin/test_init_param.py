"""A new training does not take over the count of updates of another."""

import argparse

import pytest
import torch

from espnet_mvq.plugin.init_param import refuse_counted_updates


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
