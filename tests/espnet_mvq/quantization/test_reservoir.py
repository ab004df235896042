"""A uniform sample of a stream of frames."""

import pytest
import torch

from espnet_mvq.quantization.frames import Reservoir


def sample(num_frames, max_frames, seed=0, chunk=10):
    """Offer frames that hold their own position."""
    reservoir = Reservoir(max_frames, seed)
    for part in torch.arange(float(num_frames)).unsqueeze(1).split(chunk):
        reservoir.add(part)
    return reservoir


def test_short_stream_is_kept_whole_and_in_order():
    reservoir = sample(25, 30)
    assert reservoir.frames().flatten().tolist() == list(range(25))


def test_long_stream_is_cut_to_size_and_stays_in_order():
    reservoir = sample(1000, 30)
    kept = reservoir.frames().flatten()
    assert len(kept) == 30 and reservoir.num_seen == 1000
    assert sum(len(part) for part in reservoir._frames) <= 60  # bounded memory
    assert (kept.diff() > 0).all()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_sample_does_not_depend_on_the_chunks(chunk):
    expected = sample(1000, 30).frames()
    assert torch.equal(sample(1000, 30, chunk=chunk).frames(), expected)


def test_sample_is_that_of_its_seed():
    kept = [sample(1000, 30, seed).frames() for seed in (0, 0, 1)]
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


def test_every_position_has_the_same_chance():
    kept = torch.cat([sample(1000, 50, seed).frames() for seed in range(40)])
    # 2000 uniform draws: the standard error of their mean is 6.5
    assert abs(float(kept.mean()) - 499.5) < 30
    tenths = torch.histc(kept, 10, 0, 1000)
    assert (tenths - 200).abs().max() < 60


def test_adding_after_reading_goes_on():
    reservoir = sample(1000, 30)
    first = reservoir.frames()
    reservoir.add(torch.arange(1000.0, 2000.0).unsqueeze(1))
    later = reservoir.frames()
    assert len(later) == 30 and not torch.equal(first, later)
    assert (later.flatten().diff() > 0).all() and float(later.max()) > 999


def test_no_frames_at_all_are_refused():
    with pytest.raises(ValueError, match="got no frames at all"):
        Reservoir(5).frames()
