"""Safe reading of records in Kaldi arks, which an scp gives as `FILE:OFFSET`.

kaldiio's own readers run a place that ends in "|" as a command and unpickle records
marked as pickled. Files from others must not run code, so these readers do neither.
"""

import io
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator, Optional, Tuple

import numpy as np
from kaldiio.matio import read_kaldi, read_token

_NUMPY_MARKER = b"NPY"  # kaldiio's, before an array in numpy's format
_KALDI_MARKER = b"\0B"  # of binary matrices
_TEXT_MARKER = b"["  # of matrices in text
_PICKLE_MARKER = b"PKL"
_AUDIO_MARKERS = (b"AUDIO", b"RIFF", b"fLaC")
_MARKER_BYTES = 5
_PLACE = re.compile(r"(.+):(\d+)")


class OtherUtteranceError(ValueError):
    """An ark has another utterance at a place, or none."""


def read_numpy(place: str, utt_id: Optional[str] = None) -> np.ndarray:
    """Read an array in numpy's format.

    Args:
        place: `FILE:OFFSET`, where the offset points behind the utterance id.
        utt_id: Utterance id that the ark must have before the offset; None: any.

    Raises:
        FileNotFoundError: If there is no such file.
        OtherUtteranceError: If the ark has another id before the offset.
        ValueError: If the place is malformed, or the record is damaged or of another
            kind.
    """
    with _open(place, utt_id) as file:
        return read_numpy_record(file)


def read_matrix(place: str, utt_id: Optional[str] = None) -> np.ndarray:
    """Read an array in numpy's or Kaldi's format; see `read_numpy`."""
    with _open(place, utt_id) as file:
        marker = _marker(file)
        if marker.startswith(_NUMPY_MARKER):
            return read_numpy_record(file)
        is_text = marker.lstrip().startswith(_TEXT_MARKER)
        if not is_text and not marker.startswith(_KALDI_MARKER):
            raise ValueError(_refusal(marker, "a matrix of numpy or Kaldi"))
        return read_kaldi(file)


def read_audio(place: str) -> Tuple[int, np.ndarray]:
    """Read audio from ESPnet's `wav.ark` or `flac.ark`.

    Args:
        place: `FILE:OFFSET`.

    Returns:
        Sample rate in Hz, and samples, integer or float, (S,) or (S, channels).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the place is malformed, or the record is not audio. Damaged audio
            raises the errors of kaldiio and soundfile.
    """
    with _open(place) as file:
        marker = _marker(file)
        if not marker.startswith(_AUDIO_MARKERS):
            raise ValueError(_refusal(marker, "audio"))
        return read_kaldi(file)


def read_numpy_record(file: BinaryIO) -> np.ndarray:
    """Read an array in numpy's format at the current position of an open ark.

    Raises:
        ValueError: If the record is damaged or of another kind.
    """
    marker = _marker(file)
    if not marker.startswith(_NUMPY_MARKER):
        raise ValueError(_refusal(marker, "a numpy array"))
    content = file.read(_record_length(file))
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


@contextmanager
def _open(place: str, utt_id: Optional[str] = None) -> Iterator[BinaryIO]:
    """Open the file of a place, positioned at its offset."""
    match = _PLACE.fullmatch(place)
    if not match:
        raise ValueError(
            f"got {place!r}, expected FILE:OFFSET; commands and pipes are not run"
        )
    path, offset = Path(match[1]), int(match[2])
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        if utt_id is not None and not _is_before(file, offset, utt_id):
            raise OtherUtteranceError(
                f"expected utterance {utt_id} there, got {_describe(file, offset)}"
            )
        file.seek(offset)
        yield file


def _is_before(file: BinaryIO, offset: int, utt_id: str) -> bool:
    """Whether an ark has an utterance id just before an offset."""
    expected = f"{utt_id} ".encode()
    if offset < len(expected):
        return False
    file.seek(offset - len(expected))
    return file.read(len(expected)) == expected


def _describe(file: BinaryIO, offset: int) -> str:
    """Return a description of the record at an offset, for error messages."""
    file.seek(0)
    try:
        while (utt_id := read_token(file)) is not None:
            start = file.tell()
            length = _record_length(file)
            end = file.tell() + length
            if offset == start:
                return f"utterance {utt_id}"
            if offset < end:
                return f"a place inside utterance {utt_id}"
            file.seek(end)
    except ValueError:  # a damaged ark
        pass
    return "no utterance"


def _record_length(file: BinaryIO) -> int:
    """Read marker and length of a numpy record; return the length in bytes."""
    if file.read(len(_NUMPY_MARKER)) != _NUMPY_MARKER:
        raise ValueError("got no numpy record")
    size = file.read(1)
    length = int.from_bytes(file.read(size[0] if size else 0), "little")
    available = os.fstat(file.fileno()).st_size - file.tell()
    if length > available:
        raise ValueError(f"the record has {available} of its {length} bytes")
    return length


def _marker(file: BinaryIO) -> bytes:
    """Return the first bytes of a record without moving on."""
    start = file.tell()
    marker = file.read(_MARKER_BYTES)
    file.seek(start)
    return marker


def _refusal(marker: bytes, expected: str) -> str:
    """Return an error message for a record of another kind than expected."""
    if marker.startswith(_PICKLE_MARKER):
        return (
            f"got a pickled record, expected {expected}: pickles are not loaded, they "
            "could run code"
        )
    if marker.startswith(_AUDIO_MARKERS):
        return f"got audio, expected {expected}"
    return f"got bytes that begin with {marker!r}, expected {expected}"
