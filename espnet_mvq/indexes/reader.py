"""Random access to frames by utterance, as ESPnet's data loader wants it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Iterator, Union

import kaldiio
import numpy as np

from espnet_mvq.files.scp import read_scp
from espnet_mvq.indexes.metadata import EmbeddingMetadata, read_metadata


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
            frames = kaldiio.load_mat(place)
            self.metadata.check(frames)
        except Exception as error:  # a damaged ark raises whatever its bytes provoke
            raise ValueError(
                f"utterance {utt_id} in {self._scp}: could not read {place} "
                f"({type(error).__name__}: {error}); run the extraction again"
            ) from error
        return frames.astype(self._dtype)

    def _check_arks(self) -> None:
        """Refuse arks that another extraction has written since, or is writing."""
        arks = {place.rpartition(":")[0] for place in self._places.values()}
        for ark in sorted(ark for ark in arks if ark):
            described = Path(ark).with_suffix(".json")
            if not described.is_file():
                if Path(ark).with_suffix(".tmp.json").is_file():
                    raise ValueError(
                        f"{self._scp}: {ark} is being extracted again; let mvq.sh end, "
                        "with its stage 4, before training"
                    )
                continue  # moved here alone
            try:
                written = type(self.metadata).load(described)
            except ValueError:
                continue  # of another program
            differences = self.metadata.differences(written)
            if differences:
                raise ValueError(
                    f"{self._scp}: {ark} was extracted again since, with another "
                    f"{'; '.join(differences)} (there second); run mvq.sh --stage 4"
                )

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
