"""Checks of options that a yaml or a command line gives."""

import inspect
import math
from typing import Any, Callable, Dict, Mapping, Tuple, get_args

# Smallest and largest value by name
Ranges = Dict[str, Tuple[float, float]]
# Types that an option can have, beside None, and their names in messages
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number (in yaml 1.0e-1, not 1e-1)",
    str: "a text (in quotes if yaml takes it for something else)",
    dict: "a mapping",
    list: "a list",
}


def check_options(
    config: str, target: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Check names and types of options against the signature that takes them.

    Args:
        config: Name of the config, for messages.
        target: Dataclass, class or function. Its options are the parameters with a
            default, annotated with types of `_WORDS` or a union of them. If it has
            `**`, options that it does not name are left to the function behind it.
        options: Values by name.

    Raises:
        ValueError: If options are unknown or have values of another type.

    Example:
        >>> def build(size: int = 1): ...
        >>> check_options("head", build, {"size": True})
        Traceback (most recent call last):
        ValueError: head: size: got True, expected a whole number
    """
    parameters = inspect.signature(target).parameters
    types = {
        name: get_args(parameter.annotation) or (parameter.annotation,)
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options = {name: v for name, v in options.items() if name in parameters}
    unknown = [str(name) for name in options if name not in types]
    if unknown:
        expected = f"some of {', '.join(types)}" if types else "none here"
        raise ValueError(
            f"{config}: unknown option: {', '.join(unknown)}; expected {expected}"
        )
    problems = []
    for name, value in options.items():
        if not any(is_of_type(value, kind) for kind in types[name]):
            words = [_WORDS[kind] for kind in types[name] if kind in _WORDS]
            problems.append(f"{name}: got {value!r}, expected {' or '.join(words)}")
    if problems:
        raise ValueError(f"{config}: {'; '.join(problems)}")


def is_of_type(value: Any, kind: type) -> bool:
    """Whether a value is of a type: a float is finite, and no number is a bool."""
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, kind)


def check_ranges(config: str, values: Any, ranges: Ranges) -> None:
    """Check that numbers lie in their ranges.

    Args:
        config: Name of the config, for messages.
        values: Object with the numbers as attributes. None is not checked.
        ranges: Smallest and largest value by name.

    Raises:
        ValueError: Naming all numbers outside of their ranges.
    """
    problems = []
    for name, (low, high) in ranges.items():
        value = getattr(values, name)
        if value is not None and not low <= value <= high:  # NaN too
            expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
            problems.append(f"{name}: got {value!r}, expected {expected}")
    if problems:
        raise ValueError(f"{config}: {'; '.join(problems)}")
