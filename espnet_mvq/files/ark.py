"""Records of Kaldi arks, `FILE:OFFSET` in an scp, read without running anything.

kaldiio's own readers start a command where a place ends in "|", and unpickle a record
that says it is pickled: files that come from others must do neither.
"""

import io
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator, Optional, Tuple

import numpy as np
from kaldiio.matio import read_kaldi, read_token

NUMPY_MARKER = b"NPY"  # what kaldiio puts before an array written as numpy does
_KALDI_MARKER = b"\0B"  # of Kaldi's binary matrices
_TEXT_MARKER = b"["  # of Kaldi's matrices in text
_PICKLE_MARKER = b"PKL"
_AUDIO_MARKERS = (b"AUDIO", b"RIFF", b"fLaC")
_MARKER_BYTES = 5
_PLACE = re.compile(r"(.+):(\d+)")


class OtherUtteranceError(ValueError):
    """An ark holds something else at a place than the utterance looked for."""


def read_numpy(place: str, utt_id: Optional[str] = None) -> np.ndarray:
    """Read an array that was written as numpy does.

    Args:
        place: `FILE:OFFSET`, the offset pointing behind the utterance id.
        utt_id: The utterance that the ark must name just before the offset; None: any.

    Raises:
        FileNotFoundError: If there is no such file.
        OtherUtteranceError: If the ark names another utterance there.
        ValueError: If the place is of another form, or a record of another kind or
            damaged lies there.
    """
    with _open(place, utt_id) as file:
        return read_numpy_record(file)


def read_matrix(place: str, utt_id: Optional[str] = None) -> np.ndarray:
    """Read an array that was written as numpy or as Kaldi does; see `read_numpy`."""
    with _open(place, utt_id) as file:
        marker = _marker(file)
        if marker.startswith(NUMPY_MARKER):
            return read_numpy_record(file)
        is_text = marker.lstrip().startswith(_TEXT_MARKER)
        if not is_text and not marker.startswith(_KALDI_MARKER):
            raise ValueError(_refusal(marker, "a matrix of numpy or Kaldi"))
        return read_kaldi(file)


def read_audio(place: str) -> Tuple[int, np.ndarray]:
    """Read audio as ESPnet's `wav.ark` and `flac.ark` hold it.

    Args:
        place: `FILE:OFFSET`.

    Returns:
        Rate in Hz, and samples, integer or float, (S,) or (S, channels).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the place is of another form, or something else lies there.
            Damaged audio raises whatever its reader does.
    """
    with _open(place) as file:
        marker = _marker(file)
        if not marker.startswith(_AUDIO_MARKERS):
            raise ValueError(_refusal(marker, "audio"))
        return read_kaldi(file)


def read_numpy_record(file: BinaryIO) -> np.ndarray:
    """Read a numpy record that begins where an open ark stands.

    Raises:
        ValueError: If a record of another kind or damaged lies there.
    """
    marker = _marker(file)
    if not marker.startswith(NUMPY_MARKER):
        raise ValueError(_refusal(marker, "a numpy array"))
    content = file.read(_record_length(file))
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


@contextmanager
def _open(place: str, utt_id: Optional[str] = None) -> Iterator[BinaryIO]:
    """Open the file of a place where its offset says."""
    found = _PLACE.fullmatch(place)
    if not found:
        raise ValueError(
            f"got {place!r}, expected FILE:OFFSET; commands and pipes are not run"
        )
    path, offset = Path(found[1]), int(found[2])
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        if utt_id is not None:
            _check_utterance(file, offset, utt_id)
        file.seek(offset)
        yield file


def _check_utterance(file: BinaryIO, offset: int, utt_id: str) -> None:
    """Refuse an offset that has another utterance's id before it."""
    before = f"{utt_id} ".encode()
    start = offset - len(before)
    if start >= 0:
        file.seek(start)
        if file.read(len(before)) == before:
            return
    raise OtherUtteranceError(
        f"expected utterance {utt_id} there, got {_found_at(file, offset)}"
    )


def _found_at(file: BinaryIO, offset: int) -> str:
    """Say what of an ark of numpy records an offset points to."""
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
    """Read marker and length of a numpy record; return the bytes that follow.

    Raises:
        ValueError: If it is none, or the file is shorter.
    """
    if file.read(len(NUMPY_MARKER)) != NUMPY_MARKER:
        raise ValueError("got no numpy record")
    size = file.read(1)
    length = int.from_bytes(file.read(size[0] if size else 0), "little")
    there = os.fstat(file.fileno()).st_size - file.tell()
    if length > there:
        raise ValueError(f"the record has {there} of its {length} bytes")
    return length


def _marker(file: BinaryIO) -> bytes:
    """Return the bytes that tell the kind of a record, and go back before them."""
    here = file.tell()
    marker = file.read(_MARKER_BYTES)
    file.seek(here)
    return marker


def _refusal(marker: bytes, expected: str) -> str:
    """Say that a record is of another kind than it must be."""
    if marker.startswith(_PICKLE_MARKER):
        return (
            f"got a pickled record, expected {expected}: pickles are not loaded, they "
            "could run code"
        )
    if marker.startswith(_AUDIO_MARKERS):
        return f"got audio, expected {expected}"
    return f"got bytes that begin with {marker!r}, expected {expected}"
