"""Weights of each utterance in the task's loss and in the distillation loss."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Dict, Mapping, Optional, Tuple, Type, Union

import torch

from espnet_mvq.options import Ranges, check_options, check_ranges, is_of_type

# Shares of the training set whose loss lies below the threshold
PERCENTILES = {"p25": 0.25, "median": 0.5, "p75": 0.75}
THRESHOLDS = ("mean", *PERCENTILES)
# Limit of a loss's distance from the threshold, in standard deviations
MAX_DISTANCE = 1e4
# Limit of the inner exponent: its exponential is finite, that of its negative is 0
MAX_EXPONENT = 80.0


@dataclass(frozen=True)
class Weighting:
    """Weights of an utterance's two losses: 1 - alpha for the task's, alpha for KD's.

    The loss of a batch is the mean over its utterances i of
    (1 - alpha_i) L_task,i + alpha_i L_KD,i.

    Attributes:
        type: Name in yaml.
        needs_teacher_loss: Whether `alphas` needs the teacher's task losses.
        needs_task_loss: Whether `alphas` needs the student's task losses.
        ranges: Smallest and largest values of the options.
    """

    type: ClassVar[str] = ""
    needs_teacher_loss: ClassVar[bool] = False
    needs_task_loss: ClassVar[bool] = False
    ranges: ClassVar[Ranges] = {}

    @classmethod
    def from_dict(cls, conf: Mapping[str, Any]) -> "Weighting":
        """Build from yaml.

        Args:
            conf: `type`, a key of `WEIGHTINGS`, and any of that type's attributes.

        Returns:
            The weighting of that type.

        Raises:
            ValueError: If the type or an option is unknown, or a value is out of range.

        Example:
            >>> Weighting.from_dict({"type": "fixed", "alpha": 0.3}).alpha
            0.3
        """
        types = [name for name, kind in WEIGHTINGS.items() if issubclass(kind, cls)]
        if not isinstance(conf, Mapping):
            raise ValueError(
                f"weighting: got {conf!r}, expected options with a type, one of "
                f"{', '.join(types)}, as {{type: {types[0]}}}"
            )
        options = {"type": cls.type, **conf}
        kind = options.pop("type")
        if kind not in types:
            raise ValueError(
                f"weighting: got type {kind!r}, expected one of {', '.join(types)}"
            )
        check_options(f"weighting {kind}", WEIGHTINGS[kind], options)
        return WEIGHTINGS[kind](**options)

    def __post_init__(self) -> None:
        check_ranges(f"weighting {self.type}", self, self.ranges)

    def alphas(
        self,
        update: int,
        teacher_losses: Optional[torch.Tensor] = None,
        task_losses_per_label: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Return the share of each utterance's KD loss, without gradient.

        Args:
            update: Updates already made, 0 in the first one.
            teacher_losses: The teacher's task loss of each utterance, in nats per
                label, float, (B,), infinite for an utterance it cannot align. Only
                AdaKD needs it.
            task_losses_per_label: The student's task loss, likewise. Only the focal
                weighting needs it. The others use either one for the batch size.

        Returns:
            Shares in [0, 1], float32, (B,).

        Raises:
            ValueError: If losses are missing, of different sizes, or the teacher's NaN.
        """
        losses = {"teacher": teacher_losses, "task": task_losses_per_label}
        losses = {k: v.detach().float() for k, v in losses.items() if v is not None}
        if self.needs_teacher_loss and "teacher" not in losses:
            others = [n for n, w in WEIGHTINGS.items() if not w.needs_teacher_loss]
            raise ValueError(
                f"weighting {self.type}: got no teacher losses, expected the teacher's "
                "task loss of each utterance; give those of a teacher that was trained "
                f"for the task, or use type: {' or '.join(others)}"
            )
        if not losses or (self.needs_task_loss and "task" not in losses):
            raise ValueError(
                f"weighting {self.type}: got no task losses, expected the student's "
                "loss per label of each utterance"
            )
        shapes = {name: tuple(values.shape) for name, values in losses.items()}
        first, *others = shapes.values()
        if len(first) != 1 or any(other != first for other in others):
            raise ValueError(
                f"weighting {self.type}: got losses of the shapes {shapes}, expected "
                "(batch size,)"
            )
        if self.needs_teacher_loss and losses["teacher"].isnan().any():
            missing = losses["teacher"].isnan().nonzero().flatten().tolist()
            raise ValueError(
                f"weighting {self.type}: got NaN as teacher loss of {len(missing)} of "
                f"{len(losses['teacher'])} utterances, the first at {missing[0]} of "
                "the batch; expected a loss of each"
            )
        return self._alphas(update, **losses)

    def _alphas(self, update: int, **losses: torch.Tensor) -> torch.Tensor:
        """Return the shares; losses, float32, (B,), by "teacher" and "task"."""
        raise NotImplementedError


@dataclass(frozen=True)
class AdaKD(Weighting):
    """More of the KD loss for utterances that are easy for the teacher.

    alpha_i = exp(-1 / sqrt(d)) with d = exp(-k (x_i - t)), which is
    exp(-exp(k (x_i - t) / 2)), a Gompertz curve: 1 for the easiest utterances, 1/e at
    the threshold t, 0 for the hardest; with k = 0, 1/e for all. k falls linearly in
    training, so that the shares become equal; with k below 0 hard utterances get more.

    Source: Ganguly et al. 2024 (arXiv:2405.08019). Differs: x_i is the teacher's loss
    per label, not of the utterance, and x_i - t is divided by the standard deviation
    of the training set, so that k has no unit. The paper's k depends on the model; that
    k starts large and falls is the paper's, the values given here are our own.

    Attributes:
        k_start: Slope in the first update, -1000 to 1000.
        k_end: Slope from update `k_updates` on, -1000 to 1000.
        k_updates: Updates in which k goes from k_start to k_end. None: k = k_start.
        threshold: t, in nats per label; or mean, p25, median or p75 of the training
            set's teacher losses, which `resolved` replaces by a number.
        scale: Divisor of x_i - t, in nats per label. None: `resolved` fills it in.

    Example:
        >>> weighting = AdaKD(k_start=4.0, threshold=1.0, scale=0.5)
        >>> shares = weighting.alphas(0, torch.tensor([0.0, 1.0, 2.0]))
        >>> [round(float(share), 3) for share in shares]
        [0.982, 0.368, 0.0]
    """

    type: ClassVar[str] = "adakd"
    needs_teacher_loss: ClassVar[bool] = True
    ranges: ClassVar[Ranges] = {
        "k_start": (-1000, 1000),
        "k_end": (-1000, 1000),
        "k_updates": (1, math.inf),
    }

    k_start: float = 2.0
    k_end: float = 0.0
    k_updates: Optional[int] = None
    threshold: Union[str, float] = "mean"
    scale: Optional[float] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_threshold(self.threshold)
        if self.k_updates is None and self.k_end != 0:
            raise ValueError(
                f"weighting {self.type}: got k_end {self.k_end!r} without k_updates, "
                "expected both or none"
            )
        if self.scale is not None and not self.scale > 0:
            raise ValueError(
                f"weighting {self.type}: scale: got {self.scale!r}, expected a number "
                "above 0"
            )

    def k_at(self, update: int) -> float:
        """Return k after a number of updates."""
        if self.k_updates is None:
            return self.k_start
        share = min(1.0, update / self.k_updates)
        return (1 - share) * self.k_start + share * self.k_end

    def resolved(self, losses: torch.Tensor) -> "AdaKD":
        """Return a copy with numbers for `threshold` and `scale`.

        Args:
            losses: Teacher losses of the training set, as for `resolve_threshold`.
        """
        threshold, scale = resolve_threshold(losses, self.threshold)
        scale = scale if self.scale is None else self.scale
        return dataclasses.replace(self, threshold=threshold, scale=scale)

    def _alphas(self, update: int, **losses: torch.Tensor) -> torch.Tensor:
        if isinstance(self.threshold, str) or self.scale is None:
            raise ValueError(
                f"weighting {self.type}: got threshold {self.threshold!r} and scale "
                f"{self.scale!r}, expected numbers; take them from the training set's "
                "teacher losses before training"
            )
        distance = (losses["teacher"] - self.threshold) / self.scale
        distance = distance.clamp(-MAX_DISTANCE, MAX_DISTANCE)
        exponent = self.k_at(update) * distance / 2
        return torch.exp(-torch.exp(exponent.clamp(max=MAX_EXPONENT)))


@dataclass(frozen=True)
class Fixed(Weighting):
    """The same share for every utterance: ordinary distillation.

    Attributes:
        alpha: Share of the KD loss, 0 to 1.
    """

    type: ClassVar[str] = "fixed"
    ranges: ClassVar[Ranges] = {"alpha": (0, 1)}

    alpha: float = 0.5

    def _alphas(self, update: int, **losses: torch.Tensor) -> torch.Tensor:
        return torch.full_like(next(iter(losses.values())), self.alpha)


@dataclass(frozen=True)
class Warmup(Weighting):
    """The same share for every utterance, rising with the updates.

    alpha rises linearly from 0, in update 0, to its full value in update
    `warmup_updates`; the task's share falls from 1 to 1 - alpha. The first updates are
    the least stable ones: the student starts as without a teacher, with the learning
    rate that was tuned for it. (A `WeightSchedule` changes the KD loss alone.)

    Attributes:
        alpha: Full share of the KD loss, 0 to 1.
        warmup_updates: Updates until the full share. The default is ours.
    """

    type: ClassVar[str] = "warmup"
    ranges: ClassVar[Ranges] = {
        "alpha": (0, 1),
        "warmup_updates": (1, math.inf),
    }

    alpha: float = 0.5
    warmup_updates: int = 10_000

    def _alphas(self, update: int, **losses: torch.Tensor) -> torch.Tensor:
        share = min(1.0, update / self.warmup_updates)
        return torch.full_like(next(iter(losses.values())), share * self.alpha)


@dataclass(frozen=True)
class Focal(Weighting):
    """Less of the task's loss for utterances that the student already knows.

    1 - alpha_i = (1 - p_i)^gamma, p_i = exp(-the student's task loss per label). No
    teacher loss is needed.

    Source: Lin et al. 2017 (arXiv:1708.02002), section 3.2, there for single labels.
    Differs: p_i is the geometric mean over the utterance's labels, and the factor
    carries no gradient.

    Attributes:
        gamma: Exponent, at least 0; with 0 alpha is 0. The paper uses 2.
    """

    type: ClassVar[str] = "focal"
    needs_task_loss: ClassVar[bool] = True
    ranges: ClassVar[Ranges] = {"gamma": (0, 1000)}

    gamma: float = 2.0

    def _alphas(self, update: int, **losses: torch.Tensor) -> torch.Tensor:
        # NaN keeps its weight, so that ESPnet sees it as without the plugin.
        losses = losses["task"].nan_to_num(nan=math.inf, posinf=math.inf).clamp(min=0)
        return 1 - (-torch.expm1(-losses)) ** self.gamma


WEIGHTINGS: Dict[str, Type[Weighting]] = {
    weighting.type: weighting for weighting in (AdaKD, Fixed, Warmup, Focal)
}


def build_weighting(conf: Mapping[str, Any]) -> Weighting:
    """Build a weighting from yaml: see `Weighting.from_dict`."""
    return Weighting.from_dict(conf)


def resolve_threshold(
    losses: torch.Tensor, threshold: Union[str, float] = "mean"
) -> Tuple[float, float]:
    """Compute AdaKD's threshold and scale from the training set.

    Args:
        losses: The teacher's task loss of each utterance, in nats per label, float,
            (U,). Infinite ones, of utterances it cannot align, are left out.
        threshold: mean, p25, median or p75; or the number itself, in nats per label.

    Returns:
        Threshold and scale, in nats per label. The scale is the standard deviation; 1
        if that is 0, as the losses then say nothing about utterances.

    Raises:
        ValueError: If losses are NaN, none is finite, or the threshold is unknown.

    Example:
        >>> resolve_threshold(torch.tensor([1.0, 2.0, 6.0, 3.0]), "median")[0]
        2.5
    """
    _check_threshold(threshold)
    losses = torch.as_tensor(losses).detach().flatten().double()
    num_nan = int(losses.isnan().sum())
    finite = losses[losses.isfinite()]
    if num_nan:
        raise ValueError(
            f"weighting adakd: got NaN as {num_nan} of {len(losses)} teacher losses"
        )
    if not len(finite):
        raise ValueError(
            f"weighting adakd: got {len(losses)} teacher losses, none of them finite"
        )
    mean = float(finite.mean())
    scale = float((finite - mean).square().mean().sqrt())
    if scale <= 1e-6 * max(1.0, abs(mean)):  # rounding
        scale = 1.0
    if threshold == "mean":
        return mean, scale
    if isinstance(threshold, str):
        return _percentile(finite, PERCENTILES[threshold]), scale
    return float(threshold), scale


def _percentile(values: torch.Tensor, share: float) -> float:
    """Interpolate linearly; `torch.quantile` refuses more than 16 million values."""
    values = values.sort().values
    position = share * (len(values) - 1)
    low, high = math.floor(position), math.ceil(position)
    return float(values[low] + (position - low) * (values[high] - values[low]))


def _check_threshold(threshold: Union[str, float]) -> None:
    """Refuse a threshold that is no finite number and no name of one."""
    if not is_of_type(threshold, float) and threshold not in THRESHOLDS:
        raise ValueError(
            f"weighting adakd: threshold: got {threshold!r}, expected a number or one "
            f"of {', '.join(THRESHOLDS)}"
        )
