"""One target of the MVQ loss in an ESPnet model."""

import logging
import math
from typing import Dict, Optional, Tuple

import torch

from espnet_mvq.distillation import (
    HEADS,
    CodebookLossOutput,
    FrameAligner,
    FrameGrid,
    codebook_loss,
    soft_target_table,
    unit_variance_codebooks,
)
from espnet_mvq.plugin.config import MVQConfig
from espnet_mvq.plugin.time_warp import WarpedTime
from espnet_mvq.quantization import Quantizer

STATS = ("loss_mvq", "acc_mvq", "mvq_nats_below_chance", "mvq_frames")


class MVQTarget(torch.nn.Module):
    """One teacher's indexes in one student layer: head, alignment, loss, statistics.

    Args:
        name: Name of the indexes among the data.
        config: Options.
        student: Frames of the student layer.
        input_size: Channels of the student layer.
    """

    def __init__(
        self, name: str, config: MVQConfig, student: FrameGrid, input_size: int
    ):
        super().__init__()
        self.name = name
        self.config = config
        self.schedule = config.weight_schedule()
        teacher = FrameGrid(config.frame_shift_samples, config.frame_offset_samples)
        delay_samples = config.delay_s * config.sample_rate
        self.aligner = FrameAligner(student, teacher, delay_samples)
        num_targets = self.aligner.num_slots * config.num_codebooks
        options = {}
        if config.head == "joint":
            options["hidden_size"] = config.head_hidden_size
        head_class = HEADS[config.head]
        self.head = head_class(input_size, num_targets, config.codebook_size, **options)
        self._tables: Optional[Dict[str, torch.Tensor]] = None
        self._num_mismatches = 0
        self._num_updates = 0
        self._mean_nats = 0.0

    def forward(
        self,
        frames: torch.Tensor,
        lengths: torch.Tensor,
        indexes: torch.Tensor,
        index_lengths: torch.Tensor,
        speech_samples: Optional[torch.Tensor],
        warp: Optional[WarpedTime] = None,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Compute the loss of a batch.

        Args:
            frames: Student layer, float, (B, T, C).
            lengths: Student frames of each utterance, int64, (B,).
            indexes: Codebook indexes, int64, (B, T_teacher, N).
            index_lengths: Teacher frames of each utterance, int64, (B,); 0 = none.
            speech_samples: Samples of each utterance, int64, (B,); None: not known.
            warp: What SpecAug's time warp did to the batch; None: nothing.

        Returns:
            Loss: cross entropy in nats, averaged over codebooks, summed over frames,
            divided by the batch size; and the statistics. In evaluation these have
            the accuracy of each codebook too.

        Raises:
            ValueError: If the number of codebooks or an index is not as configured.
        """
        self._check_indexes(indexes, index_lengths)
        if speech_samples is not None:
            index_lengths = self._drop_mismatches(index_lengths, speech_samples)
        shown = None
        if warp is not None:
            shown = warp(self.aligner.slot_centres(frames.shape[1]).to(frames.device))
        targets = self.aligner.targets(
            indexes, index_lengths, lengths, frames.shape[1], shown
        )
        output = codebook_loss(
            self.head,
            frames,
            targets,
            label_smoothing=self.config.label_smoothing,
            embedding_weight=self.config.embedding_weight if self.training else 0.0,
            **self._load_tables(frames.device),
        )
        loss = output.loss / (self.head.num_targets * frames.shape[0])
        count = output.num_targets
        stats = self.nan_stats(frames.device)
        if count > 0:
            nats = math.log(self.config.codebook_size) - output.cross_entropy / count
            values = loss.detach(), output.num_correct / count, nats, output.num_frames
            stats.update((k, v.float()) for k, v in zip(STATS, values))
            if self.training:
                self._warn_at_chance(float(nats))
            else:
                stats.update(self._accuracy_by_codebook(output))
        return loss, stats

    def nan_stats(self, device: torch.device) -> Dict[str, torch.Tensor]:
        """Return the statistics of a batch without indexes: the same keys, all NaN."""
        names = [*STATS]
        if not self.training:
            names += [f"acc_mvq_cb{n + 1}" for n in range(self.config.num_codebooks)]
        return {name: torch.full((), math.nan, device=device) for name in names}

    def _accuracy_by_codebook(
        self, output: CodebookLossOutput
    ) -> Dict[str, torch.Tensor]:
        """Return the accuracy of each codebook, over all slots."""
        shape = (self.aligner.num_slots, self.config.num_codebooks)
        correct = output.correct_by_target.reshape(shape).sum(0)
        accuracy = correct / output.count_by_target.reshape(shape).sum(0)
        return {f"acc_mvq_cb{n + 1}": value for n, value in enumerate(accuracy)}

    def _load_tables(self, device: torch.device) -> Dict[str, torch.Tensor]:
        """Read what soft targets and the embedding error need, once, when they train.

        Not when the model is built: decoding needs no quantizer.
        """
        config = self.config
        if config.quantizer is None or not self.training:
            return {}
        if self._tables is None:
            quantizer = Quantizer.load(config.quantizer)
            if quantizer.id != config.quantizer_id:
                raise ValueError(
                    f"mvq_conf quantizer {config.quantizer}: got id {quantizer.id}, "
                    f"expected {config.quantizer_id} as {self.name} were made with"
                )
            self._tables = {}
            if config.soft_target_temperature > 0:
                self._tables["soft_targets"] = soft_target_table(
                    quantizer.codebooks, config.soft_target_temperature
                )
            if config.embedding_weight > 0:
                self._tables["codebooks"] = unit_variance_codebooks(quantizer.codebooks)
        self._tables = {k: v.to(device) for k, v in self._tables.items()}
        return self._tables

    def _check_indexes(self, indexes: torch.Tensor, lengths: torch.Tensor) -> None:
        """Refuse indexes that are not what the head was built for."""
        if indexes.dim() != 3 or indexes.shape[2] != self.config.num_codebooks:
            raise ValueError(
                f"{self.name}: got shape {tuple(indexes.shape)}, expected (batch, "
                f"frames, {self.config.num_codebooks}) as mvq_conf num_codebooks says"
            )
        if indexes.numel() and int(indexes.max()) >= self.config.codebook_size:
            raise ValueError(
                f"{self.name}: got an index {int(indexes.max())}, expected less "
                f"than mvq_conf codebook_size {self.config.codebook_size}"
            )

    def _drop_mismatches(
        self, index_lengths: torch.Tensor, speech_samples: torch.Tensor
    ) -> torch.Tensor:
        """Set to 0 the lengths of indexes that do not fit their speech."""
        expected = speech_samples / self.config.frame_shift_samples
        wrong = (index_lengths - expected).abs() > self.config.tolerance_frames
        wrong = wrong & (index_lengths > 0)
        if wrong.any():
            before, self._num_mismatches = self._num_mismatches, int(
                self._num_mismatches + wrong.sum()
            )
            if len(str(before)) != len(str(self._num_mismatches)) or before == 0:
                worst = int(wrong.nonzero()[0])
                logging.warning(
                    f"{self._num_mismatches} utterances so far have {self.name} "
                    f"that do not fit their speech, last {int(index_lengths[worst])} "
                    f"frames where {float(expected[worst]):.1f} were expected; they "
                    "are left out of the MVQ loss. Was the audio changed after the "
                    "extraction (speed perturbation, data_aug_effects)?"
                )
        return index_lengths.masked_fill(wrong, 0)

    def _warn_at_chance(self, nats: float) -> None:
        """Warn once if the head has not learned anything after many updates."""
        self._num_updates += 1
        self._mean_nats += 0.02 * (nats - self._mean_nats)
        if self._num_updates == self.config.chance_warning_updates:
            if self._mean_nats < 0.05:
                logging.warning(
                    f"after {self._num_updates} updates the head of {self.name} is "
                    f"still at chance (ln {self.config.codebook_size} nats per index): "
                    "it has learned nothing. Likely causes: indexes of other audio, a "
                    "teacher foreign to this language or domain, too small a learning "
                    "rate"
                )
