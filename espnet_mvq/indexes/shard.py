"""One job's share of an extraction: an ark, its scp and its metadata."""

import fcntl
import logging
import os
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator, List, Optional, Tuple, Type, Union

import kaldiio
import numpy as np
from kaldiio.matio import read_token

from espnet_mvq.files.ark import read_numpy_record
from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import file_sha256, write_text
from espnet_mvq.indexes.metadata import FrameMetadata, IndexMetadata

_LOCK_TRIES = 5


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
        self.metadata.shards = {}
        self.kept: List[str] = []

    def __enter__(self) -> "ShardWriter":
        self._ark.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open_locked()
        try:
            self._begin()
        except BaseException:
            self._file.close()  # which gives the lock back
            raise
        return self

    def _begin(self) -> None:
        """Take over what can be kept, and remove what is of other settings.

        A stop between any two lines leaves the temporary ark empty, or of the settings
        that the json beside it says.
        """
        for left in self._ark.parent.glob(f"{self._ark.stem}.*.tmp[0-9]*"):
            left.unlink(missing_ok=True)  # of `write_text`, when it was killed
        finished = self._finished_before()
        if finished is not None:
            self._file.truncate(0)
            finished.save(self._json_tmp)
            with self._file:  # whose lock is held until the ark's is there
                self._ark.replace(self._ark_tmp)
                self._file = self._open_locked()
        self._lines: List[str] = []
        self._file.truncate(self._recover())
        self._file.seek(0, os.SEEK_END)
        self.metadata.save(self._json_tmp)
        for path in (self._json, self._scp):
            path.unlink(missing_ok=True)

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
                self._discard()
            return
        try:
            # Closing is what gives the lock back, so it comes last.
            with self._file:
                self.metadata.shards = {self._ark.name: file_sha256(self._ark_tmp)}
                # Vouches for the ark from its renaming to the json's writing
                self.metadata.save(self._json_tmp)
                self._ark_tmp.replace(self._ark)
                write_text(self._scp, "".join(self._lines))
                self.metadata.save(self._json)
                self._json_tmp.unlink(missing_ok=True)
        except OSError as error:
            safe = ", its utterances are kept"
            if self._resume_for is None:
                self._discard()
                safe = ""
            raise ShardError(
                f"{self._ark}: all {self.metadata.num_utterances} utterances are "
                f"written, but the shard could not be ended ({error}); make room and "
                f"run it again{safe}"
            ) from error

    def _discard(self) -> None:
        """Remove what is temporary."""
        for path in (self._ark_tmp, self._json_tmp):
            path.unlink(missing_ok=True)

    def _open_locked(self) -> BinaryIO:
        """Open the temporary ark, and refuse a second writer of this shard."""
        for _ in range(_LOCK_TRIES):
            file = self._ark_tmp.open("a+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                break
            except OSError as error:  # some network file systems have no locks
                logging.warning(f"{self._ark_tmp}: not locked ({error.strerror})")
            if self._is_temporary_ark(file):
                return file
            file.close()
        raise ShardError(
            f"{self._ark_tmp}: another process is writing this shard; wait for it, "
            "or stop it and run this again"
        )

    def _is_temporary_ark(self, file: BinaryIO) -> bool:
        """Say that a file was not renamed by another writer before it was locked."""
        try:
            there = self._ark_tmp.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(file.fileno()), there)

    def _finished_before(self) -> Optional[FrameMetadata]:
        """Return metadata that vouch, by its checksum, for an ark to go on with.

        It is one whose writer was stopped between the ark's renaming and the json's
        writing, or a finished one of the same utterances of which some were skipped.
        """
        if self._resume_for is None or not self._ark.is_file():
            return None
        found = self._same_settings(self._json)
        if self._json.exists():
            if found is None or not found.skipped or not self._scp.is_file():
                return None
            written = set(read_scp(self._scp))
            if not written <= self._resume_for <= written.union(found.skipped):
                return None
        else:
            found = self._same_settings(self._json_tmp)
        checksum = None if found is None else found.shards.get(self._ark.name)
        return found if checksum == file_sha256(self._ark) else None

    def _same_settings(self, path: Path) -> Optional[FrameMetadata]:
        """Return metadata if they are there and mean what this run's do."""
        try:
            found = type(self.metadata).load(path)
        except (FileNotFoundError, ValueError):
            return None
        return None if found.differences(self.metadata) else found

    def _recover(self) -> int:
        """Keep the whole utterances of a run that broke off; return where they end."""
        if self._resume_for is None or self._same_settings(self._json_tmp) is None:
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
            if utt_id is None:
                return
            array = read_numpy_record(file)
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
