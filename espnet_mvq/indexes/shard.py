"""One job's share of an extraction: an ark, its scp and its metadata."""

import fcntl
import hashlib
import logging
import os
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator, List, Optional, Tuple, Type, Union

import kaldiio
import numpy as np
from kaldiio.matio import read_kaldi, read_token

from espnet_mvq.files.write_text import write_text
from espnet_mvq.indexes.metadata import FrameMetadata, IndexMetadata

_NUMPY_MARKER = b"NPY"  # what kaldiio puts before an array written as numpy does


class ShardWriter:
    """Writes `STEM.JOB.{ark,scp,json}`, codebook_indexes.1.ark say; the json last.

    Nothing bears its final name before all of it is written, so a shard whose json is
    there is whole. Use it as a context manager. What was written when it breaks off,
    be it by SIGKILL, stays in a temporary ark, for the next run to go on from.

    Args:
        outdir: Folder of the shards; made if missing.
        job: Number of the job, counted from 1.
        metadata: What the arrays mean, by which the files are named too; counts and
            checksum are filled in.
        resume_for: Utterances that may be kept from a run that broke off with the same
            metadata. None: start anew, and leave nothing behind when it breaks off.

    Attributes:
        kept: Utterances that are in the shard already.
    """

    def __init__(
        self,
        outdir: Union[str, Path],
        job: int,
        metadata: FrameMetadata,
        resume_for: Optional[Iterable[str]] = None,
    ):
        self._ark, self._scp, self._json = shard_paths(outdir, job, metadata.STEM)
        self._ark_tmp = self._ark.with_suffix(".ark.tmp")
        # Says what the temporary ark holds
        self._json_tmp = self._ark.with_suffix(".tmp.json")
        self._resume_for = None if resume_for is None else set(resume_for)
        self.metadata = metadata
        self.metadata.num_utterances = self.metadata.num_frames = 0
        self.kept: List[str] = []

    def __enter__(self) -> "ShardWriter":
        self._ark.parent.mkdir(parents=True, exist_ok=True)
        if not self._ark_tmp.exists() and not self._json.exists() and self._is_mine():
            # It broke off between the ark's renaming and the rest.
            self._ark.replace(self._ark_tmp)
        self._file = self._ark_tmp.open("a+b")
        self._lock()
        self._lines: List[str] = []
        for path in (self._json, self._scp):
            path.unlink(missing_ok=True)
        self._file.truncate(self._recover())
        self._file.seek(0, os.SEEK_END)
        self.metadata.save(self._json_tmp)
        return self

    def write(self, utt_id: str, array: np.ndarray) -> None:
        """Append an utterance.

        Args:
            utt_id: The utterance.
            array: Its frames: codebook indexes, uint8, (T, N), for example.

        Raises:
            ValueError: If they are not what the metadata say.
            ShardError: If they could not be written, on a full disk for example.
        """
        try:
            self.metadata.check(array)
        except ValueError as error:
            raise ValueError(f"utterance {utt_id}: {error}") from error
        start = self._file.tell()
        try:
            kaldiio.save_ark(self._file, {utt_id: array}, write_function="numpy")
            self._file.flush()
        except OSError as error:
            raise ShardError(
                f"{self._ark_tmp}: utterance {utt_id} could not be written "
                f"({error.strerror}); the {self.metadata.num_utterances} utterances "
                "before it are safe: make room and run it again, it goes on from there"
            ) from error
        self._count(utt_id, array, start)

    def _count(self, utt_id: str, array: np.ndarray, start: int) -> None:
        """Take an utterance that begins at a byte of the ark into scp and metadata."""
        # Kaldi's layout, `utt_id value`; the scp points behind the utterance id.
        offset = start + len(utt_id.encode()) + 1
        self._lines.append(f"{utt_id} {self._ark.resolve()}:{offset}\n")
        self.metadata.num_utterances += 1
        self.metadata.num_frames += len(array)

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        if exc_type is not None:
            try:
                self._file.close()
            except OSError:
                pass  # the disk is full: that is what exc_value says
            if self._resume_for is None or not self._lines:
                self._ark_tmp.unlink(missing_ok=True)
                self._json_tmp.unlink(missing_ok=True)
            return
        # Closing is what gives the lock back, so it comes last.
        with self._file:
            self.metadata.shards = {self._ark.name: file_sha256(self._ark_tmp)}
            self._ark_tmp.replace(self._ark)
            write_text(self._scp, "".join(self._lines))
            self.metadata.save(self._json)
            self._json_tmp.unlink(missing_ok=True)

    def _lock(self) -> None:
        """Refuse a second writer of this shard."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ShardError(
                f"{self._ark_tmp}: another process is writing this shard; wait for it, "
                "or stop it and run this again"
            ) from error
        except OSError as error:  # some network file systems have no locks
            logging.warning(f"{self._ark_tmp}: not locked ({error.strerror})")

    def _is_mine(self) -> bool:
        """Say whether the ark of a run that broke off means what this one's will."""
        if self._resume_for is None or not self._json_tmp.is_file():
            return False
        try:
            found = type(self.metadata).load(self._json_tmp)
        except ValueError:
            return False
        return not found.differences(self.metadata)

    def _recover(self) -> int:
        """Keep the whole utterances of a run that broke off; return where they end."""
        if not self._is_mine():
            return 0
        end, kept = 0, set()
        for utt_id, array, start, after in _read_whole(self._file):
            try:
                self.metadata.check(array)
            except ValueError:
                break
            if utt_id not in self._resume_for or utt_id in kept:
                break
            self._count(utt_id, array, start)
            self.kept.append(utt_id)
            kept.add(utt_id)
            end = after
        if self.kept:
            logging.info(
                f"{self._ark_tmp}: {len(self.kept)} utterances of a run that broke off "
                "are kept"
            )
        return end


class ShardError(ValueError):
    """A shard cannot be written."""


def _read_whole(file: BinaryIO) -> Iterator[Tuple[str, np.ndarray, int, int]]:
    """Yield utterance, array, first byte and end of each whole record of an ark."""
    file.seek(0)
    while True:
        start = file.tell()
        try:
            utt_id = read_token(file)
            marker = file.read(len(_NUMPY_MARKER))
            if utt_id is None or marker != _NUMPY_MARKER:
                return
            file.seek(-len(marker), os.SEEK_CUR)
            array = read_kaldi(file)
        except Exception:  # half a record fails in many ways
            return
        yield utt_id, array, start, file.tell()


def shard_paths(outdir: Union[str, Path], job: int, stem: str = IndexMetadata.STEM):
    """Return the paths of a shard's ark, scp and json."""
    start = Path(outdir) / f"{stem}.{job}"
    return tuple(
        start.with_name(f"{start.name}.{end}") for end in ("ark", "scp", "json")
    )


def finished_shard(
    outdir: Union[str, Path], job: int, kind: Type[FrameMetadata] = IndexMetadata
) -> Optional[FrameMetadata]:
    """Return the metadata of a whole shard, None if there is none."""
    ark, scp, json_path = shard_paths(outdir, job, kind.STEM)
    if not (ark.is_file() and scp.is_file() and json_path.is_file()):
        return None
    return kind.load(json_path)


def file_sha256(path: Union[str, Path]) -> str:
    """Return the sha256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
