"""Grouping of waveforms by length, and cutting of long ones; lengths only, no audio."""

from dataclasses import dataclass
from typing import List, Optional, Sequence


def group_by_length(
    lengths: Sequence[int], max_samples: int, equal_lengths: bool
) -> List[List[int]]:
    """Group waveforms of similar length into batches, the longest first.

    Args:
        lengths: Samples of each waveform; 0: not known, such a waveform runs alone.
        max_samples: Maximum samples of a batch, padding included; a longer waveform
            runs alone.
        equal_lengths: Waveforms of different lengths do not share a batch.

    Returns:
        Batches of positions in `lengths`; the same lengths give the same batches.
    """
    batches: List[List[int]] = []
    longest = 0  # of the last batch
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[position]
        fits = (
            batches
            and length > 0
            and (len(batches[-1]) + 1) * longest <= max_samples
            and (length == longest or not equal_lengths)
        )
        if fits:
            batches[-1].append(position)
        else:
            batches.append([position])
            longest = length
    return batches


@dataclass(frozen=True)
class Segment:
    """A piece of a long waveform, and the frames of it that are used.

    Attributes:
        start: First sample, a multiple of the frame shift.
        stop: Sample after the last.
        first_frame: First frame used, counted from the start of the waveform.
        end_frame: Frame after the last one used; None: all to the end.
    """

    start: int
    stop: int
    first_frame: int
    end_frame: Optional[int]


def cut_into_segments(
    num_samples: int,
    segment_samples: int,
    overlap_samples: int,
    frame_shift_samples: int,
) -> List[Segment]:
    """Cut a waveform into overlapping segments, so that each frame has context.

    Neighbours share `2 * overlap_samples`, or up to one frame shift more. Frames in the
    first half of the overlap are taken from the left segment, those in the second half
    from the right one.

    Args:
        num_samples: Length of the waveform.
        segment_samples: Maximum length of a segment; shorter waveforms stay whole.
        overlap_samples: Minimum context of every frame, except at both ends.
        frame_shift_samples: Samples between two frames.

    Returns:
        The segments, in order.

    Raises:
        ValueError: If the overlap fills the whole segment.
    """
    shift = frame_shift_samples
    context = -(-overlap_samples // shift)  # frames
    step = segment_samples // shift - 2 * context
    if step < 1:
        raise ValueError(
            f"got segments of {segment_samples} samples, expected more than twice the "
            f"overlap of {overlap_samples}, by a frame of {shift} at least"
        )
    segments: List[Segment] = []
    start, first_frame = 0, 0
    while num_samples - start * shift > segment_samples:
        end_frame = start + step + context
        stop = start * shift + segment_samples
        segments.append(Segment(start * shift, stop, first_frame, end_frame))
        start, first_frame = start + step, end_frame
    segments.append(Segment(start * shift, num_samples, first_frame, None))
    return segments
