"""`model: mvq`: an ESPnet model whose encoder also predicts codebook indexes."""

import dataclasses
import inspect
import logging
import math
from typing import Any, Dict, Optional, Tuple, Type

import torch
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_mvq.distillation import (
    FrameAligner,
    FrameGrid,
    IndependentHead,
    codebook_loss,
)
from espnet_mvq.plugin.config import MVQConfig
from espnet_mvq.plugin.geometry import student_frame_grid
from espnet_mvq.plugin.tap import EncoderTap

STATS = ("loss_mvq", "acc_mvq", "mvq_nats_below_chance", "mvq_frames")


class MVQ(torch.nn.Module):
    """What the plugin adds to a model: head, alignment, loss and its statistics.

    All its parameters are the model's under the one prefix `mvq.`.

    Args:
        config: Options.
        student: Frames of the student layer.
        input_size: Channels of the student layer.
    """

    def __init__(self, config: MVQConfig, student: FrameGrid, input_size: int):
        super().__init__()
        self.config = config
        teacher = FrameGrid(config.frame_shift_samples, config.frame_offset_samples)
        delay_samples = config.delay_s * config.sample_rate
        self.aligner = FrameAligner(student, teacher, delay_samples)
        num_targets = self.aligner.num_slots * config.num_codebooks
        self.head = IndependentHead(input_size, num_targets, config.codebook_size)
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
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """Compute the loss of a batch.

        Args:
            frames: Student layer, float, (B, T, C).
            lengths: Student frames of each utterance, int64, (B,).
            indexes: Codebook indexes, int64, (B, T_teacher, N).
            index_lengths: Teacher frames of each utterance, int64, (B,); 0 = none.
            speech_samples: Samples of each utterance, int64, (B,); None: not known.

        Returns:
            Loss: cross entropy in nats, averaged over codebooks, summed over frames,
            divided by the batch size; and the statistics.

        Raises:
            ValueError: If the number of codebooks or an index is not as configured.
        """
        self._check_indexes(indexes, index_lengths)
        if speech_samples is not None:
            index_lengths = self._drop_mismatches(index_lengths, speech_samples)
        targets = self.aligner.targets(indexes, index_lengths, lengths, frames.shape[1])
        output = codebook_loss(self.head, frames, targets)
        loss = output.loss / (self.head.num_targets * frames.shape[0])
        count = output.num_targets
        stats = nan_stats(frames.device)
        if count > 0:
            nats = math.log(self.config.codebook_size) - output.loss.detach() / count
            values = loss.detach(), output.num_correct / count, nats, output.num_frames
            stats = {k: v.float() for k, v in zip(STATS, values)}
            if self.training:
                self._warn_at_chance(float(nats))
        return loss, stats

    def _check_indexes(self, indexes: torch.Tensor, lengths: torch.Tensor) -> None:
        """Refuse indexes that are not what the head was built for."""
        if indexes.dim() != 3 or indexes.shape[2] != self.config.num_codebooks:
            raise ValueError(
                f"codebook_indexes: got shape {tuple(indexes.shape)}, expected (batch, "
                f"frames, {self.config.num_codebooks}) as mvq_conf num_codebooks says"
            )
        if indexes.numel() and int(indexes.max()) >= self.config.codebook_size:
            raise ValueError(
                f"codebook_indexes: got an index {int(indexes.max())}, expected less "
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
                    f"{self._num_mismatches} utterances so far have codebook indexes "
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
                    f"after {self._num_updates} updates the MVQ head is still at "
                    f"chance (ln {self.config.codebook_size} nats per index): it has "
                    "learned nothing. Likely causes: indexes of other audio, a teacher "
                    "foreign to this language or domain, too small a learning rate"
                )


def nan_stats(device: torch.device) -> Dict[str, torch.Tensor]:
    """Return the statistics of a batch without indexes: the same keys, all NaN."""
    return {name: torch.full((), math.nan, device=device) for name in STATS}


def build_mvq(
    config: MVQConfig,
    frontend: Optional[torch.nn.Module],
    encoder: torch.nn.Module,
) -> MVQ:
    """Build the plugin's part of a model without touching the random state.

    So the student's own initial weights and dropout are those of the baseline.
    """
    grid = student_frame_grid(
        frontend,
        encoder,
        config.student_frame_shift_samples,
        config.student_frame_offset_samples,
    )
    with torch.random.fork_rng(devices=[]):
        return MVQ(config, grid, encoder.output_size())


class MVQMixin:
    """Adds the MVQ loss to the forward of an ESPnet model.

    The loss is added to the model's own only on batches that have
    `codebook_indexes`; else, or with weight 0, loss and gradients are those of the
    model without the plugin, bit for bit.
    """

    def __init__(self, *args: Any, mvq_conf: Optional[dict] = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config = MVQConfig.from_dict(mvq_conf or {})
        # Not a submodule: a tap has no parameters and must leave no trace in them.
        self._mvq_tap = EncoderTap(self.encoder, config.layer)
        self.mvq = build_mvq(config, self.frontend, self.encoder)

    def forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **kwargs: Any
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], torch.Tensor]:
        """Compute the model's loss and add the MVQ loss.

        Args:
            speech: (B, S) or features (B, T, F).
            speech_lengths: (B,).
            **kwargs: The rest of the batch; of these `codebook_indexes`, int64,
                (B, T_teacher, N), and `codebook_indexes_lengths`, (B,), are ours.

        Returns:
            Loss, statistics and weight as of ESPnet's models.
        """
        indexes = kwargs.pop("codebook_indexes", None)
        index_lengths = kwargs.pop("codebook_indexes_lengths", None)
        with self._mvq_tap.listening() as tap:
            loss, stats, weight = super().forward(speech, speech_lengths, **kwargs)
            frames, lengths = tap.take()
        # DDP wants a gradient for every parameter in every step.
        unused = 0.0 * sum(p.sum() for p in self.mvq.parameters())
        mvq_stats = nan_stats(loss.device)
        loss = loss + unused
        if indexes is not None and frames is not None and index_lengths.any():
            samples = speech_lengths if speech.dim() == 2 else None
            config = self.mvq.config
            with torch.set_grad_enabled(torch.is_grad_enabled() and config.weight > 0):
                mvq_loss, mvq_stats = self.mvq(
                    frames, lengths, indexes, index_lengths, samples
                )
            if config.weight > 0:
                loss = loss + config.weight * mvq_loss
        stats = {**stats, "loss": loss.detach(), **mvq_stats}
        return force_gatherable((loss, stats, weight), loss.device)


def make_mvq_model(base: Type[torch.nn.Module], name: str) -> Type[torch.nn.Module]:
    """Derive the class of an ESPnet model with the MVQ loss.

    Args:
        base: Class of an ESPnet model that has `frontend` and `encoder`.
        name: Name of the new class.

    Returns:
        The class. Its signature is the base's and `mvq_conf`, so ESPnet's
        `--print_config` shows the options of both.
    """
    signature = inspect.signature(base)
    options = inspect.Parameter(
        "mvq_conf",
        inspect.Parameter.KEYWORD_ONLY,
        default=dataclasses.asdict(MVQConfig()),
    )
    model = type(name, (MVQMixin, base), {"__module__": __name__})
    model.__signature__ = signature.replace(
        parameters=[*signature.parameters.values(), options]
    )
    return model
