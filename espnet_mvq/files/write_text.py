"""Text files that are there whole or not at all."""

import os
from pathlib import Path
from typing import Union


def write_text(path: Union[str, Path], text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
