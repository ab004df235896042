"""Reading teacher embeddings that other programs have written."""

import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import numpy as np

from espnet_mvq.files.ark import OtherUtteranceError, read_matrix
from espnet_mvq.files.hdf5 import HDF5_ENDINGS, dataset_keys, open_hdf5
from espnet_mvq.files.scp import read_scp

_ENDINGS = (".npy", ".scp", *HDF5_ENDINGS)
_ARK_PLACE = re.compile(r":\d+$")
_OUR_FORMAT = "espnet_mvq.embeddings"  # written by mvq.sh --target embeddings
_CHECKED_VALUES = 2**22  # values checked at once: a memory map stays on the disk


def read_features(path: Union[str, Path]) -> Iterator[Tuple[str, np.ndarray]]:
    """Read the embeddings of a file, one utterance after the other.

    Args:
        path: See `FeatureFile`.

    Returns:
        Iterator of utterance ids and embeddings, float as stored, (T, D), in the
        file's order (HDF5: sorted).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind, damaged, or has no utterances; or,
            when that utterance is reached, if its array is damaged, not float (T, D),
            of another D than those before, or contains NaN or infinity.

    Example:
        >>> for utt_id, embeddings in read_features("dump/feats.scp"):  # doctest: +SKIP
        ...     print(utt_id, embeddings.shape)
    """
    return _read_all(FeatureFile(path))


def _read_all(features: "FeatureFile") -> Iterator[Tuple[str, np.ndarray]]:
    """Yield the utterances of a file; refuse embeddings of another dimension."""
    first, dim = next(iter(features.places)), None
    for utt_id in features.places:
        array = features.load(utt_id)
        dim = dim or array.shape[1]
        if array.shape[1] != dim:
            raise ValueError(
                f"utterance {utt_id} in {features.places[utt_id]}: got dimension "
                f"{array.shape[1]}, but utterance {first} has {dim}; expected "
                "embeddings of one teacher and layer"
            )
        yield utt_id, array


class FeatureFile:
    """Embeddings of a file, looked up by utterance.

    Args:
        path: One of
            `NAME.npy`: all frames in one array (F, D), one "utterance" NAME; it is
            memory-mapped, never read as a whole;
            `NAME.scp`: lines `utt_id place`, where place is a `.npy` file or
            `ARK:OFFSET` as Kaldi writes matrices;
            `NAME.h5` or `NAME.hdf5`: a dataset (T, D) for each utterance, needs h5py.
            Arrays are read when they are asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind, damaged, or has no utterances.

    Attributes:
        places: File or `ARK:OFFSET` of each utterance, in the file's order (HDF5:
            sorted).
    """

    def __init__(self, path: Union[str, Path]):
        self.path = Path(path)
        if self.path.suffix not in _ENDINGS:
            raise ValueError(
                f"features {path}: got the ending {self.path.suffix!r}, expected one "
                f"of {', '.join(_ENDINGS)}"
            )
        if not self.path.is_file():
            raise FileNotFoundError(
                f"features {path}: no such file; expected teacher embeddings"
            )
        self._is_ours = bool(read_embeddings_json(self.path))
        self._is_hdf5 = self.path.suffix in HDF5_ENDINGS
        if self._is_hdf5:
            self._file = open_hdf5(self.path)
            self.places = dict.fromkeys(dataset_keys(self._file), str(self.path))
        elif self.path.suffix == ".scp":
            self.places = read_scp(self.path)
        else:
            self.places = {self.path.stem: str(self.path)}
        if not self.places:
            raise ValueError(
                f"features {path}: got no utterances, expected at least one"
            )

    def load(self, utt_id: str) -> np.ndarray:
        """Load the embeddings of one utterance, float as stored, (T, D).

        Raises:
            KeyError: If there is no such utterance.
            FileNotFoundError: If its line names a file that does not exist.
            ValueError: If its array is damaged, not float (T, D), or contains NaN or
                infinity.
        """
        place = self.places[utt_id]
        name = f"utterance {utt_id} in {place}"
        if self._is_hdf5:
            array = _load_dataset(name, self._file, utt_id)
        else:
            array = _load_array(name, place, utt_id if self._is_ours else None)
        _check_array(name, array)
        return array


def read_embeddings_json(path: Path) -> Dict[str, Any]:
    """Read the `embeddings.json` beside a file of ours; empty if there is none."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(content, dict) and content.get("format") == _OUR_FORMAT
    return content if is_ours else {}


def _load_array(name: str, place: str, ark_utt_id: Optional[str]) -> np.ndarray:
    """Load an array from a `.npy` file or `ARK:OFFSET`.

    Args:
        name: Utterance and place, for messages.
        place: `FILE.npy` or `ARK:OFFSET`.
        ark_utt_id: Id that the ark must have there, None: any. Ids in arks of other
            programs may be older than those of a copied data folder; in ours, another
            id means that the ark was written again since.
    """
    is_npy = place.endswith(".npy")
    if not is_npy and not _ARK_PLACE.search(place):
        raise ValueError(
            f"{name}: expected a .npy file or ARK:OFFSET; write the features into files"
        )
    file = Path(place if is_npy else _ARK_PLACE.sub("", place))
    if not file.is_file():
        raise FileNotFoundError(
            f"{name}: no such file {file}; relative places count from the folder the "
            "command is started in"
        )
    try:
        if is_npy:
            return np.load(place, mmap_mode="r", allow_pickle=False)
        return read_matrix(place, ark_utt_id)
    except OtherUtteranceError as error:
        raise ValueError(
            f"{name}: {error}; the ark was written again since: run mvq.sh --stage 4"
        ) from error
    except Exception as error:  # numpy and kaldiio raise many kinds
        raise ValueError(
            f"{name}: not readable ({type(error).__name__}: {error}); expected a whole "
            "array, write or copy it again"
        ) from error


def _load_dataset(name: str, file: Any, utt_id: str) -> np.ndarray:
    """Load one dataset of an HDF5 file."""
    try:
        return np.asarray(file[utt_id])
    except OSError as error:
        raise ValueError(
            f"{name}: not readable ({error}); write or copy the file again"
        ) from error


def _check_array(name: str, array: Any) -> None:
    """Refuse anything but finite floats (T, D)."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        got = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name}: got {got}, expected a float array (T, D)")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"{name}: got shape {array.shape}, expected (T, D): frames, dimension"
        )
    step = max(1, _CHECKED_VALUES // array.shape[1])
    for start in range(0, len(array), step):
        finite = np.isfinite(array[start : start + step]).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{name}: got NaN or infinity in frame {start + int(finite.argmin())} "
                "(counted from 0); expected finite embeddings, write them again"
            )
