"""What all targets of the distillation loss in an ESPnet model have in common."""

import logging
import math
from typing import Any, Dict, Optional, Tuple

import torch

from espnet_mvq.distillation import FrameAligner, FrameGrid, mean_over_time
from espnet_mvq.plugin.config import MVQConfig
from espnet_mvq.plugin.time_warp import WarpedTime

_ONE_FRAME = FrameGrid(shift_samples=1, offset_samples=0)


class Target(torch.nn.Module):
    """What a teacher has, in one student layer: alignment, loss, statistics.

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

    def start(self) -> None:
        """Get ready for the first update of a training; not called when it goes on."""

    def completed(
        self, data: Any, speech: Tuple[torch.Tensor, torch.Tensor], weight: float
    ) -> Any:
        """Return the data of a batch; computed, if they are not loaded.

        Args:
            data: Those of this name, (B, T_teacher, X), and their lengths, (B,), 0 =
                none; (None, None) where nothing is loaded.
            speech: As for `forward`.
            weight: Of the loss in this update.

        Returns:
            Values and lengths likewise, for `is_there` and `forward`.
        """
        return data

    def is_there(
        self, data: Any, speech: Tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Say which utterances of a batch have something to predict.

        Args:
            data: As for `forward`.
            speech: As for `forward`.

        Returns:
            Bool, (B,).
        """
        values, lengths = data
        if values is None:
            return torch.zeros_like(speech[1], dtype=torch.bool)
        return self._drop_mismatches(lengths, speech) > 0

    def forward(
        self,
        frames: torch.Tensor,
        lengths: torch.Tensor,
        data: Any,
        speech: Tuple[torch.Tensor, torch.Tensor],
        warp: Optional[WarpedTime] = None,
        utterance_weights: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Compute the loss of a batch.

        Args:
            frames: Student layer, float, (B, T, C).
            lengths: Student frames of each utterance, int64, (B,).
            data: As `completed` returns them.
            speech: The batch's (B, S), or features (B, T, F), and its lengths, (B,).
            warp: What SpecAug's time warp did to the batch; None: nothing.
            utterance_weights: Of each utterance in the loss, (B,). None: 1.

        Returns:
            Loss: summed over all that is predicted, divided by what a student frame
            predicts on average (`targets_per_frame` of the aligner, times the
            codebooks of a teacher frame) and by the batch size. So it is the mean loss
            of a prediction, summed over student frames, at any ratio of the rates. And
            the statistics, of which only that of the loss knows weights.

        Raises:
            ValueError: If the data are not as configured.
        """
        values, value_lengths = self._teacher_values(data, speech)
        if self.pooled:
            frames, lengths = mean_over_time(frames, lengths)
            warp = None
        mismatched = self._mismatched(value_lengths, speech)
        value_lengths = value_lengths.masked_fill(mismatched, 0)
        shown = None
        if warp is not None:
            shown = warp(self.aligner.slot_centres(frames.shape[1]).to(frames.device))
        values, known = self.aligner.gather(
            values, value_lengths, lengths, frames.shape[1], shown
        )
        return self._loss(frames, values, known, utterance_weights)

    def _teacher_values(
        self, data: Any, speech: Tuple[torch.Tensor, torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return what the teacher has, (B, T_teacher, X), and its lengths, (B,)."""
        raise NotImplementedError

    def _loss(
        self,
        frames: torch.Tensor,
        values: torch.Tensor,
        known: torch.Tensor,
        utterance_weights: Optional[torch.Tensor],
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Compute loss and statistics.

        Args:
            frames: Student layer, float, (B, T, C).
            values: What each of its slots predicts, (B, T, num_slots, X).
            known: Whether there is something to predict, bool, (B, T, num_slots).
            utterance_weights: (B,) or None.
        """
        raise NotImplementedError

    def nan_stats(self, device: torch.device) -> Dict[str, torch.Tensor]:
        """Return the statistics of a batch without data: the same keys, all NaN."""
        return {name: torch.full((), math.nan, device=device) for name in self.STATS}

    def _mismatched(
        self, lengths: torch.Tensor, speech: Tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Say of which utterances the data do not fit the speech, bool, (B,)."""
        # Features of the speech do not tell its length in samples.
        if self.pooled or speech[0].dim() != 2:
            return torch.zeros_like(lengths, dtype=torch.bool)
        expected = speech[1] / self.config.frame_shift_samples
        more = lengths - expected
        wrong = more > self.config.tolerance_frames
        if not self.config.speech_is_padded:
            wrong = wrong | (-more > self.config.tolerance_frames)
        return wrong & (lengths > 0)

    def _drop_mismatches(
        self, lengths: torch.Tensor, speech: Tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Set to 0 the lengths of what does not fit its speech, and warn."""
        wrong = self._mismatched(lengths, speech)
        if wrong.any():
            before, self._num_mismatches = self._num_mismatches, int(
                self._num_mismatches + wrong.sum()
            )
            if len(str(before)) != len(str(self._num_mismatches)) or before == 0:
                worst = int(wrong.nonzero()[0])
                expected = float(speech[1][worst] / self.config.frame_shift_samples)
                logging.warning(
                    f"{self._num_mismatches} utterances so far have {self.name} "
                    f"that do not fit their speech, last {int(lengths[worst])} "
                    f"frames where {expected:.1f} were expected; they "
                    "are left out of its loss. Was the audio changed after the "
                    "extraction (speed perturbation, data_aug_effects)?"
                )
        return lengths.masked_fill(wrong, 0)
