"""An interrupted training goes on as if nothing had happened."""

import pytest
import torch

from espnet_mvq.quantization import QuantizerTrainer


@pytest.fixture
def frames():
    return torch.randn(200, 8) @ torch.randn(8, 8)


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "checkpoint.pt"


def trainer(**options):
    defaults = dict(codebook_size=8, num_iterations=4, kmeans_iterations=2, patience=9)
    return QuantizerTrainer(8, 2, **{**defaults, **options})


def interrupt(frames, checkpoint, monkeypatch, after=2, **options):
    """Train until an interruption in the round after so many."""
    original = QuantizerTrainer._round

    def one_round(self, x, state):
        if state.iteration == after:
            raise KeyboardInterrupt
        original(self, x, state)

    with monkeypatch.context() as patch:
        patch.setattr(QuantizerTrainer, "_round", one_round)
        with pytest.raises(KeyboardInterrupt):
            trainer(checkpoint=checkpoint, **options).fit(frames)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_resumed_training_gives_the_same_quantizer(
    frames, checkpoint, monkeypatch, caplog, after
):
    expected = trainer().fit(frames)
    interrupt(frames, checkpoint, monkeypatch, after)
    caplog.set_level("INFO")
    resumed = trainer(checkpoint=checkpoint).fit(frames)
    assert f"resumed after round {after}" in caplog.text
    assert resumed.id == expected.id
    assert resumed.provenance == expected.provenance


def test_interrupted_before_the_first_round_starts_anew(
    frames, checkpoint, monkeypatch
):
    interrupt(frames, checkpoint, monkeypatch, after=0)
    assert trainer(checkpoint=checkpoint).fit(frames).id == trainer().fit(frames).id


def test_finished_training_is_not_done_again(frames, checkpoint, monkeypatch):
    first = trainer(checkpoint=checkpoint).fit(frames)
    monkeypatch.setattr(QuantizerTrainer, "_round", None)
    assert trainer(checkpoint=checkpoint).fit(frames).id == first.id


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"ridge": (40.0, 5.0)},
        {"perturbation_rounds": 1},
        {"normalize": "mean_std"},
    ],
)
def test_checkpoint_of_other_settings_is_ignored(
    frames, checkpoint, monkeypatch, caplog, options
):
    interrupt(frames, checkpoint, monkeypatch)
    found = trainer(checkpoint=checkpoint, **options).fit(frames)
    assert "is of other settings or frames; training starts anew" in caplog.text
    assert found.id == trainer(**options).fit(frames).id


def test_checkpoint_of_other_frames_is_ignored(frames, checkpoint, monkeypatch, caplog):
    interrupt(frames, checkpoint, monkeypatch)
    other = torch.randn(200, 8)
    found = trainer(checkpoint=checkpoint).fit(other)
    assert "starts anew" in caplog.text
    assert found.id == trainer().fit(other).id


def test_more_rounds_after_an_interruption_are_as_many_rounds_at_once(
    frames, checkpoint, monkeypatch
):
    """The ridge of a round depends on the number of rounds, so must the checkpoint."""
    interrupt(frames, checkpoint, monkeypatch, num_iterations=4)
    found = trainer(checkpoint=checkpoint, num_iterations=8).fit(frames)
    assert found.id == trainer(num_iterations=8).fit(frames).id


def test_no_half_written_checkpoint_stays(frames, checkpoint):
    trainer(checkpoint=checkpoint).fit(frames)
    assert [p.name for p in checkpoint.parent.iterdir()] == [checkpoint.name]
