#!/usr/bin/env python3
"""`python3 -m espnet_mvq.bin.inspect`: the quality report of a quantizer."""

import sys
from pathlib import Path

if __name__ == "inspect":
    # Another command of this folder was started by its path, which puts the folder
    # before the standard library: give whoever asks the standard library's `inspect`.
    here = str(Path(__file__).parent)
    sys.path.remove(here)
    sys.path.append(here)
    del sys.modules["inspect"]
    sys.modules["inspect"] = __import__("inspect")
else:
    from espnet_mvq.bin.inspect_quantizer import get_parser, main  # noqa: F401

    if __name__ == "__main__":
        main()
