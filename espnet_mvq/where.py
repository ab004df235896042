#!/usr/bin/env python3
"""Say where mvq.sh lies: `$(python3 -m espnet_mvq.where) --help`."""

import os
import sys
from pathlib import Path

MVQ_SH = Path(__file__).resolve().parent / "scripts" / "mvq.sh"


def main() -> None:
    """Print the path of mvq.sh."""
    print(MVQ_SH)


def run() -> None:
    """Become mvq.sh: the console script of that name.

    The Python it was installed for is the one it uses, unless `--python` says another.
    """
    os.environ.setdefault("MVQ_PYTHON", sys.executable)
    os.execvp("bash", ["bash", str(MVQ_SH), *sys.argv[1:]])


if __name__ == "__main__":
    main()
