"""Progress of a running training, from its train.log."""

import math
import os
import re
import select
import stat
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Dict, List, Optional

from tqdm import tqdm

from espnet_mvq.reporting.training_log import (
    ReportError,
    parse_epochs,
    parse_stats,
    read_epochs,
)

POLL_S = 1.0
_STARTED = re.compile(r"(\d+)/(\d+)epoch started")
_BATCHES = re.compile(r"(\d+)epoch:train:\d+-(\d+)batch: (.*)")
_TIME = re.compile(r"^\[.*?\] (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")


def watch_training(exp: Path, baseline: Optional[Path] = None) -> None:
    """Show the progress of a training on standard output until it ends.

    One line that changes on a terminal, else one line for each epoch. The training has
    ended if its log says so; or if standard input is a pipe that ends.

    Args:
        exp: Experiment folder; the log may not exist yet.
        baseline: Experiment whose validation loss is shown, too.

    Raises:
        OSError: If there is no such folder, the log cannot be read, or the progress not
            be written.
    """
    if not exp.is_dir():
        raise FileNotFoundError(f"{exp}: no such folder, expected that of a training")
    is_fed = sys.stdin is not None and stat.S_ISFIFO(os.fstat(0).st_mode)
    # The training starts with the pipe; ESPnet will rename an older log.
    log = GrowingLog(exp / "train.log", time.time() - POLL_S if is_fed else 0)
    progress = Progress(_epochs_of(baseline) if baseline != exp else [])
    has_ended = False
    try:
        while not has_ended:
            if is_fed:
                has_ended = bool(select.select([0], [], [], POLL_S)[0])
            for line in log.new_lines():
                progress.add(line)
                # run.pl and run_jobs; slurm.pl, queue.pl and pbs.pl
                has_ended |= line.startswith(("# Ended", "# Finished"))
            progress.show()
            if not is_fed and not has_ended:
                time.sleep(POLL_S)
    finally:
        progress.close()


def _epochs_of(exp: Optional[Path]) -> List[Dict[str, float]]:
    try:
        return read_epochs(exp) if exp is not None else []
    except ReportError:  # not trained
        return []


class GrowingLog:
    """A log that another process writes.

    Args:
        path: The log.
        not_before: Time in s; a log that was last changed before is one of an earlier
            run.
    """

    def __init__(self, path: Path, not_before: float = 0):
        self.path = path
        self.not_before = not_before
        self._inode = None
        self._offset = 0

    def new_lines(self) -> List[str]:
        """Return the whole lines since the last call; none if there is no log yet."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_mtime < self.not_before:
                    return []
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._inode, self._offset = found.st_ino, 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        content = content[: content.rfind(b"\n") + 1]
        self._offset += len(content)
        return content.decode("utf-8", errors="replace").splitlines()


class Progress:
    """Epoch, losses and remaining time of a training.

    Args:
        baseline: Epochs of the baseline, see `read_epochs`.
    """

    def __init__(self, baseline: List[Dict[str, float]]):
        self._baseline = baseline
        self._bar: Optional[tqdm] = None  # from the first epoch on
        self._epoch = self._first = 0
        self._batches = baseline[0]["total_count"] if baseline else math.nan
        self._losses = self._valid = ""
        self._begin: Optional[datetime] = None
        self._end_s: Optional[float] = None  # estimated, as of `time.time`

    def add(self, line: str) -> None:
        """Take in a line of the log."""
        started = _STARTED.search(line)
        if started:
            self._epoch, total = map(int, started.groups())
            if self._bar is None:
                self._first = self._epoch
                self._bar = progress_bar(total)
            self._set_done(self._epoch - 1, line)
        if self._bar is None:
            return
        batches = _BATCHES.search(line)
        if batches:
            self._losses = losses_text(parse_stats(batches[3]))
            done = int(batches[2]) / self._batches
            if done <= 1:
                self._set_done(self._epoch - 1 + done, line)
        for number, stats in parse_epochs(line).items():
            self._losses = losses_text(stats)
            self._batches = stats["total_count"] / number
            self._valid = f"validation {stats.get('valid_loss', math.nan):.1f}"
            if number <= len(self._baseline):
                loss = self._baseline[number - 1].get("valid_loss", math.nan)
                self._valid += f" (baseline {loss:.1f})"
            self._set_done(number, line)
            if self._bar.disable:
                print(self._text(), flush=True)

    def show(self) -> None:
        """Write the line anew on a terminal."""
        if self._bar is not None and not self._bar.disable:
            self._bar.set_description_str(self._text())

    def close(self) -> None:
        """End the line."""
        if self._bar is not None:
            self._bar.close()

    def _set_done(self, done: float, line: str) -> None:
        """Set the number of finished epochs, and estimate the end from the log."""
        self._bar.n = done
        written = _TIME.search(line)
        if written:
            now = datetime.fromisoformat(written[1])
            self._begin = self._begin or now
            new = done - (self._first - 1)
            if new > 0:
                epoch_s = (now - self._begin).total_seconds() / new
                self._end_s = time.time() + epoch_s * (self._bar.total - done)

    def _text(self) -> str:
        texts = [f"epoch {self._epoch}/{self._bar.total}"]
        if self._end_s is not None:
            left_s = max(self._end_s - time.time(), 0)
            texts.append(f"{tqdm.format_interval(left_s)} left")
        return ", ".join(filter(None, (*texts, self._losses, self._valid)))


def progress_bar(total: int) -> tqdm:
    """Return a bar of all epochs, which is written on a terminal only."""
    return tqdm(
        total=total,
        file=sys.stdout,
        disable=not sys.stdout.isatty(),
        dynamic_ncols=True,
        bar_format="|{bar:8}| {desc}",
    )


def losses_text(stats: Dict[str, float]) -> str:
    """Format the parts of the loss of a training, or the loss if it has one part."""
    parts = {
        name.removeprefix("loss_"): value
        for name, value in stats.items()
        if name.startswith("loss_") and name != "loss_scale" and not math.isnan(value)
    }
    if len(parts) < 2:
        return f"loss {stats.get('loss', math.nan):.1f}"
    return "loss " + ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
