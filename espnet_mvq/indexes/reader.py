"""Random access to frames by utterance id, for ESPnet's data loader."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Dict, Iterator, Optional, Set, Union

import numpy as np

from espnet_mvq.files.ark import OtherUtteranceError, read_numpy
from espnet_mvq.files.scp import read_scp
from espnet_mvq.indexes.metadata import (
    EmbeddingMetadata,
    FrameMetadata,
    read_metadata,
)


class FrameReader(Mapping):
    """Mapping from utterance ids to arrays: indexes (T, N) or others of `KINDS`.

    An utterance without an array reads as an empty one, (0, N), so that it does not
    stop an epoch. These look-ups are counted in `num_missing`; a warning is logged when
    the number reaches 1, 10, 100 ...

    Args:
        scp: `codebook_indexes.scp`, `embeddings.scp` or `posteriors.scp`, with its
            json.

    Raises:
        FileNotFoundError: If the scp or its metadata are missing.
        ValueError: If one of them is damaged, or their arks are missing, being written
            or written again since.
    """

    def __init__(self, scp: Union[str, Path]):
        self._scp = Path(scp)
        self.metadata = read_metadata(scp)
        # ESPnet's collate function does not accept uint8 and uint16.
        is_float = isinstance(self.metadata, EmbeddingMetadata)
        self._dtype = np.float32 if is_float else np.int64
        self._places = read_scp(scp)
        self._check_checksums(self._find_arks())
        self.num_missing = 0

    def __getitem__(self, utt_id: str) -> np.ndarray:
        """Return embeddings, float32, (T, D), or others, int64, (T, width)."""
        if utt_id not in self._places:
            return self._missing(utt_id)
        place = self._places[utt_id]
        try:
            frames = read_numpy(place, utt_id)
            self.metadata.check(frames)
        except Exception as error:  # a damaged ark raises errors of many kinds
            remedy = "the extraction again"
            if isinstance(error, OtherUtteranceError):
                remedy = (
                    "mvq.sh --stage 4 if the arks were written again since, the "
                    "extraction if the utterance ids changed"
                )
            raise ValueError(
                f"utterance {utt_id} in {self._scp}: could not read {place} "
                f"({type(error).__name__}: {error}); run {remedy}"
            ) from error
        return frames.astype(self._dtype)

    def __contains__(self, utt_id: object) -> bool:
        return utt_id in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _missing(self, utt_id: str) -> np.ndarray:
        """Return an empty array, and count it."""
        self.num_missing += 1
        if str(self.num_missing).strip("0") == "1":
            logging.warning(
                f"{self.num_missing} utterances without {self.metadata.STEM} in "
                f"{self._scp} so far, last {utt_id}: they train without this loss"
            )
        return np.zeros((0, self.metadata.width), dtype=self._dtype)

    def _find_arks(self) -> Set[str]:
        """Return the arks of all utterances, all of which exist."""
        arks: Set[str] = set()
        for utt_id, place in self._places.items():
            ark, _, offset = place.rpartition(":")
            if not ark or not offset.isdecimal():
                raise ValueError(
                    f"{self._scp}: utterance {utt_id}: got {place!r}, expected "
                    "FILE.ark:OFFSET; commands are not run: run mvq.sh --stage 4"
                )
            if ark not in arks and not Path(ark).is_file():
                raise ValueError(
                    f"{self._scp}: utterance {utt_id}: got {place}, but {ark} does "
                    "not exist; was its folder moved? Run mvq.sh --stage 4"
                )
            arks.add(ark)
        return arks

    def _check_checksums(self, arks: Set[str]) -> None:
        """Refuse arks that another extraction has written since, or is writing."""
        # Arks in two folders may have the same name, for which the metadata have one
        # checksum: one of the arks must have it.
        checksums: Dict[str, Set[Optional[str]]] = {}
        for ark in map(Path, sorted(arks)):
            shard = self._load_shard_metadata(ark)
            checksum = shard.shards.get(ark.name) if shard else None
            checksums.setdefault(ark.name, set()).add(checksum)
            differences = self.metadata.differences(shard) if shard else []
            if differences:
                raise ValueError(
                    f"{self._scp}: {ark} was extracted again since, with other "
                    f"settings: {'; '.join(differences)}; run mvq.sh --stage 4"
                )
        for name, known in checksums.items():
            expected = self.metadata.shards.get(name)
            if expected and None not in known and expected not in known:
                raise ValueError(
                    f"{self._scp}: {name} was written again since (the json beside "
                    "it has another checksum); run mvq.sh --stage 4"
                )

    def _load_shard_metadata(self, ark: Path) -> Optional[FrameMetadata]:
        """Load the metadata beside an ark; None if they are missing or damaged."""
        path = ark.with_suffix(".json")
        if path.is_file():
            try:
                return type(self.metadata).load(path)
            except ValueError:
                return None
        if ark.with_suffix(".tmp.json").is_file():
            raise ValueError(
                f"{self._scp}: {ark} is being extracted again; let mvq.sh end, "
                "with its stage 4, before training"
            )
        return None
