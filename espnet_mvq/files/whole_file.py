"""Whole files: atomic writing, and the checksum of the content."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Iterator, Union


@contextlib.contextmanager
def replace_when_whole(path: Union[str, Path]) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block ends without an error.

    Readers never see half a file; after an error, an existing file stays as it is.

    Raises:
        OSError: If the file cannot be written, on a full disk for example.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            f"{path}: could not be written ({error.strerror or error}); make room "
            "there, or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Union[str, Path], content: bytes) -> None:
    """Write a file atomically; see `replace_when_whole`."""
    with replace_when_whole(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Union[str, Path], text: str) -> None:
    """Write a UTF-8 file atomically; see `replace_when_whole`."""
    write_bytes(path, text.encode("utf-8"))


def file_sha256(path: Union[str, Path]) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
