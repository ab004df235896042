"""An interrupted training goes on as if nothing had happened."""

import errno
import io

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


def interrupt(frames, checkpoint, monkeypatch, after=2, held_out=None, **options):
    """Train until an interruption in the round after so many."""
    original = QuantizerTrainer._round

    def one_round(self, x, state):
        if state.iteration == after:
            raise KeyboardInterrupt
        original(self, x, state)

    with monkeypatch.context() as patch:
        patch.setattr(QuantizerTrainer, "_round", one_round)
        with pytest.raises(KeyboardInterrupt):
            trainer(checkpoint=checkpoint, **options).fit(frames, held_out)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_resumed_training_gives_the_same_quantizer(
    frames, checkpoint, monkeypatch, caplog, after
):
    expected = trainer().fit(frames)
    interrupt(frames, checkpoint, monkeypatch, after)
    caplog.set_level("INFO")
    resumed = trainer(checkpoint=checkpoint).fit(frames)
    assert (f"resumed after round {after}" in caplog.text) == (after > 0)
    assert resumed.id == expected.id
    assert resumed.provenance == expected.provenance
    assert [p.name for p in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_finished_training_is_not_done_again(frames, checkpoint, monkeypatch):
    first = trainer(checkpoint=checkpoint).fit(frames)
    monkeypatch.setattr(QuantizerTrainer, "_round", None)
    assert trainer(checkpoint=checkpoint).fit(frames).id == first.id


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"ridge": (40.0, 5.0)}, {"perturbation_rounds": 1}]
    + [{"normalize": "mean_std"}],
)
def test_checkpoint_of_other_settings_is_ignored(
    frames, checkpoint, monkeypatch, caplog, options
):
    interrupt(frames, checkpoint, monkeypatch)
    result = trainer(checkpoint=checkpoint, **options).fit(frames)
    assert "is of other settings or frames, or of an older" in caplog.text
    assert result.id == trainer(**options).fit(frames).id


def exchange(frames, rows, values):
    """Return frames of which some values have changed places."""
    other = frames.clone()
    other[rows] = other[rows].flip(0) if values is None else other[rows] + values
    return other


@pytest.mark.parametrize(
    "rows, values",
    [
        (range(200), 0.3),
        (range(200), None),
        ([3, 4], None),
        ([5, 6], torch.tensor([[0.25], [-0.25]])),
    ],
)
def test_checkpoint_of_other_frames_is_ignored(
    frames, checkpoint, monkeypatch, caplog, rows, values
):
    """The same frames in another order and equal sums are other frames."""
    held_out = torch.randn(20, 8)
    interrupt(frames, checkpoint, monkeypatch, held_out=held_out)
    other = exchange(frames, list(rows), values)
    result = trainer(checkpoint=checkpoint).fit(other, held_out)
    assert f"{checkpoint} is of other settings or frames" in caplog.text
    assert result.id == trainer().fit(other, held_out).id


def test_checkpoint_of_an_older_version_is_ignored(frames, checkpoint, caplog):
    expected = trainer(checkpoint=checkpoint).fit(frames)
    content = torch.load(checkpoint, weights_only=True)
    content["settings"] = content["settings"].split("[")[0] + "['(190, 8) 1.0e-01']"
    torch.save(content, checkpoint)
    assert trainer(checkpoint=checkpoint).fit(frames).id == expected.id
    assert "or of an older espnet_mvq; training starts anew" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:1000],
        lambda content: b"no checkpoint",
        lambda content: dump({"settings": "", "iteration": 1}),
        lambda content: dump([1]),
    ],
)
def test_damaged_checkpoint_is_set_aside(frames, checkpoint, caplog, damage):
    expected = trainer(checkpoint=checkpoint).fit(frames)
    damaged = damage(checkpoint.read_bytes())
    checkpoint.write_bytes(damaged)
    assert trainer(checkpoint=checkpoint).fit(frames).id == expected.id
    aside = checkpoint.with_name("checkpoint.pt.damaged")
    assert f"{checkpoint} is damaged" in caplog.text and aside.name in caplog.text
    assert aside.read_bytes() == damaged and checkpoint.is_file()


def dump(content):
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def test_full_disk_does_not_end_a_training(frames, checkpoint, monkeypatch, caplog):
    """An older checkpoint stays as it is."""
    interrupt(frames, checkpoint, monkeypatch, after=1)
    before = checkpoint.read_bytes()

    def write(self, content):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(checkpoint), "write_bytes", write)
    result = trainer(checkpoint=checkpoint).fit(frames)
    assert result.id == trainer().fit(frames).id
    assert "goes on without a checkpoint" in caplog.text
    assert f"{checkpoint}: could not be written (No space left" in caplog.text
    assert [p.name for p in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert checkpoint.read_bytes() == before


def test_more_rounds_after_an_interruption_are_as_many_rounds_at_once(
    frames, checkpoint, monkeypatch
):
    """The ridge of a round depends on the number of rounds, so must the checkpoint."""
    interrupt(frames, checkpoint, monkeypatch, num_iterations=4)
    result = trainer(checkpoint=checkpoint, num_iterations=8).fit(frames)
    assert result.id == trainer(num_iterations=8).fit(frames).id
