"""Masks of features: where they lie, how much they cover, what they weigh."""

import pytest
import torch

from espnet_mvq.distillation import Mask


def spans_of(row):
    """Return the lengths of the runs of True."""
    edges = torch.diff(row.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    return (edges == -1).nonzero().flatten() - (edges == 1).nonzero().flatten()


def test_spans_lie_in_their_utterances():
    torch.manual_seed(0)
    lengths = torch.tensor([60, 12, 10, 9])
    masked = Mask(length=10).frames(lengths, 70)
    assert masked.shape == (4, 70)
    for row, length in zip(masked, lengths.tolist()):
        assert not row[length:].any()
        assert (spans_of(row) >= 10).all()
    # One place for a span of 10, and none in an utterance of 9
    assert masked[2].sum() == 10 and not masked[3].any()


@pytest.mark.parametrize("prob", [0.2, 0.65])
def test_share_of_masked_frames(prob):
    """Spans overlap: of n spans at random a frame is missed by each one alike."""
    torch.manual_seed(0)
    size, length = 1000, 10
    masked = Mask(prob=prob, length=length).frames(torch.full((40,), size), size)
    share = masked[:, length:-length].float().mean()  # frames that all spans can reach
    missed = (1 - length / (size - length + 1)) ** (prob * size / length)
    assert share == pytest.approx(1 - missed, abs=0.02)


def test_channels_are_masked_in_each_utterance():
    torch.manual_seed(0)
    mask = Mask(channel_prob=0.5, channel_length=4).channels(200, 8)
    assert mask.shape == (200, 8)
    assert set(mask.sum(1).tolist()) == {4}
    assert len(set(map(tuple, mask.tolist()))) == 5
    assert not Mask(channel_prob=0).channels(3, 8).any()
    assert Mask(channel_prob=1).channels(3, 8).all()  # 20 channels and more are all 8


@pytest.mark.parametrize(
    "alpha, expected", [(0.5, [1, 1]), (1, [2, 0]), (0, [0, 2]), (0.75, [1.5, 0.5])]
)
def test_weights(alpha, expected):
    weights = Mask(alpha=alpha).weights(torch.tensor([[True, False]]))
    assert weights.tolist() == [expected]


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"prob": 1.5}, "prob: got 1.5"),
        ({"length": 0}, "length: got 0"),
        ({"lenght": 5}, "unknown option: lenght"),
        ({"alpha": -1.0}, "alpha: got -1.0"),
    ],
)
def test_bad_options_are_refused(conf, message):
    with pytest.raises(ValueError, match=f"mvq_conf mask: {message}"):
        Mask.from_dict(conf)


def test_speech_shorter_than_a_span_is_refused():
    with pytest.raises(ValueError, match="spans of 50 frames, but the longest .* 49"):
        Mask(length=50).frames(torch.tensor([49, 3]), 49)
