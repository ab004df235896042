"""One job's share of the codebook indexes: an ark, its scp and its metadata."""

import hashlib
from pathlib import Path
from typing import Optional, Union

import kaldiio
import numpy as np

from espnet_mvq.indexes.metadata import IndexMetadata


class ShardWriter:
    """Writes `codebook_indexes.JOB.{ark,scp,json}`; the json comes last.

    Nothing bears its final name before all of it is written, so a shard whose json is
    there is whole. Use it as a context manager; leaving it by an exception leaves no
    shard behind.

    Args:
        outdir: Folder of the shards; made if missing.
        job: Number of the job, counted from 1.
        metadata: What the indexes mean; counts and checksum are filled in.
    """

    def __init__(self, outdir: Union[str, Path], job: int, metadata: IndexMetadata):
        self._ark, self._scp, self._json = shard_paths(outdir, job)
        self.metadata = metadata
        self.metadata.num_utterances = self.metadata.num_frames = 0

    def __enter__(self) -> "ShardWriter":
        self._ark.parent.mkdir(parents=True, exist_ok=True)
        for path in (self._json, self._scp):
            path.unlink(missing_ok=True)
        self._ark_tmp = self._ark.with_suffix(".ark.tmp")
        self._file = self._ark_tmp.open("wb")
        self._lines = []
        return self

    def write(self, utt_id: str, indexes: np.ndarray) -> None:
        """Append an utterance.

        Args:
            utt_id: The utterance.
            indexes: Codebook indexes, uint8, (T, N).
        """
        try:
            self.metadata.check_indexes(indexes)
        except ValueError as error:
            raise ValueError(f"utterance {utt_id}: {error}") from error
        # Kaldi's layout, `utt_id value`; the scp points behind the utterance id.
        offset = self._file.tell() + len(utt_id.encode()) + 1
        kaldiio.save_ark(self._file, {utt_id: indexes}, write_function="numpy")
        self._lines.append(f"{utt_id} {self._ark.resolve()}:{offset}\n")
        self.metadata.num_utterances += 1
        self.metadata.num_frames += len(indexes)

    def __exit__(self, exc_type, exc_value, traceback) -> None:
        self._file.close()
        if exc_type is not None:
            self._ark_tmp.unlink(missing_ok=True)
            return
        self.metadata.shards = {self._ark.name: file_sha256(self._ark_tmp)}
        self._ark_tmp.replace(self._ark)
        temporary = self._scp.with_suffix(".scp.tmp")
        temporary.write_text("".join(self._lines), encoding="utf-8")
        temporary.replace(self._scp)
        self.metadata.save(self._json)


def shard_paths(outdir: Union[str, Path], job: int):
    """Return the paths of a shard's ark, scp and json."""
    stem = Path(outdir) / f"codebook_indexes.{job}"
    return tuple(stem.with_name(f"{stem.name}.{end}") for end in ("ark", "scp", "json"))


def finished_shard(outdir: Union[str, Path], job: int) -> Optional[IndexMetadata]:
    """Return the metadata of a whole shard, None if there is none."""
    ark, scp, json_path = shard_paths(outdir, job)
    if not (ark.is_file() and scp.is_file() and json_path.is_file()):
        return None
    return IndexMetadata.load(json_path)


def file_sha256(path: Union[str, Path]) -> str:
    """Return the sha256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
