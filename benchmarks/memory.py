"""Peak memory of a process, for the other benchmarks; on Linux."""

import re
from pathlib import Path
from typing import Callable


def peak_mb(function: Callable[[], object]) -> float:
    """Run a function and return its peak memory beyond that before it, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from now on
    before = _kilobytes("VmRSS")
    function()
    return (_kilobytes("VmHWM") - before) * 1024 / 1e6


def _kilobytes(name: str) -> int:
    """Read a figure of this process's memory, in kB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status).group(1))
