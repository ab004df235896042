"""`model: mvq`: an ESPnet model whose encoder also learns from teachers."""

import contextlib
import dataclasses
import inspect
import math
from typing import Any, Dict, Optional, Tuple, Type

import torch
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_mvq.distillation import EMBEDDING_LOSSES
from espnet_mvq.frame_timing.front_ends import student_frame_grid
from espnet_mvq.plugin.codebook_target import CodebookTarget
from espnet_mvq.plugin.config import (
    CODEBOOKS,
    DATA_NAME,
    POSTERIORS,
    MVQConfig,
    parse_mask,
    parse_targets,
    parse_weighting,
)
from espnet_mvq.plugin.embedding_target import EmbeddingTarget
from espnet_mvq.plugin.layer_hook import LayerHook
from espnet_mvq.plugin.masking import MaskHook
from espnet_mvq.plugin.padded import Padded
from espnet_mvq.plugin.posterior_target import PosteriorTarget
from espnet_mvq.plugin.target import Target
from espnet_mvq.plugin.time_warp import TimeWarpHook, refuse_warp_inside
from espnet_mvq.plugin.utterance_weighting import UtteranceWeighting

# Class of the targets of each loss
TARGETS: Dict[str, Type[Target]] = {
    CODEBOOKS: CodebookTarget,
    **dict.fromkeys(EMBEDDING_LOSSES, EmbeddingTarget),
    POSTERIORS: PosteriorTarget,
}


class MVQ(torch.nn.ModuleDict):
    """Part of a model that the plugin adds: targets by name.

    All its parameters are under the one prefix `mvq.` of the model.

    Attributes:
        num_updates: Batches trained on so far. A float: ESPnet averages checkpoints,
            and would leave an integer as it is in the last of them.
        mask_vector: Features of masked frames, (F,); None without a mask.
    """

    def __init__(self, targets: Dict[str, Target], num_features: Optional[int] = None):
        super().__init__(targets)
        self.register_buffer("num_updates", torch.zeros(()))
        self.mask_vector: Optional[torch.nn.Parameter] = None
        if num_features is not None:
            self.mask_vector = torch.nn.Parameter(torch.rand(num_features))

    def _apply(self, *args: Any, **kwargs: Any) -> "MVQ":
        """Move or convert all but the type of the count: bfloat16 counts to 256."""
        count = self.num_updates
        super()._apply(*args, **kwargs)
        self.num_updates = count.to(self.num_updates.device)
        return self

    def begin_batch(self) -> int:
        """Return the updates made so far; count this one if the model is in training.

        Targets are started before the first one.
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

        In evaluation schedules are not applied.
        """
        if not self.training:
            return {name: target.config.weight for name, target in self.items()}
        return {n: target.schedule.weight_at(update) for n, target in self.items()}

    def read_batch(
        self,
        batch: Dict[str, Any],
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        weights: Dict[str, float],
    ) -> Dict[str, Optional[Padded]]:
        """Take the data of each target out of a batch: see `Target.teacher_data`."""
        if speech.dim() == 3 and speech.shape[2] == 1:
            # Waveforms as returned by ESPnet's s2t preprocessors
            speech = speech.squeeze(2)
        teacher_data = {}
        for name, target in self.items():
            values, lengths = batch.pop(name, None), batch.pop(f"{name}_lengths", None)
            teacher_data[name] = target.teacher_data(
                None if values is None else Padded(values, lengths),
                Padded(speech, speech_lengths),
                weights[name],
            )
        return teacher_data

    def named_stats(
        self, name: str, stats: Dict[str, torch.Tensor]
    ) -> Dict[str, torch.Tensor]:
        """Name statistics after their target where there are several."""
        if len(self) == 1:
            return stats
        tag = name.removeprefix(DATA_NAME)
        tag = tag if tag.startswith("_") else "_" + name
        return {f"{key}{tag}": value for key, value in stats.items()}


def build_mvq(
    configs: Dict[str, MVQConfig],
    layer_hooks: Dict[str, LayerHook],
    model: torch.nn.Module,
    num_features: Optional[int] = None,
) -> MVQ:
    """Build the plugin's part of a model without changing the random state.

    So the student's initial weights and dropout are those of the baseline.

    Args:
        configs: Options of each target.
        layer_hooks: Hook of the student layer of each target.
        model: ESPnet model.
        num_features: Features of a frame if they are masked.
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
            channels = layer_hooks[name].num_channels
            targets[name] = TARGETS[config.loss](name, config, grid, channels)
            targets[name].connect(model)
        return MVQ(targets, num_features)


class MVQMixin:
    """Adds the MVQ loss to the forward of an ESPnet model.

    The loss is added only on batches that have teacher data, as codebook indexes. On
    others, or with weight 0, loss and gradients are those of the model without the
    plugin, bit for bit.
    """

    def __init__(self, *args: Any, mvq_conf: Optional[dict] = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        configs = parse_targets(mvq_conf or {})
        # Not submodules: hooks have no parameters and are not in the state dict.
        self._mvq_layer_hooks = {
            name: LayerHook(self.encoder, config.layer, config.level == "utterance")
            for name, config in configs.items()
        }
        refuse_warp_inside(self.encoder)
        self._mvq_time_warp_hook = TimeWarpHook(self.specaug, self.frontend)
        layers = {name: config.layer for name, config in configs.items()}
        self._mvq_mask_hook = MaskHook(parse_mask(mvq_conf or {}), self, layers)
        self.mvq = build_mvq(
            configs, self._mvq_layer_hooks, self, self._mvq_mask_hook.num_features
        )
        self._mvq_weighting = UtteranceWeighting(self, parse_weighting(mvq_conf or {}))

    def forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **batch: Any
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], torch.Tensor]:
        """Compute the model's loss and add the MVQ loss.

        Args:
            speech: (B, S), (B, S, 1) or features (B, T, F).
            speech_lengths: (B,).
            **batch: The rest of the batch. The plugin takes out of it
                `codebook_indexes`, int64, (B, T_teacher, N), and
                `codebook_indexes_lengths`, (B,), those of other targets, and the data
                of `UtteranceWeighting`.

        Returns:
            Loss, statistics and weight as of ESPnet's models.
        """
        self._refuse_data_parallel()
        update = self.mvq.begin_batch()
        weights = self.mvq.weights(update)
        teacher_data = self.mvq.read_batch(batch, speech, speech_lengths, weights)
        has_teacher = torch.zeros_like(speech_lengths, dtype=torch.bool)
        for name, data in teacher_data.items():
            if data is not None and weights[name] > 0:
                has_teacher = has_teacher | (data.lengths > 0)

        with contextlib.ExitStack() as stack:
            layer_outputs = {
                name: stack.enter_context(hook.record())
                for name, hook in self._mvq_layer_hooks.items()
            }
            warp = stack.enter_context(self._mvq_time_warp_hook.record())
            mask = stack.enter_context(self._mvq_mask_hook.record(self.mvq.mask_vector))
            utterance_weights = stack.enter_context(
                self._mvq_weighting.weight_task(batch, has_teacher, update)
            )
            loss, task_stats, weight = super().forward(speech, speech_lengths, **batch)

        # DDP needs a gradient for every parameter in every step.
        loss = loss + 0.0 * sum(p.sum() for p in self.mvq.parameters())
        # Under autocast the task's loss may be in half precision. The MVQ loss is not,
        # and statistics must have the same type on every batch and rank.
        dtype = torch.promote_types(loss.dtype, torch.float32)
        total = loss.new_zeros((), dtype=dtype)
        stats = dict(task_stats)
        for name, target in self.mvq.items():
            frames, data = layer_outputs[name].frames, teacher_data[name]
            if frames is None or data is None or not bool((data.lengths > 0).any()):
                target_stats = target.nan_stats(speech.device)
            else:
                with_gradient = torch.is_grad_enabled() and weights[name] > 0
                with torch.set_grad_enabled(with_gradient):
                    target_loss, target_stats = target(
                        frames,
                        data,
                        warp,
                        utterance_weights.values,
                        self._mvq_mask_hook.frame_weights(
                            mask, name, frames.values.shape[1]
                        ),
                    )
                if weights[name] > 0:
                    loss = loss.to(dtype) + weights[name] * target_loss
                    total = total + weights[name] * target_loss.detach()
            stats.update(self.mvq.named_stats(name, target_stats))
        if len(self.mvq) > 1:
            stats["loss_mvq"] = total if bool(has_teacher.any()) else total * math.nan
        stats.update(
            self._mvq_weighting.stats(task_stats, utterance_weights, loss.device)
        )
        stats["loss"] = loss.detach().to(dtype)
        return force_gatherable((loss, stats, weight), loss.device)

    def collect_feats(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: Optional[torch.Tensor] = None,
        text_lengths: Optional[torch.Tensor] = None,
        **batch: Any,
    ) -> Dict[str, torch.Tensor]:
        """Extract the features for ESPnet's statistics, of speech without text, too."""
        return super().collect_feats(
            speech, speech_lengths, text, text_lengths, **batch
        )

    def _refuse_data_parallel(self) -> None:
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "the MVQ loss does not work in torch's DataParallel, whose copies of a "
                "model share the hooks of its layers: train several GPUs with "
                "--multiprocessing_distributed true"
            )


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
        default={**dataclasses.asdict(MVQConfig()), "weighting": {}, "mask": None},
    )
    model = type(name, (MVQMixin, base), {"__module__": __name__})
    parameters = [*signature.parameters.values(), options]
    # The base may end with **kwargs.
    parameters.sort(key=lambda parameter: parameter.kind)
    model.__signature__ = signature.replace(parameters=parameters)
    return model
