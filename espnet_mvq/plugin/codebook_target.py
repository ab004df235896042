"""Codebook indexes as target: the MVQ loss."""

import logging
import math
from typing import Dict, List, Optional, Tuple

import torch

from espnet_mvq.distillation import (
    HEADS,
    IGNORE,
    CodebookLossOutput,
    FrameGrid,
    codebook_loss,
    soft_target_table,
    unit_variance_codebooks,
)
from espnet_mvq.plugin.config import MVQConfig
from espnet_mvq.plugin.target import Target
from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.linear_discriminant import linear_discriminant

# Relative reconstruction error of a quantizer whose provenance has none
_ERROR = 0.3


class CodebookTarget(Target):
    """A student layer predicts codebook indexes; all options are in `MVQConfig`.

    With N codebooks, B utterances and r teacher frames per student frame, on average
    and at least 1, the loss is the cross entropy in nats, summed over all predicted
    indexes, over r N B. In evaluation the statistics include the accuracy of each
    codebook.
    """

    STATS = ("loss_mvq", "acc_mvq", "mvq_nats_below_chance", "mvq_frames")

    def __init__(
        self, name: str, config: MVQConfig, student: FrameGrid, input_size: int
    ):
        super().__init__(name, config, student, input_size)
        num_targets = self.aligner.num_slots * config.num_codebooks
        options = {}
        if config.head == "joint":
            options["hidden_size"] = config.head_hidden_size
        head_class = HEADS[config.head]
        self.head = head_class(input_size, num_targets, config.codebook_size, **options)
        if config.head_init == "quantizer" and self.aligner.num_slots != 1:
            raise ValueError(
                f"{name}: mvq_conf head_init: got quantizer where a student frame "
                f"predicts {self.aligner.num_slots} teacher frames, expected one: the "
                "student layer has to be the teacher's"
            )
        self._tables: Optional[Dict[str, torch.Tensor]] = None
        self._num_updates = 0
        self._mean_nats = 0.0

    def start(self) -> None:
        """See `Target.start`; initialises the head as set by `head_init`.

        Not done when the model is built: decoding needs no quantizer.

        Raises:
            ValueError: If the student layer is not the teacher's.
        """
        if self.config.head_init != "quantizer":
            return
        quantizer = load_quantizer(self.name, self.config)
        channels = self.head.weight.shape[1]
        if quantizer.dim != channels:
            raise ValueError(
                f"{self.name}: mvq_conf head_init: got a quantizer of {quantizer.dim} "
                f"dimensions and a student layer of {channels} channels, expected as "
                "many: the student layer has to be the teacher's"
            )
        error = quantizer.provenance.get("relative_reconstruction_error", _ERROR)
        weight, bias = linear_discriminant(
            quantizer.codebooks.double(), error, quantizer.mean, quantizer.scale
        )
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def _teacher_values(self, values: torch.Tensor) -> torch.Tensor:
        check_indexes(self.name, self.config, values)
        return values

    def _loss(
        self,
        frames: torch.Tensor,
        values: torch.Tensor,
        known: torch.Tensor,
        frame_weights: Optional[torch.Tensor],
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        output = codebook_loss(
            self.head,
            frames,
            values.masked_fill(~known.unsqueeze(3), IGNORE).flatten(2),
            label_smoothing=self.config.label_smoothing,
            embedding_weight=self.config.embedding_weight if self.training else 0.0,
            frame_weights=frame_weights,
            **self._load_tables(frames.device),
        )
        per_frame = self.aligner.targets_per_frame * self.config.num_codebooks
        loss = output.loss / (per_frame * frames.shape[0])
        count = output.num_targets
        stats = self.nan_stats(frames.device)
        if count > 0:
            nats = math.log(self.config.codebook_size) - output.cross_entropy / count
            values = loss.detach(), output.num_correct / count, nats, output.num_frames
            stats.update((k, v.float()) for k, v in zip(self.STATS, values))
            if self.training:
                self._warn_at_chance(float(nats))
            else:
                stats.update(self._accuracy_by_codebook(output))
        return loss, stats

    def nan_stats(self, device: torch.device) -> Dict[str, torch.Tensor]:
        """See `Target.nan_stats`."""
        stats = super().nan_stats(device)
        if not self.training:
            for name in self._accuracy_names():
                stats[name] = torch.full((), math.nan, device=device)
        return stats

    def _accuracy_by_codebook(
        self, output: CodebookLossOutput
    ) -> Dict[str, torch.Tensor]:
        """Return the accuracy of each codebook, over all slots."""
        shape = (self.aligner.num_slots, self.config.num_codebooks)
        correct = output.correct_by_target.reshape(shape).sum(0)
        accuracy = correct / output.count_by_target.reshape(shape).sum(0)
        return dict(zip(self._accuracy_names(), accuracy))

    def _accuracy_names(self) -> List[str]:
        return [f"acc_mvq_cb{n + 1}" for n in range(self.config.num_codebooks)]

    def _load_tables(self, device: torch.device) -> Dict[str, torch.Tensor]:
        """Read the tables for soft targets and the embedding error in the first update.

        Not done when the model is built: decoding needs no quantizer.
        """
        config = self.config
        if config.quantizer is None or not self.training:
            return {}
        if self._tables is None:
            quantizer = load_quantizer(self.name, config)
            self._tables = {}
            if config.soft_target_temperature > 0:
                self._tables["soft_targets"] = soft_target_table(
                    quantizer.codebooks, config.soft_target_temperature
                )
            if config.embedding_weight > 0:
                self._tables["codebooks"] = unit_variance_codebooks(quantizer.codebooks)
        self._tables = {k: v.to(device) for k, v in self._tables.items()}
        return self._tables

    def _warn_at_chance(self, nats: float) -> None:
        """Warn once if the head is still at chance after many updates."""
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


def check_indexes(name: str, config: MVQConfig, indexes: torch.Tensor) -> None:
    """Refuse indexes that do not fit the model.

    Args:
        name: Name of the indexes among the data.
        config: Options with the expected number and size of codebooks.
        indexes: int64, (B, T_teacher, N).

    Raises:
        ValueError: If the number of codebooks or an index is not as configured.
    """
    if indexes.dim() != 3 or indexes.shape[2] != config.num_codebooks:
        raise ValueError(
            f"{name}: got shape {tuple(indexes.shape)}, expected (batch, frames, "
            f"{config.num_codebooks}) as mvq_conf num_codebooks says"
        )
    if indexes.numel() and int(indexes.max()) >= config.codebook_size:
        raise ValueError(
            f"{name}: got an index {int(indexes.max())}, expected less than mvq_conf "
            f"codebook_size {config.codebook_size}"
        )


def load_quantizer(name: str, config: MVQConfig) -> Quantizer:
    """Read the quantizer of codebook indexes.

    Raises:
        ValueError: If the indexes were made with another quantizer.
    """
    quantizer = Quantizer.load(config.quantizer)
    if quantizer.id != config.quantizer_id:
        raise ValueError(
            f"mvq_conf quantizer {config.quantizer}: got id {quantizer.id}, expected "
            f"{config.quantizer_id} as {name} were made with"
        )
    return quantizer
