"""Base class of the targets that a student layer learns from a teacher."""

import logging
import math
from typing import Dict, Optional, Tuple

import torch

from espnet_mvq.distillation import FrameAligner, FrameGrid, mean_over_time
from espnet_mvq.plugin.config import MVQConfig
from espnet_mvq.plugin.padded import Padded
from espnet_mvq.plugin.time_warp import WarpedTime

_ONE_FRAME = FrameGrid(shift_samples=1, offset_samples=0)


class Target(torch.nn.Module):
    """Teacher data that a student layer predicts: alignment, loss, statistics.

    Args:
        name: Name among the data.
        config: Options.
        student: Frames of the student layer.
        input_size: Channels of the student layer.
    """

    STATS: Tuple[str, ...]  # names of the statistics, that of the loss first

    def __init__(
        self, name: str, config: MVQConfig, student: FrameGrid, input_size: int
    ):
        super().__init__()
        self.name = name
        self.config = config
        self.schedule = config.weight_schedule()
        self.pooled = config.level == "utterance"
        if self.pooled:
            self.aligner = FrameAligner(_ONE_FRAME, _ONE_FRAME)
        else:
            self.aligner = FrameAligner(
                student,
                FrameGrid(config.frame_shift_samples, config.frame_offset_samples),
                config.delay_s * config.sample_rate,
            )
        self._num_mismatches = 0

    def connect(self, model: torch.nn.Module) -> None:
        """Take what the target uses of the student, once it is built.

        Args:
            model: The student.
        """

    def start(self) -> None:
        """Prepare the first update of a training; not called when it is resumed."""

    def teacher_data(
        self, loaded: Optional[Padded], speech: Padded, weight: float
    ) -> Optional[Padded]:
        """Return the teacher's data of a batch.

        Args:
            loaded: Data of this name, (B, T_teacher, X); None if the batch has none.
            speech: (B, S), or features (B, T, F).
            weight: Weight of the loss in this update.

        Returns:
            Data with length 0 for utterances that have none, or whose data do not fit
            their speech; None if the batch has none.
        """
        if loaded is None:
            return None
        return Padded(loaded.values, self._drop_mismatches(loaded.lengths, speech))

    def forward(
        self,
        student: Padded,
        teacher: Padded,
        warp: Optional[WarpedTime] = None,
        utterance_weights: Optional[torch.Tensor] = None,
        frame_weights: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Compute the loss of a batch.

        Args:
            student: Frames of the student layer, float, (B, T, C).
            teacher: As returned by `teacher_data`.
            warp: SpecAug's time warp of the batch; None: there is none.
            utterance_weights: Weight of each utterance in the loss, (B,). None: 1.
            frame_weights: Weight of each student frame in the loss, (B, T). Frames of
                weight 0 are left out, of the statistics too. None: 1. Targets of
                whole utterances do not use it.

        Returns:
            Loss: summed over all predictions, divided by the predictions of a student
            frame on average (`targets_per_frame` of the aligner, times the codebooks
            of a teacher frame) and by the batch size. So it is the mean loss of a
            prediction, summed over student frames, at any ratio of the rates. And the
            statistics; of these only the loss is weighted.

        Raises:
            ValueError: If the data are not as configured.
        """
        values = self._teacher_values(teacher.values)
        frames, lengths = student.values, student.lengths
        source_samples = None
        if self.pooled:
            frames, lengths = mean_over_time(frames, lengths)
        elif warp is not None and warp.source_frames is not None:
            centres = self.aligner.slot_centres(frames.shape[1])
            source_samples = warp(centres.to(frames.device))
        values, known = self.aligner.gather(
            values, teacher.lengths, lengths, frames.shape[1], source_samples
        )
        weights = utterance_weights
        if weights is not None:
            weights = weights.unsqueeze(1).expand(frames.shape[:2])
        if frame_weights is not None and not self.pooled:
            known = known & (frame_weights > 0).unsqueeze(2)
            weights = frame_weights if weights is None else weights * frame_weights
        return self._loss(frames, values, known, weights)

    def nan_stats(self, device: torch.device) -> Dict[str, torch.Tensor]:
        """Return the statistics of a batch without data: the same keys, all NaN."""
        return {name: torch.full((), math.nan, device=device) for name in self.STATS}

    def _teacher_values(self, values: torch.Tensor) -> torch.Tensor:
        """Check the data and return the values to predict, (B, T_teacher, X)."""
        raise NotImplementedError

    def _loss(
        self,
        frames: torch.Tensor,
        values: torch.Tensor,
        known: torch.Tensor,
        frame_weights: Optional[torch.Tensor],
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Compute loss and statistics.

        Args:
            frames: Student layer, float, (B, T, C).
            values: Values to predict from each slot, (B, T, num_slots, X).
            known: Mask of slots that have a value, bool, (B, T, num_slots).
            frame_weights: (B, T) or None: 1.
        """
        raise NotImplementedError

    def _mean_loss(
        self, total: torch.Tensor, chosen: torch.Tensor, *means: torch.Tensor
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Return loss and statistics of targets with one prediction for each slot.

        Args:
            total: Loss, summed over the predictions.
            chosen: Mask of the student frames that have a value, bool, (B, T).
            means: Statistics between those of the loss and of the number of frames.
        """
        loss = total / (self.aligner.targets_per_frame * chosen.shape[0])
        stats = self.nan_stats(chosen.device)
        if chosen.any():
            values = (loss.detach(), *means, chosen.sum())
            stats.update((k, v.float()) for k, v in zip(self.STATS, values))
        return loss, stats

    def _drop_mismatches(self, lengths: torch.Tensor, speech: Padded) -> torch.Tensor:
        """Set the length of data that do not fit their speech to 0, and warn."""
        # The length of features is not in samples.
        if self.pooled or speech.values.dim() != 2:
            return lengths
        expected = speech.lengths / self.config.frame_shift_samples
        excess = lengths - expected
        mismatched = excess > self.config.tolerance_frames
        if not self.config.speech_is_padded:
            mismatched = mismatched | (-excess > self.config.tolerance_frames)
        mismatched = mismatched & (lengths > 0)
        if mismatched.any():
            first = int(mismatched.nonzero()[0])
            self._count_mismatches(
                int(mismatched.sum()), int(lengths[first]), float(expected[first])
            )
        return lengths.masked_fill(mismatched, 0)

    def _count_mismatches(self, number: int, length: int, expected: float) -> None:
        """Warn of the first mismatches, and whenever their number has a new digit."""
        before, self._num_mismatches = self._num_mismatches, (
            self._num_mismatches + number
        )
        if before == 0 or len(str(before)) != len(str(self._num_mismatches)):
            logging.warning(
                f"{self._num_mismatches} utterances so far have {self.name} that do "
                f"not fit their speech, last {length} frames where {expected:.1f} were "
                "expected; they are left out of its loss. Was the audio changed after "
                "the extraction (speed perturbation, data_aug_effects)?"
            )


def weights_of_slots(
    frame_weights: Optional[torch.Tensor], known: torch.Tensor
) -> Optional[torch.Tensor]:
    """Return the weights of the slots that have a value; None without weights.

    Args:
        frame_weights: Weight of each student frame, (B, T), or None: 1.
        known: Mask of slots that have a value, bool, (B, T, num_slots).
    """
    if frame_weights is None:
        return None
    return frame_weights.unsqueeze(2).expand_as(known)[known]
