"""Files that one process at a time appends to."""

import contextlib
import fcntl
import logging
import os
from pathlib import Path
from typing import BinaryIO

_TRIES = 5


def open_locked(path: Path) -> BinaryIO:
    """Open a file for reading and appending, and lock it until it is closed.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If another process has locked it.
    """
    for _ in range(_TRIES):
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            break
        except OSError as error:  # some network file systems have no locks
            logging.warning(f"{path}: not locked ({error.strerror})")
        # Another process may have renamed or removed it before it was locked.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
    raise ValueError(
        f"{path}: another process is writing it; wait for it, or stop it and run this "
        "again"
    )
