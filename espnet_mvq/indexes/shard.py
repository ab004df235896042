"""Shards: ark, scp and metadata with the utterances of one extraction job."""

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator, List, Optional, Tuple, Type, Union

import kaldiio
import numpy as np
from kaldiio.matio import read_token

from espnet_mvq.files.ark import read_numpy_record
from espnet_mvq.files.locked import open_locked
from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import file_sha256, write_text
from espnet_mvq.indexes.metadata import FrameMetadata, IndexMetadata


class ShardWriter:
    """Context manager that writes `STEM.JOB.ark`, `.scp` and last `.json`.

    No file gets its final name before it is whole, so a shard with a json is complete.
    Utterances written before an interruption, even by SIGKILL, stay in a temporary ark,
    from which the next run resumes.

    Args:
        outdir: Folder of the shards; created if missing.
        job: Number of the job, counted from 1.
        metadata: Metadata of the arrays. They give the stem of the file names; counts
            and checksum are filled in.
        resume_for: Utterances that may be kept from an interrupted run with the same
            metadata. None: start anew, and leave no files after an interruption.

    Attributes:
        kept: Utterances kept from an earlier run.
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
        # Settings of the arrays in the temporary ark
        self._json_tmp = self._ark.with_suffix(".tmp.json")
        self._resume_for = None if resume_for is None else set(resume_for)
        self.metadata = metadata
        self.metadata.num_utterances = self.metadata.num_frames = 0
        self.metadata.shards = {}
        self.kept: List[str] = []

    def __enter__(self) -> "ShardWriter":
        self._ark.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_locked(self._ark_tmp)
        try:
            self._begin()
        except BaseException:
            self._file.close()  # releases the lock
            raise
        return self

    def write(self, utt_id: str, array: np.ndarray) -> None:
        """Append an utterance.

        Args:
            utt_id: The utterance.
            array: Its frames, for example codebook indexes, uint8, (T, N).

        Raises:
            ValueError: If the array does not fit the metadata, cannot be written, on a
                full disk for example, or another process writes the shard too.
        """
        try:
            self.metadata.check(array)
        except ValueError as error:
            raise ValueError(f"utterance {utt_id}: {error}") from error
        if os.fstat(self._file.fileno()).st_size != self._size:
            self._refuse_other_bytes()
        record = io.BytesIO()
        kaldiio.save_ark(record, {utt_id: array}, write_function="numpy")
        try:
            self._file.write(record.getvalue())
            self._file.flush()
        except OSError as error:
            raise ValueError(
                f"{self._ark_tmp}: utterance {utt_id} could not be written "
                f"({error.strerror}); the {self.metadata.num_utterances} utterances "
                "before it are safe: make room and run it again, it goes on from there"
            ) from error
        self._count(utt_id, array, self._size)
        self._add_bytes(record.getvalue())

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        if exc_type is not None:
            try:
                self._file.close()
            except OSError:
                pass  # The disk is full, as exc_value tells.
            if self._resume_for is None or not self._lines:
                self._discard()
            return
        try:
            with self._file:  # closed last, since that releases the lock
                checksum = self._checksum.hexdigest()
                if not self._ark_tmp.exists() or file_sha256(self._ark_tmp) != checksum:
                    self._refuse_other_bytes()
                self.metadata.shards = {self._ark.name: checksum}
                # Identifies the ark between its renaming and the writing of its json.
                self.metadata.save(self._json_tmp)
                self._ark_tmp.replace(self._ark)
                write_text(self._scp, "".join(self._lines))
                self.metadata.save(self._json)
                self._json_tmp.unlink(missing_ok=True)
        except OSError as error:
            kept = ", its utterances are kept"
            if self._resume_for is None:
                self._discard()
                kept = ""
            raise ValueError(
                f"{self._ark}: all {self.metadata.num_utterances} utterances are "
                f"written, but the shard could not be ended ({error}); make room and "
                f"run it again{kept}"
            ) from error

    def _begin(self) -> None:
        """Keep what can be kept of earlier runs, and remove the rest.

        After an interruption between any two lines, the temporary ark is empty or has
        the settings in the json beside it.
        """
        for leftover in self._ark.parent.glob(f"{self._ark.stem}.*.tmp[0-9]*"):
            leftover.unlink(missing_ok=True)  # of a killed `write_text`
        previous = self._reusable_ark()
        if previous is not None:
            self._file.truncate(0)
            previous.save(self._json_tmp)
            with self._file:  # keeps its lock until the renamed ark is locked
                self._ark.replace(self._ark_tmp)
                self._file = open_locked(self._ark_tmp)
        self._lines: List[str] = []
        self._size, self._checksum = 0, hashlib.sha256()
        kept_bytes = self._recover()
        self._file.seek(0)
        while block := self._file.read(min(2**20, kept_bytes - self._size)):
            self._add_bytes(block)
        self._file.truncate(kept_bytes)
        self._file.seek(0, os.SEEK_END)
        self.metadata.save(self._json_tmp)
        for path in (self._json, self._scp):
            path.unlink(missing_ok=True)

    def _count(self, utt_id: str, array: np.ndarray, start: int) -> None:
        """Add an utterance at a byte of the ark to scp and metadata."""
        # An ark has `utt_id value`; the scp points behind the utterance id.
        offset = start + len(utt_id.encode()) + 1
        self._lines.append(f"{utt_id} {self._ark.resolve()}:{offset}\n")
        self.metadata.num_utterances += 1
        self.metadata.num_frames += len(array)

    def _add_bytes(self, content: bytes) -> None:
        """Add bytes to those that the temporary ark must have."""
        self._size += len(content)
        self._checksum.update(content)

    def _refuse_other_bytes(self) -> None:
        """Remove an ark that another process writes too: records may be mixed up.

        Raises:
            ValueError: Always.
        """
        self._lines.clear()
        self._discard()
        raise ValueError(
            f"{self._ark_tmp}: got other bytes than this job wrote; another job writes "
            "it too, and the locks of this file system (flock) do not work. It is "
            "removed: end the other job and run this again"
        )

    def _discard(self) -> None:
        """Remove the temporary files."""
        for path in (self._ark_tmp, self._json_tmp):
            path.unlink(missing_ok=True)

    def _reusable_ark(self) -> Optional[FrameMetadata]:
        """Return the metadata of an ark with its final name from which to resume.

        Its writer was interrupted between renaming the ark and writing the json, or the
        shard is finished, of the same utterances, and some of them were skipped.
        """
        if self._resume_for is None or not self._ark.is_file():
            return None
        finished = self._json.exists()
        metadata = self._load_same_settings(self._json if finished else self._json_tmp)
        if metadata is None:
            return None
        if finished:
            if not metadata.skipped or not self._scp.is_file():
                return None
            written = set(read_scp(self._scp))
            if not written <= self._resume_for <= written.union(metadata.skipped):
                return None
        checksum = metadata.shards.get(self._ark.name)
        return metadata if checksum == file_sha256(self._ark) else None

    def _load_same_settings(self, path: Path) -> Optional[FrameMetadata]:
        """Load metadata; None if there are none or their settings differ."""
        try:
            metadata = type(self.metadata).load(path)
        except (FileNotFoundError, ValueError):
            return None
        return None if metadata.differences(self.metadata) else metadata

    def _recover(self) -> int:
        """Keep the whole utterances of an interrupted run; return their bytes."""
        if self._resume_for is None or self._load_same_settings(self._json_tmp) is None:
            return 0
        end = 0
        wanted = set(self._resume_for)
        for utt_id, array, start, next_start in _read_records(self._file):
            try:
                self.metadata.check(array)
            except ValueError:
                break
            if utt_id not in wanted:
                break
            wanted.remove(utt_id)
            self._count(utt_id, array, start)
            self.kept.append(utt_id)
            end = next_start
        if self.kept:
            logging.info(
                f"{self._ark_tmp}: {len(self.kept)} utterances of a run that broke off "
                "are kept"
            )
        return end


def _read_records(file: BinaryIO) -> Iterator[Tuple[str, np.ndarray, int, int]]:
    """Yield utterance, array, start and end in bytes of each record until damage."""
    file.seek(0)
    while True:
        start = file.tell()
        try:
            utt_id = read_token(file)
            if utt_id is None:
                return
            array = read_numpy_record(file)
        except Exception:  # half a record raises errors of many kinds
            return
        yield utt_id, array, start, file.tell()


def shard_paths(
    outdir: Union[str, Path], job: int, stem: str = IndexMetadata.STEM
) -> Tuple[Path, Path, Path]:
    """Return the paths of a shard's ark, scp and json."""
    ark, scp, json = (Path(outdir, f"{stem}.{job}.{e}") for e in ("ark", "scp", "json"))
    return ark, scp, json


def finished_shard(
    outdir: Union[str, Path], job: int, kind: Type[FrameMetadata] = IndexMetadata
) -> Optional[FrameMetadata]:
    """Load the metadata of a finished shard; None if a file of it is missing."""
    ark, scp, json_path = shard_paths(outdir, job, kind.STEM)
    if not (ark.is_file() and scp.is_file() and json_path.is_file()):
        return None
    return kind.load(json_path)
