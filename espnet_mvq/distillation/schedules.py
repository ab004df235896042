"""Weight of the distillation loss over the course of training."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Mapping, Optional

from espnet_mvq.options import check_options, check_ranges


@dataclass(frozen=True)
class WeightSchedule:
    """A weight that rises, stays, falls and ends; each part can be left out.

    It rises linearly from 0 to `weight` over the first `warmup_updates` updates, falls
    linearly back to 0 from `decay_start_update` to `decay_end_update`, and is 0 from
    `stop_update` on. An update's number is that of the updates before it. The plugin
    counts batches, several of which make an optimizer step with ESPnet's `accum_grad`.

    Attributes:
        weight: The full weight, at least 0.
        warmup_updates: Updates until the full weight is reached; 0 = from the start.
        decay_start_update: Last update with the full weight. None: no decay.
        decay_end_update: First update with weight 0. None: no decay.
        stop_update: First update without the loss. None: never.

    Raises:
        ValueError: If a value is out of range, or a part ends before it begins.

    Example:
        >>> schedule = WeightSchedule.from_dict({"warmup_updates": 4}, weight=2.0)
        >>> [schedule.weight_at(update) for update in (0, 1, 4, 100)]
        [0.0, 0.5, 2.0, 2.0]
    """

    weight: float = 1.0
    warmup_updates: int = 0
    decay_start_update: Optional[int] = None
    decay_end_update: Optional[int] = None
    stop_update: Optional[int] = None

    @classmethod
    def from_dict(
        cls, conf: Optional[Mapping[str, Any]] = None, weight: float = 1.0
    ) -> "WeightSchedule":
        """Build from yaml.

        Args:
            conf: Any of the attributes. None or empty: a constant weight.
            weight: The full weight if conf does not give it.

        Raises:
            ValueError: If an option is unknown, of another type or out of range.
        """
        options = {"weight": weight, **(conf or {})}
        check_options("weight schedule", cls, options)
        return cls(**options)

    def __post_init__(self) -> None:
        ranges = {field.name: (0, math.inf) for field in dataclasses.fields(self)}
        check_ranges("weight schedule", self, ranges)
        if (self.decay_start_update is None) != (self.decay_end_update is None):
            raise ValueError(
                f"weight schedule: got decay_start_update {self.decay_start_update} "
                f"and decay_end_update {self.decay_end_update}, expected both or none"
            )
        for first, second in (
            ("warmup_updates", "decay_start_update"),
            ("decay_start_update", "decay_end_update"),
            ("warmup_updates", "stop_update"),
        ):
            start, end = getattr(self, first), getattr(self, second)
            if None not in (start, end) and start > end:
                raise ValueError(
                    f"weight schedule: got {first} {start} and {second} {end}, "
                    f"expected {second} not to be before {first}"
                )

    def weight_at(self, update: int) -> float:
        """Return the weight of the loss in an update.

        Args:
            update: Updates already made, 0 in the first one.
        """
        if self.stop_update is not None and update >= self.stop_update:
            return 0.0
        share = 1.0
        if update < self.warmup_updates:
            share = update / self.warmup_updates
        elif self.decay_start_update is not None and update > self.decay_start_update:
            length = self.decay_end_update - self.decay_start_update
            left = self.decay_end_update - update
            share = max(0.0, left / length) if length else 0.0
        return share * self.weight
