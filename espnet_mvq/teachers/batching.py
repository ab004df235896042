"""Which waveforms run together, and how long ones are cut: numbers only, no audio."""

from dataclasses import dataclass
from typing import List, Optional, Sequence


def group_by_length(
    lengths: Sequence[int], max_samples: int, equal_lengths: bool
) -> List[List[int]]:
    """Group waveforms of like length into batches, the longest first.

    Args:
        lengths: Samples of each waveform; 0: not known, such run alone.
        max_samples: Samples of a batch at most, padding counted; a waveform longer
            than that runs alone.
        equal_lengths: A batch holds waveforms of one length only.

    Returns:
        Batches of positions in `lengths`; the same lengths give the same batches.
    """
    batches: List[List[int]] = []
    longest = 0  # of the batch that is being filled
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
    """A piece of a long waveform, and the frames that are taken from it.

    Attributes:
        start: First sample, a multiple of the frame shift.
        stop: Sample after the last.
        first_frame: First frame taken, counted from the start of the waveform.
        end_frame: Frame after the last; None: all to the end.
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
    """Cut a waveform into segments that overlap, so that each frame has context.

    Two neighbours share `2 * overlap_samples` or up to a frame shift more: the first
    half of them counts with the left one, the second half with the right one.

    Args:
        num_samples: Length of the waveform.
        segment_samples: Longest segment; a waveform that is not longer stays whole.
        overlap_samples: Context that every frame has at least, except at both ends.
        frame_shift_samples: Samples between two frames.

    Returns:
        The segments, in order.

    Raises:
        ValueError: If the overlap leaves nothing of a segment.
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
