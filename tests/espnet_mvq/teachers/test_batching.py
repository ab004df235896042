"""Batches of waveforms, and cuts of long ones."""

import itertools
import random

import pytest
import torch

from espnet_mvq.teachers import build_teacher
from espnet_mvq.teachers.batching import cut_into_segments, group_by_length

_random = random.Random(0)
LENGTHS = [_random.choice([0, 3, 5, 8, 13]) for _ in range(40)] + [50]


@pytest.mark.parametrize("equal_lengths", [True, False])
@pytest.mark.parametrize("max_samples", [0, 10, 40, 10**6])
def test_groups(equal_lengths, max_samples):
    groups = group_by_length(LENGTHS, max_samples, equal_lengths)
    assert sorted(itertools.chain(*groups)) == list(range(len(LENGTHS)))
    longest = [max(LENGTHS[i] for i in group) for group in groups]
    assert longest == sorted(longest, reverse=True)
    for group, length in zip(groups, longest):
        lengths = {LENGTHS[i] for i in group}
        assert len(group) == 1 or len(group) * length <= max_samples
        assert len(group) == 1 or 0 not in lengths
        assert len(lengths) == 1 or not equal_lengths
    if max_samples == 10**6:
        assert len(groups) == LENGTHS.count(0) + (5 if equal_lengths else 1)
    if max_samples == 0:
        assert len(groups) == len(LENGTHS)


def test_groups_do_not_change():
    groups = group_by_length([5, 8, 5, 8, 0, 3], 16, False)
    assert groups == [[1, 3], [0, 2, 5], [4]]


@pytest.mark.parametrize("num_samples", [1, 99, 100, 101, 160, 161, 1000, 1234])
def test_segments_give_each_frame_once_and_with_context(num_samples):
    shift, longest, overlap = 10, 100, 15
    segments = cut_into_segments(num_samples, longest, overlap, shift)
    assert segments[0].start == segments[0].first_frame == 0
    assert segments[-1].stop == num_samples and segments[-1].end_frame is None
    for segment in segments:
        assert segment.start % shift == 0
        assert 0 < segment.stop - segment.start <= longest
    for left, right in zip(segments, segments[1:]):
        assert left.end_frame == right.first_frame
        # The last frame taken from the left and the first one from the right
        assert left.stop - left.end_frame * shift >= overlap
        assert right.first_frame * shift - right.start >= overlap
    assert len(segments) == 1 or num_samples > longest


def test_overlap_that_leaves_nothing():
    with pytest.raises(ValueError, match="more than twice the overlap of 50"):
        cut_into_segments(1000, 100, 50, 10)


def test_segments_of_long_speech_are_near_the_whole(save_model):
    """Convolutions see all they need; attention is only near, so it is left out."""
    teacher = build_teacher(f"transformers/{save_model('Hubert', folder='cut')}", 0)
    teacher._normalize = False
    waveform = 0.1 * torch.randn(50000)
    whole = teacher.embed_batch([waveform])[0]
    teacher.segment_s, teacher.overlap_s = 1.0, 0.2
    cut = teacher.embed_batch([waveform])[0]
    assert cut.shape == whole.shape
    with_norm = build_teacher(
        f"transformers/{save_model('Hubert', feat_extract_norm='layer')}", 0
    )
    whole = with_norm.embed_batch([waveform])[0]
    with_norm.segment_s, with_norm.overlap_s = 1.0, 0.2
    cut = with_norm.embed_batch([waveform])[0]
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)


def test_long_speech_in_batches(save_model):
    """Segments of one utterance share batches with others, and with each other."""
    path = save_model("WavLM", feat_extract_norm="layer")
    waveforms = [0.1 * torch.randn(n) for n in (50000, 7000, 33000)]
    alone, together = (
        build_teacher(f"transformers/{path}", 1, batch_s=s) for s in (0.0, 5.0)
    )
    for teacher in (alone, together):
        teacher.segment_s, teacher.overlap_s = 1.0, 0.2
    expected = [alone.embed_batch([waveform])[0] for waveform in waveforms]
    for actual, one in zip(together.embed_batch(waveforms), expected):
        torch.testing.assert_close(actual, one, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(save_model, speech, dtype):
    """Near float32, float32 outside, and another teacher to a quantizer."""
    path = save_model("Hubert", feat_extract_norm="layer")
    exact = build_teacher(f"transformers/{path}", 1)
    half = build_teacher(f"transformers/{path}", 1, dtype=dtype)
    assert half.id == f"{exact.id},dtype={dtype}"
    expected, actual = exact.embed(*speech)[0], half.embed(*speech)[0]
    assert actual.dtype == torch.float32 and actual.isfinite().all()
    error = (actual - expected).norm() / expected.norm()
    assert 0 < error < 0.03
