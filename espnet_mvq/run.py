"""Launcher: `python3 -m espnet_mvq.run` is `python3` with the plugin registered.

ESPnet's recipes take a command for their Python, so

    ./run.sh --python "python3 -m espnet_mvq.run" ...

brings the plugin into an unmodified recipe. `-m MODULE ARGS` for ESPnet's own commands
runs in this process; everything else is handed to the interpreter as it is.
"""

import importlib
import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import List, Optional

_PACKAGE = "espnet2.bin."
# Commands of ESPnet that build no model need not wait for the plugin's import.
_WITHOUT_MODEL = (
    "aggregate_stats_dirs",
    "launch",
    "pack",
    "split_scps",
    "tokenize_text",
)

# Lightning starts the other ranks of a node as `python3 -m espnet_mvq.run --OPTIONS`.
_LIGHTNING = "espnet2.bin.lightning_train"
_IN_LIGHTNING = "ESPNET_MVQ_IN_LIGHTNING"

if __name__ == "__mp_main__":
    # A process spawned by a training (multi-GPU) imports its parent's main module
    # under this name: here is where it learns of the plugin.
    from espnet_mvq import register

    register()


def main(argv: Optional[List[str]] = None) -> None:
    """Run what an interpreter would run.

    Args:
        argv: Arguments after `python3 -m espnet_mvq.run`. Default: the command line's.
    """
    argv = sys.argv[1:] if argv is None else argv
    if _IN_LIGHTNING in os.environ and argv and argv[0].startswith("--"):
        argv = ["-m", _LIGHTNING, *argv]
    if not _takes_plugin(argv):
        os.execv(sys.executable, [sys.executable, *argv])
    if argv[1] == _LIGHTNING:
        os.environ[_IN_LIGHTNING] = "true"
    from espnet_mvq import register

    try:
        register()
    except (ImportError, ValueError) as error:
        if _refusal(error) is None:
            raise
        sys.exit(f"espnet_mvq: {error}")
    # By import, not runpy: the module must not take the place of `__main__`, which
    # spawned processes import to find the plugin.
    module = importlib.import_module(argv[1])
    sys.argv = [module.__file__, *argv[2:]]
    try:
        module.main()
        _destroy_process_group()
    except (ValueError, OSError) as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        logging.debug("traceback:", exc_info=True)
        logging.error(f"{refusal} (--log_level DEBUG shows the traceback)")
        sys.exit(1)


def _destroy_process_group() -> None:
    """Destroy the process group of a distributed training.

    ESPnet leaves it to the end of the interpreter, and a thread of the group that is
    still at work then can abort the process after a training that ended well.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _refusal(error: Exception) -> Optional[str]:
    """Return the text of an error that the plugin itself raised.

    Such a text says all there is to say. Errors of ESPnet and torch keep their
    tracebacks.
    """
    *_, frame = traceback.walk_tb(error.__traceback__)
    file, text = frame[0].f_code.co_filename, str(error)
    if "Original Traceback" in text:
        # A data loader's worker sends the traceback in the text.
        file = re.findall(r'^  File "(.+)", line', text, re.MULTILINE)[-1]
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return text if Path(file).is_relative_to(Path(__file__).parent) else None


def _takes_plugin(argv: List[str]) -> bool:
    """Whether the arguments run a command of ESPnet that builds models."""
    if len(argv) < 2 or argv[0] != "-m" or not argv[1].startswith(_PACKAGE):
        return False
    return argv[1][len(_PACKAGE) :] not in _WITHOUT_MODEL


if __name__ == "__main__":
    main()
