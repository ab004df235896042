"""`model: mvq`: an ESPnet model whose encoder also learns from teachers."""

import contextlib
import dataclasses
import inspect
import math
from typing import Any, Dict, Optional, Tuple, Type

import torch
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_mvq.frame_timing.front_ends import student_frame_grid
from espnet_mvq.plugin.codebook_target import CodebookTarget
from espnet_mvq.plugin.config import (
    CODEBOOKS,
    DATA_NAME,
    TEACHER_LOSS_NAME,
    MVQConfig,
    parse_targets,
    parse_weighting,
)
from espnet_mvq.plugin.embedding_target import EmbeddingTarget
from espnet_mvq.plugin.layer_hook import EncoderTap
from espnet_mvq.plugin.target import Target
from espnet_mvq.plugin.time_warp import (
    TimeWarpListener,
    WarpedTime,
    refuse_warp_inside,
)
from espnet_mvq.plugin.utterance_weighting import Balance


class MVQ(torch.nn.ModuleDict):
    """What the plugin adds to a model: targets by name.

    All its parameters are the model's under the one prefix `mvq.`.

    Attributes:
        num_updates: Batches trained on so far. A float: ESPnet averages checkpoints,
            and would leave an integer as it is in the last of them.
    """

    def __init__(self, targets: Dict[str, Target]):
        super().__init__(targets)
        self.register_buffer("num_updates", torch.zeros(()))

    def _apply(self, *args: Any, **kwargs: Any) -> "MVQ":
        """Move or convert all but the type of the count: bfloat16 ends at 256."""
        count = self.num_updates
        super()._apply(*args, **kwargs)
        self.num_updates = count.to(self.num_updates.device)
        return self

    def begin_batch(self) -> int:
        """Return the updates made so far; count this one if the model is in training.

        Before the first one the targets start.
        """
        update = int(self.num_updates)
        if self.training:
            if update == 0:
                for target in self.values():
                    target.start()
            self.num_updates += 1
        return update

    def weights(self, update: int) -> Dict[str, float]:
        """Return the weight of each target after so many updates.

        In evaluation schedules do not count.
        """
        if not self.training:
            return {name: target.config.weight for name, target in self.items()}
        return {n: target.schedule.weight_at(update) for n, target in self.items()}


def build_mvq(
    configs: Dict[str, MVQConfig],
    taps: Dict[str, EncoderTap],
    model: torch.nn.Module,
) -> MVQ:
    """Build the plugin's part of a model without touching the random state.

    So the student's own initial weights and dropout are those of the baseline.
    """
    with torch.random.fork_rng(devices=[]):
        targets = {}
        for name, config in configs.items():
            grid = student_frame_grid(
                model.frontend,
                model.encoder,
                config.student_frame_shift_samples,
                config.student_frame_offset_samples,
                config.layer,
                getattr(model, "preencoder", None),
            )
            channels = taps[name].num_channels
            kind = CodebookTarget if config.loss == CODEBOOKS else EmbeddingTarget
            targets[name] = kind(name, config, grid, channels)
        return MVQ(targets)


class MVQMixin:
    """Adds the MVQ loss to the forward of an ESPnet model.

    The loss is added to the model's own only on batches that have codebook indexes, or
    whatever else a target needs; else, or with weight 0, loss and gradients are those
    of the model without the plugin, bit for bit.
    """

    def __init__(self, *args: Any, mvq_conf: Optional[dict] = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        configs = parse_targets(mvq_conf or {})
        # Not submodules: taps have no parameters and must leave no trace in them.
        self._mvq_taps = {
            name: EncoderTap(self.encoder, config.layer, config.level == "utterance")
            for name, config in configs.items()
        }
        refuse_warp_inside(self.encoder)
        self._mvq_time = TimeWarpListener(self.specaug, self.frontend)
        self.mvq = build_mvq(configs, self._mvq_taps, self)
        self._mvq_balance = Balance(self, parse_weighting(mvq_conf or {}))

    def forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **kwargs: Any
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], torch.Tensor]:
        """Compute the model's loss and add the MVQ loss.

        Args:
            speech: (B, S), (B, S, 1) or features (B, T, F).
            speech_lengths: (B,).
            **kwargs: The rest of the batch; of these `codebook_indexes`, int64,
                (B, T_teacher, N), and `codebook_indexes_lengths`, (B,), are ours, and
                so are those of other targets, and `teacher_loss`, (B, 1).

        Returns:
            Loss, statistics and weight as of ESPnet's models.
        """
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "the MVQ loss does not work in torch's DataParallel, whose copies of a "
                "model share what listens to its layers: train several GPUs with "
                "--multiprocessing_distributed true"
            )
        data = {
            name: (kwargs.pop(name, None), kwargs.pop(f"{name}_lengths", None))
            for name in (*self.mvq, TEACHER_LOSS_NAME)
        }
        teacher_losses = data.pop(TEACHER_LOSS_NAME)[0]
        if teacher_losses is not None:
            teacher_losses = teacher_losses.reshape(-1)
        heard = speech, speech_lengths
        if speech.dim() == 3 and speech.shape[2] == 1:
            # Waveforms as ESPnet's s2t preprocessors leave them
            heard = speech.squeeze(2), speech_lengths
        update = self.mvq.begin_batch()
        weights = self.mvq.weights(update)
        # Before the weighing, which asks who has a teacher's data
        data = {
            name: self.mvq[name].completed(values, heard, weights[name])
            for name, values in data.items()
        }
        there = {name: self.mvq[name].is_there(data[name], heard) for name in self.mvq}
        with_teacher = torch.stack([there[n] & (weights[n] > 0) for n in there]).any(0)
        with contextlib.ExitStack() as stack:
            for tap in self._mvq_taps.values():
                stack.enter_context(tap.listening())
            stack.enter_context(self._mvq_time.listening())
            stack.enter_context(
                self._mvq_balance.weighing(kwargs, with_teacher, update, teacher_losses)
            )
            loss, stats, weight = super().forward(speech, speech_lengths, **kwargs)
        stats = self._mvq_balance.completed(stats, loss.device)
        utterance_weights = self._mvq_balance.take()
        warp = self._mvq_time.take()
        # DDP wants a gradient for every parameter in every step.
        loss = loss + 0.0 * sum(p.sum() for p in self.mvq.parameters())
        # Under autocast the task's loss may be in half precision; ours is not, and
        # statistics are to be of one type on every batch and rank.
        precise = torch.promote_types(loss.dtype, torch.float32)
        total = loss.new_zeros((), dtype=precise)
        for name, target_weight in weights.items():
            target_loss, target_stats = self._target_loss(
                name,
                data[name],
                heard,
                warp,
                utterance_weights,
                bool(there[name].any()),
                torch.is_grad_enabled() and target_weight > 0,
            )
            if target_loss is not None and target_weight > 0:
                loss = loss.to(precise) + target_weight * target_loss
                total = total + target_weight * target_loss.detach()
            stats = {**stats, **self._named(name, target_stats)}
        if len(self.mvq) > 1:
            stats["loss_mvq"] = total if bool(with_teacher.any()) else total * math.nan
        stats.update(self._mvq_balance.stats(utterance_weights, loss.device))
        stats["loss"] = loss.detach().to(precise)
        return force_gatherable((loss, stats, weight), loss.device)

    def _target_loss(
        self,
        name: str,
        data: Any,
        speech: Tuple[torch.Tensor, torch.Tensor],
        warp: Optional[WarpedTime],
        utterance_weights: Optional[torch.Tensor],
        is_there: bool,
        with_gradient: bool,
    ) -> Tuple[Optional[torch.Tensor], Dict[str, torch.Tensor]]:
        """Compute loss and statistics of one target; no loss if there is nothing."""
        target, (frames, lengths) = self.mvq[name], self._mvq_taps[name].take()
        if frames is None or not is_there:
            return None, target.nan_stats(speech[0].device)
        with torch.set_grad_enabled(with_gradient):
            return target(frames, lengths, data, speech, warp, utterance_weights)

    def _named(
        self, name: str, stats: Dict[str, torch.Tensor]
    ) -> Dict[str, torch.Tensor]:
        """Name statistics after their target where there are several."""
        if len(self.mvq) == 1:
            return stats
        tag = name.removeprefix(DATA_NAME)
        tag = tag if tag.startswith("_") else "_" + name
        return {f"{key}{tag}": value for key, value in stats.items()}


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
        default={**dataclasses.asdict(MVQConfig()), "weighting": {}},
    )
    model = type(name, (MVQMixin, base), {"__module__": __name__})
    model.__signature__ = signature.replace(
        parameters=[*signature.parameters.values(), options]
    )
    return model
