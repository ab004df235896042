"""Alignment of teacher frames and student frames by time."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Optional, Tuple

import torch

IGNORE = -1  # a missing target


@dataclass(frozen=True)
class FrameGrid:
    """Time grid of the frames of a model.

    Attributes:
        shift_samples: Samples between the centres of two frames.
        offset_samples: Centre of frame 0, in samples from the start of the speech.
    """

    shift_samples: float
    offset_samples: float

    def __post_init__(self) -> None:
        if not self.shift_samples > 0:
            raise ValueError(
                f"frame shift: got {self.shift_samples} samples, expected more than 0"
            )


class FrameAligner:
    """Assigns to each student frame the teacher frames whose centres fall into it.

    A student frame is the span of one student shift around its centre. It is divided
    into `num_slots` equal slots, as many as teacher frames can fall into it; each
    slot holds the teacher frame whose centre lies in it, if one does. So at any
    rational ratio of the rates every teacher frame is predicted once, always from
    the slot that fits its place within the student frame. A teacher slower than
    the student gives each student frame the teacher frame nearest to it.

    Args:
        student: Frames of the student layer.
        teacher: Frames of the teacher, at the same sample rate.
        delay_samples: The student frame centred at t predicts the teacher at
            t - delay_samples, which gives a streaming student time to read the speech.

    Attributes:
        num_slots: Slots of a student frame.
        targets_per_frame: Slots of a student frame that are filled, on average over
            long speech: the ratio of student and teacher shift, or 1 for a teacher
            that is not faster. A loss that is divided by it weighs a student frame
            the same at any ratio; between whole ratios some slots stay empty.

    Example:
        >>> aligner = FrameAligner(FrameGrid(640, 480), FrameGrid(320, 200))
        >>> aligner.num_slots, aligner.teacher_frames(2)[0].tolist()
        (2, [[0, 1], [2, 3]])
    """

    def __init__(
        self, student: FrameGrid, teacher: FrameGrid, delay_samples: float = 0
    ):
        self.teacher = teacher
        exact = [
            Fraction(value).limit_denominator(1000)
            for value in (
                student.shift_samples,
                student.offset_samples,
                teacher.shift_samples,
                teacher.offset_samples,
                delay_samples,
            )
        ]
        student_shift, student_offset, teacher_shift, teacher_offset, delay = exact
        self.num_slots = max(1, -(-student_shift // teacher_shift))
        self.targets_per_frame = float(max(1, student_shift / teacher_shift))
        slot = student_shift / self.num_slots
        # Centre of slot 0 of frame 0, relative to the centre of teacher frame 0
        start = student_offset - delay - student_shift / 2 + slot / 2 - teacher_offset
        # All times as integers in units of 1 / unit samples: no rounding can then
        # put a teacher frame into two slots or none.
        unit = math.lcm(*(value.denominator for value in (slot, start, teacher_shift)))
        self._unit = unit
        self._slot, self._start = int(slot * unit), int(start * unit)
        self._shift = int(teacher_shift * unit)

    def teacher_frames(self, num_frames: int) -> Tuple[torch.Tensor, torch.Tensor]:
        """Find the teacher frame of each slot.

        Args:
            num_frames: Student frames T.

        Returns:
            Teacher frames, int64, (T, num_slots), which may be negative or beyond the
            last frame; and a mask of those whose centres fall into their slots, bool,
            (T, num_slots).
        """
        slots = torch.arange(num_frames * self.num_slots)
        centres = self._start + slots * self._slot
        # Half-open slots [centre - slot/2, centre + slot/2): round half down.
        nearest = -torch.div(
            self._shift - 2 * centres, 2 * self._shift, rounding_mode="floor"
        )
        distance = nearest * self._shift - centres
        inside = (2 * distance >= -self._slot) & (2 * distance < self._slot)
        if self.num_slots == 1:
            # Equal rates or a slower teacher: the nearest frame is the right one.
            inside = torch.ones_like(inside)
        shape = (num_frames, self.num_slots)
        return nearest.reshape(shape), inside.reshape(shape)

    def gather(
        self,
        values: torch.Tensor,
        value_lengths: torch.Tensor,
        student_lengths: torch.Tensor,
        num_frames: int,
        source_samples: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Gather the values of the teacher frame of each slot.

        Args:
            values: Indexes or embeddings of teacher frames, (B, T_teacher, X), with any
                values in the padding.
            value_lengths: Teacher frames of each utterance, int64, (B,); 0 = none.
            student_lengths: Student frames of each utterance, int64, (B,).
            num_frames: Student frames T of the padded batch.
            source_samples: For features that were warped in time, the moment of the
                speech in samples at each of `slot_centres`, float,
                (B, T * num_slots). None: no warp.

        Returns:
            Values, (B, T, num_slots, X), and a mask of those that exist, bool,
            (B, T, num_slots); the others are arbitrary.
        """
        batch, num_values, width = values.shape
        if source_samples is None:
            frames, inside = self.teacher_frames(num_frames)
            frames, inside = frames.to(values.device), inside.to(values.device)
        else:
            frames, inside = self._frames_at(source_samples)
        known = inside & (frames >= 0)
        known = known & (frames < value_lengths.reshape(-1, 1, 1))
        steps = torch.arange(num_frames, device=values.device)
        known = known & (steps < student_lengths.reshape(-1, 1)).unsqueeze(2)
        if num_values == 0:
            return values.new_zeros((*known.shape, width)), known
        chosen = frames.clamp(0, num_values - 1)
        chosen = chosen.expand(batch, -1, -1).reshape(batch, -1, 1)
        gathered = values.gather(1, chosen.expand(-1, -1, width))
        return gathered.reshape(*known.shape, width), known

    def slot_centres(self, num_frames: int) -> torch.Tensor:
        """Return the time of the teacher that each slot predicts.

        Args:
            num_frames: Student frames T.

        Returns:
            Samples, float, (T * num_slots,), with the delay subtracted.
        """
        slots = torch.arange(num_frames * self.num_slots, dtype=torch.float64)
        centres = (self._start + slots * self._slot) / self._unit
        return (centres + self.teacher.offset_samples).float()

    def _frames_at(
        self, source_samples: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """As `teacher_frames`, for moments (B, T * num_slots): (B, T, num_slots)."""
        offset, shift = self.teacher.offset_samples, self.teacher.shift_samples
        # Half-open slots, as in `teacher_frames`: closed at both ends, two slots would
        # predict a teacher frame on the border between them.
        nearest = ((source_samples - offset) / shift - 0.5).ceil()
        distance = offset + nearest * shift - source_samples
        half_slot = self._slot / self._unit / 2
        inside = (distance >= -half_slot) & (distance < half_slot)
        if self.num_slots == 1 or self._slot == self._shift:
            # Slots as long as a teacher frame leave no gaps, rounding or not.
            inside = torch.ones_like(inside)
        shape = (len(source_samples), -1, self.num_slots)
        return nearest.long().reshape(shape), inside.reshape(shape)


def mean_over_time(
    frames: torch.Tensor, lengths: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Average the frames of each utterance, for targets of whole utterances.

    Args:
        frames: Float, (B, T, C), with any values in the padding.
        lengths: Frames of each utterance, int64, (B,).

    Returns:
        Means, float, (B, 1, C), zero for an utterance without frames; and their
        lengths, int64, (B,), 1 or 0.

    Source: one index per utterance as in DeCoR (Jiang et al. 2023, arXiv:2305.18441);
        the mean over time is ours.
    """
    steps = torch.arange(frames.shape[1], device=frames.device)
    padding = steps >= lengths.unsqueeze(1)
    # No product with a mask: padding may hold NaN.
    total = frames.masked_fill(padding.unsqueeze(2), 0).sum(1, keepdim=True)
    count = lengths.clamp(min=1).reshape(-1, 1, 1)
    return total / count, lengths.clamp(max=1)
