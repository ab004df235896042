"""Text files that are there whole or not at all."""

import os
from pathlib import Path
from typing import Union


def write_text(path: Union[str, Path], text: str) -> None:
    """Write a text file so that it is there whole or not at all.

    Raises:
        OSError: If it cannot be written, on a full disk for example; names the file.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # The error of a write does not know its file.
        raise OSError(error.errno, error.strerror, str(path)) from error
