"""`model: mvq`: an ESPnet model whose encoder also predicts codebook indexes."""

import contextlib
import dataclasses
import inspect
from typing import Any, Dict, Optional, Tuple, Type

import torch
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_mvq.plugin.config import DATA_NAME, MVQConfig, parse_targets
from espnet_mvq.plugin.geometry import student_frame_grid
from espnet_mvq.plugin.tap import EncoderTap
from espnet_mvq.plugin.target import MVQTarget
from espnet_mvq.plugin.time_warp import TimeWarpListener


class MVQ(torch.nn.ModuleDict):
    """What the plugin adds to a model, by name of the indexes.

    All its parameters are the model's under the one prefix `mvq.`.

    Attributes:
        num_updates: Batches trained on so far. A float: ESPnet averages checkpoints,
            and would leave an integer as it is in the last of them.
    """

    def __init__(self, targets: Dict[str, MVQTarget]):
        super().__init__(targets)
        self.register_buffer("num_updates", torch.zeros(()))

    def weights(self) -> Dict[str, float]:
        """Return the weight of each target in this update, and count it."""
        if not self.training:
            return {name: target.config.weight for name, target in self.items()}
        update = int(self.num_updates)
        self.num_updates += 1
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
            targets[name] = MVQTarget(name, config, grid, channels)
        return MVQ(targets)


class MVQMixin:
    """Adds the MVQ loss to the forward of an ESPnet model.

    The loss is added to the model's own only on batches that have codebook indexes;
    else, or with weight 0, loss and gradients are those of the model without the
    plugin, bit for bit.
    """

    def __init__(self, *args: Any, mvq_conf: Optional[dict] = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        configs = parse_targets(mvq_conf or {})
        # Not submodules: taps have no parameters and must leave no trace in them.
        self._mvq_taps = {
            name: EncoderTap(self.encoder, config.layer)
            for name, config in configs.items()
        }
        self._mvq_time = TimeWarpListener(self.specaug, self.frontend)
        self.mvq = build_mvq(configs, self._mvq_taps, self)

    def forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor, **kwargs: Any
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], torch.Tensor]:
        """Compute the model's loss and add the MVQ loss.

        Args:
            speech: (B, S) or features (B, T, F).
            speech_lengths: (B,).
            **kwargs: The rest of the batch; of these `codebook_indexes`, int64,
                (B, T_teacher, N), and `codebook_indexes_lengths`, (B,), are ours, and
                so are those of other targets.

        Returns:
            Loss, statistics and weight as of ESPnet's models.
        """
        indexes = {
            name: (kwargs.pop(name, None), kwargs.pop(f"{name}_lengths", None))
            for name in self.mvq
        }
        with contextlib.ExitStack() as stack:
            for tap in self._mvq_taps.values():
                stack.enter_context(tap.listening())
            stack.enter_context(self._mvq_time.listening())
            loss, stats, weight = super().forward(speech, speech_lengths, **kwargs)
        warp = self._mvq_time.take()
        # DDP wants a gradient for every parameter in every step.
        loss = loss + 0.0 * sum(p.sum() for p in self.mvq.parameters())
        samples = speech_lengths if speech.dim() == 2 else None
        total = None
        for name, target_weight in self.mvq.weights().items():
            target = self.mvq[name]
            frames, lengths = self._mvq_taps[name].take()
            target_stats = target.nan_stats(loss.device)
            there, there_lengths = indexes[name]
            if there is not None and frames is not None and there_lengths.any():
                training = torch.is_grad_enabled() and target_weight > 0
                with torch.set_grad_enabled(training):
                    mvq_loss, target_stats = target(
                        frames, lengths, there, there_lengths, samples, warp
                    )
                if target_weight > 0:
                    loss = loss + target_weight * mvq_loss
                    total = target_weight * mvq_loss.detach() + (total or 0)
            stats = {**stats, **self._named(name, target_stats)}
        if len(self.mvq) > 1:
            stats["loss_mvq"] = (
                loss.new_tensor(float("nan")) if total is None else total
            )
        stats["loss"] = loss.detach()
        return force_gatherable((loss, stats, weight), loss.device)

    def _named(
        self, name: str, stats: Dict[str, torch.Tensor]
    ) -> Dict[str, torch.Tensor]:
        """Name statistics after their target where there are several."""
        if len(self.mvq) == 1:
            return stats
        tag = name.removeprefix(DATA_NAME) or "_" + DATA_NAME
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
        default=dataclasses.asdict(MVQConfig()),
    )
    model = type(name, (MVQMixin, base), {"__module__": __name__})
    model.__signature__ = signature.replace(
        parameters=[*signature.parameters.values(), options]
    )
    return model
