"""ESPnet's train.log: the statistics of each epoch."""

import re
from pathlib import Path
from typing import Dict, List

_EPOCH = re.compile(r"(\d+)epoch results: \[train\] (.*?), \[valid\] (.*)")
_STAT = re.compile(r"(\w+)=(-?[\d.]+(?:e[-+]\d+)?|nan)(?=,|$)")


class ReportError(ValueError):
    """An input of a report is missing; the text is the message to the user."""


def read_epochs(exp: Path) -> List[Dict[str, float]]:
    """Read the statistics of each epoch.

    When a training is started again, ESPnet renames the previous log to train.1.log,
    and so on.

    Args:
        exp: Experiment folder.

    Returns:
        Training statistics of each epoch by name, those of the validation with the
        prefix `valid_`. The last run of an epoch counts.

    Raises:
        ReportError: If there is no log or no epoch in it.
    """
    log = exp / "train.log"
    if not log.is_file():
        raise ReportError(f"no {log}; run stage 11 (training)")
    older = sorted(
        exp.glob("train.[0-9]*.log"), key=lambda path: -int(path.suffixes[0][1:])
    )
    text = "".join(
        path.read_text(encoding="utf-8", errors="replace") for path in (*older, log)
    )
    epochs = parse_epochs(text)
    if not epochs:
        raise ReportError(f"no finished epoch in {log}; run stage 11 (training)")
    return [epochs[number] for number in sorted(epochs)]


def parse_epochs(text: str) -> Dict[int, Dict[str, float]]:
    """Return the statistics in the text of a log by epoch; see `read_epochs`."""
    epochs = {}
    for number, train, valid in _EPOCH.findall(text):
        stats = parse_stats(train)
        stats.update(
            {f"valid_{name}": value for name, value in parse_stats(valid).items()}
        )
        epochs[int(number)] = stats
    return epochs


def parse_stats(text: str) -> Dict[str, float]:
    """Return the numbers of `name=number, name=number`."""
    return {name: float(value) for name, value in _STAT.findall(text)}


def seconds_per_step(epochs: List[Dict[str, float]]) -> float:
    """Return the mean time of an update in s, in the median epoch."""
    times = sorted(epoch["train_time"] for epoch in epochs if "train_time" in epoch)
    return times[len(times) // 2]
