"""Random access to frames by utterance, as ESPnet's data loader wants it."""

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
    """Maps utterance ids to codebook indexes (T, N), or to embeddings (T, D).

    An utterance without any reads as an empty (0, N) array, so an epoch never breaks
    off on it; such look-ups are counted in `num_missing` and warned about when their
    number reaches 1, 10, 100 ...

    Args:
        scp: `codebook_indexes.scp` or `embeddings.scp`, with the json beside it.

    Raises:
        FileNotFoundError: If the scp or the metadata are missing.
        ValueError: If one of them is damaged, or speaks of arks that are not there
            any more.
    """

    def __init__(self, scp: Union[str, Path]):
        self._scp = Path(scp)
        self.metadata = read_metadata(scp)
        if isinstance(self.metadata, EmbeddingMetadata):
            self._width, self._dtype = self.metadata.dim, np.float32
        else:
            # ESPnet's collate refuses bytes.
            self._width, self._dtype = self.metadata.num_codebooks, np.int64
        self._places = read_scp(scp)
        self._check_arks()
        self.num_missing = 0

    def __getitem__(self, utt_id: str) -> np.ndarray:
        """Return indexes, int64, (T, N), or embeddings, float32, (T, D)."""
        if utt_id not in self._places:
            return self._missing(utt_id)
        place = self._places[utt_id]
        try:
            frames = read_numpy(place, utt_id)
            self.metadata.check(frames)
        except Exception as error:  # a damaged ark raises whatever its bytes provoke
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

    def _check_arks(self) -> None:
        """Refuse arks that another extraction has written since, or is writing."""
        arks = set()
        for utt_id, place in self._places.items():
            ark, _, offset = place.rpartition(":")
            if not ark or not offset.isdecimal():
                raise ValueError(
                    f"{self._scp}: utterance {utt_id}: got {place!r}, expected "
                    "FILE.ark:OFFSET; commands are not run: run mvq.sh --stage 4"
                )
            if ark not in arks and not Path(ark).is_file():
                raise ValueError(
                    f"{self._scp}: utterance {utt_id}: got {place}, but {ark} is not "
                    "there; was its folder moved? Run mvq.sh --stage 4"
                )
            arks.add(ark)
        # Two folders may have arks of one name, of which the metadata name but one.
        checksums: Dict[str, Set[str]] = {}
        for ark in sorted(arks):
            name = Path(ark).name
            written = self._described(Path(ark))
            found = "" if written is None else written.shards.get(name, "")
            checksums.setdefault(name, set()).add(found)
            if written is None:
                continue
            differences = self.metadata.differences(written)
            if differences:
                raise ValueError(
                    f"{self._scp}: {ark} was extracted again since, with another "
                    f"{'; '.join(differences)} (there second); run mvq.sh --stage 4"
                )
        for name, found in checksums.items():
            expected = self.metadata.shards.get(name)
            if expected and "" not in found and expected not in found:
                raise ValueError(
                    f"{self._scp}: {name} was written again since (another checksum "
                    "lies beside it); run mvq.sh --stage 4"
                )

    def _described(self, ark: Path) -> Optional[FrameMetadata]:
        """Return the metadata beside an ark, if any.

        Raises:
            ValueError: If the ark is being written.
        """
        path = ark.with_suffix(".json")
        if not path.is_file():
            if ark.with_suffix(".tmp.json").is_file():
                raise ValueError(
                    f"{self._scp}: {ark} is being extracted again; let mvq.sh end, "
                    "with its stage 4, before training"
                )
            return None  # the ark was copied without its json
        try:
            return type(self.metadata).load(path)
        except ValueError:
            return None  # not metadata of ours, or damaged

    def __contains__(self, utt_id: object) -> bool:
        return utt_id in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _missing(self, utt_id: str) -> np.ndarray:
        self.num_missing += 1
        if str(self.num_missing).strip("0") == "1":
            logging.warning(
                f"{self.num_missing} utterances without {self.metadata.STEM} in "
                f"{self._scp} so far, last {utt_id}: they train without this loss"
            )
        return np.zeros((0, self._width), dtype=self._dtype)
