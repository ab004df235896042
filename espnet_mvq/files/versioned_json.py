"""Json files that say what they are, and in which version."""

import json
from pathlib import Path
from typing import Any, Callable, Dict, TypeVar, Union

_T = TypeVar("_T")


def format_versioned_json(file_format: str, version: int, content: Dict) -> str:
    """Return the text of a file."""
    named = {"format": file_format, "version": version, **content}
    return json.dumps(named, indent=2) + "\n"


def load_versioned_json(
    path: Union[str, Path],
    file_format: str,
    version: int,
    build: Callable[..., _T],
    origin: str,
) -> _T:
    """Read a file.

    Args:
        path: The file.
        file_format: What it has to say that it is.
        version: The newest that is understood.
        build: Called with the content as keywords; what it finds wrong it raises as
            ValueError, KeyError, TypeError or AttributeError.
        origin: Where such files come from, for the message if there is none.

    Returns:
        What `build` makes of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no json of this kind, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"metadata {path}: no such file; {origin}")
    try:
        content: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        got_format, got_version = content.pop("format"), content.pop("version")
        if got_format != file_format:
            raise ValueError(f"got format {got_format!r}, expected {file_format!r}")
        if got_version > version:
            raise ValueError(
                f"got version {got_version}, expected at most {version}; install "
                "a newer espnet_mvq"
            )
        return build(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"metadata {path}: not readable: {error}") from error
