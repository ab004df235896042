"""Teacher losses of a run that has not ended, kept so that the next one goes on."""

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Dict, Tuple

from espnet_mvq.files.locked import open_locked
from espnet_mvq.indexes.teacher_losses import TeacherLossMetadata

# Sum over an utterance's labels, in nats, and their number
Loss = Tuple[float, int]


class PartialLosses:
    """File of the losses computed so far, from which a run that broke off goes on.

    Its first line has the kind of the losses, the others `utt_id nats labels checksum`.
    Lines of an earlier run are kept up to the first incomplete one, if the losses are
    of the same kind; not those of utterances whose audio or text have changed since.
    The file is locked. Use it as a context manager.

    Args:
        path: The file.
        metadata: Teacher and kind of the losses.
        inputs: Audio and text of each utterance.

    Attributes:
        losses: Loss of each utterance.
    """

    def __init__(
        self,
        path: Path,
        metadata: TeacherLossMetadata,
        inputs: Dict[str, Tuple[str, str]],
    ):
        self.path = path
        meaning = {n: getattr(metadata, n) for n in ("teacher", "loss", "label")}
        self._header = f"{json.dumps(meaning)}\n".encode()
        self._checksums = {u: _checksum(u, *both) for u, both in inputs.items()}
        self.losses: Dict[str, Loss] = {}

    def __enter__(self) -> "PartialLosses":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_locked(self.path)
        try:
            self._file.truncate(self._recover())
            self._file.seek(0, os.SEEK_END)
            if self._file.tell() == 0:
                self._append(self._header)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        try:
            self._file.close()
        except OSError:
            if exc_type is None:  # else the disk is full, as exc_value says
                raise

    def write(self, losses: Dict[str, Loss]) -> None:
        """Append utterances.

        Args:
            losses: Loss of each utterance.

        Raises:
            ValueError: If they could not be written, on a full disk for example.
        """
        lines = [
            f"{utt_id} {nats!r} {num_labels} {self._checksums[utt_id]}\n"
            for utt_id, (nats, num_labels) in losses.items()
        ]
        self._append("".join(lines).encode())
        self.losses.update(losses)

    def _append(self, content: bytes) -> None:
        """Write and flush."""
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise ValueError(
                f"{self.path}: could not be written ({error.strerror}); the losses of "
                f"{len(self.losses)} utterances are safe: make room and run it again, "
                "it goes on from there"
            ) from error

    def _recover(self) -> int:
        """Read the losses of an earlier run; return the bytes of its complete lines."""
        self._file.seek(0)
        if self._file.readline() != self._header:
            return 0
        end = len(self._header)
        for line in self._file:
            try:
                utt_id, nats, num_labels, checksum = line.decode().split(" ")
                loss = float(nats), int(num_labels)
            except ValueError:  # cut off, in the middle of a letter perhaps
                break
            if not line.endswith(b"\n"):
                break
            end += len(line)
            if self._checksums.get(utt_id) == checksum.strip():
                self.losses[utt_id] = loss
        if self.losses:
            logging.info(
                f"{self.path}: the losses of {len(self.losses)} utterances of a run "
                "that broke off are kept"
            )
        return end


def _checksum(utt_id: str, place: str, text: str) -> str:
    """Hash an utterance's audio file name and text, 8 hex digits."""
    return f"{zlib.crc32(f'{utt_id} {place} {text}'.encode()):08x}"
