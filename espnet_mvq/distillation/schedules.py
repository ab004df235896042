"""Weight of the distillation loss over the course of training."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Mapping, Optional


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
            ValueError: If an option is unknown or out of range.
        """
        conf = dict(conf or {})
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(map(str, conf)) - set(known))
        if unknown:
            raise ValueError(
                f"weight schedule: unknown option {', '.join(unknown)}; expected some "
                f"of {', '.join(known)}"
            )
        return cls(**{"weight": weight, **conf})

    def __post_init__(self) -> None:
        weight = self.weight
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not (is_number and 0 <= weight < float("inf")):
            raise ValueError(
                f"weight schedule: weight: got {weight!r}, expected a number of at "
                "least 0"
            )
        updates = dataclasses.asdict(self)
        del updates["weight"]
        for name, value in updates.items():
            if value is None and name != "warmup_updates":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(
                    f"weight schedule: {name}: got {value!r}, expected a whole number "
                    "of updates, at least 0"
                )
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
            start, end = updates[first], updates[second]
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
