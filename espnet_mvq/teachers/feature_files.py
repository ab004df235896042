"""Reading teacher embeddings that were written by other programs."""

import json
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple, Union

import numpy as np

from espnet_mvq.files.ark import OtherUtteranceError, read_matrix
from espnet_mvq.files.hdf5 import HDF5_ENDINGS, dataset_keys, open_hdf5
from espnet_mvq.files.scp import read_scp

_ARK_PLACE = re.compile(r":\d+$")
_OUR_FORMAT = "espnet_mvq.embeddings"  # of what mvq.sh --target embeddings writes
_CHECKED_VALUES = 2**22  # values looked at at once: a memory map stays on the disk
_NO_UTTERANCES = "features {path}: got no utterances, expected at least one"


def read_features(path: Union[str, Path]) -> Iterator[Tuple[str, np.ndarray]]:
    """Read one utterance's embeddings after the other.

    Args:
        path: One of
            `NAME.npy`: all frames in one array (F, D), one "utterance" NAME; it is
            memory-mapped, never read as a whole;
            `NAME.scp`: lines `utt_id place`, where place is a `.npy` file or
            `ARK:OFFSET` as Kaldi writes matrices;
            `NAME.h5` or `NAME.hdf5`: a dataset (T, D) for each utterance, needs h5py.

    Returns:
        Iterator of utterance ids and embeddings, float as stored, (T, D), in the
        file's order (HDF5: sorted).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind; or, when that utterance is reached,
            if its array is damaged, not float (T, D), of another D than those before,
            or holds NaN or infinity.

    Example:
        >>> for utt_id, embeddings in read_features("dump/feats.scp"):  # doctest: +SKIP
        ...     print(utt_id, embeddings.shape)
    """
    path = _existing(path)
    return _checked(path, _READERS[path.suffix](path))


class FeatureFile:
    """Embeddings of a file, found by their utterance.

    Args:
        path: As of `read_features`. Arrays are read when they are asked for.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind, damaged, or has no utterances.

    Attributes:
        utt_ids: The utterances, in the file's order (HDF5: sorted).
    """

    def __init__(self, path: Union[str, Path]):
        self.path = _existing(path)
        self._is_ours = bool(said_beside(self.path))
        if self.path.suffix in HDF5_ENDINGS:
            self._file = open_hdf5(self.path)
            self._places = dict.fromkeys(dataset_keys(self._file), str(self.path))
        elif self.path.suffix == ".scp":
            self._places = read_scp(self.path)
        else:
            self._places = {self.path.stem: str(self.path)}
        if not self._places:
            raise ValueError(_NO_UTTERANCES.format(path=path))
        self.utt_ids = list(self._places)

    def __contains__(self, utt_id: str) -> bool:
        return utt_id in self._places

    def load(self, utt_id: str) -> np.ndarray:
        """Load the embeddings of one utterance, float as stored, (T, D).

        Raises:
            KeyError: If there is no such utterance.
            FileNotFoundError: If the file that its line names is not there.
            ValueError: If its array is damaged, not float (T, D), or holds NaN or
                infinity.
        """
        place = self._places[utt_id]
        if self.path.suffix in HDF5_ENDINGS:
            array = _read_dataset(self._file, utt_id, place)
        else:
            array = _load(utt_id, place, self._is_ours)
        name = f"utterance {utt_id} in {place}"
        _check_shape(name, array)
        _check_finite(name, array)
        return array


def said_beside(path: Path) -> Dict[str, Any]:
    """Return what an `embeddings.json` beside a file says of its frames, if any."""
    try:
        said = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    of_ours = isinstance(said, dict) and said.get("format") == _OUR_FORMAT
    return said if of_ours else {}


def _existing(path: Union[str, Path]) -> Path:
    """Return the path of a file that is there and of a kind we read."""
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(
            f"features {path}: got the ending {path.suffix!r}, expected one of "
            f"{', '.join(_READERS)}"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"features {path}: no such file; expected teacher embeddings"
        )
    return path


def _checked(
    path: Path, utterances: Iterator[Tuple[str, str, np.ndarray]]
) -> Iterator[Tuple[str, np.ndarray]]:
    """Pass on (utt_id, array) of (utt_id, place, array), all of one dimension."""
    first = None
    for utt_id, place, array in utterances:
        name = f"utterance {utt_id} in {place}"
        _check_shape(name, array)
        if first is None:
            first = utt_id, array.shape[1]
        elif array.shape[1] != first[1]:
            raise ValueError(
                f"{name}: got dimension {array.shape[1]}, but utterance {first[0]} has "
                f"{first[1]}; expected embeddings of one teacher and layer"
            )
        _check_finite(name, array)
        yield utt_id, array
    if first is None:
        raise ValueError(_NO_UTTERANCES.format(path=path))


def _check_shape(name: str, array: Any) -> None:
    """Refuse what is not float (T, D)."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        got = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name}: got {got}, expected a float array (T, D)")
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"{name}: got shape {array.shape}, expected (T, D): frames, dimension"
        )


def _check_finite(name: str, array: np.ndarray) -> None:
    """Refuse NaN and infinity in an array (T, D)."""
    step = max(1, _CHECKED_VALUES // array.shape[1])
    for start in range(0, len(array), step):
        finite = np.isfinite(array[start : start + step]).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{name}: got NaN or infinity in frame {start + int(finite.argmin())} "
                "(counted from 0); expected finite embeddings, write them again"
            )


def _read_npy(path: Path) -> Iterator[Tuple[str, str, np.ndarray]]:
    yield path.stem, str(path), _load(path.stem, str(path))


def _read_scp(path: Path) -> Iterator[Tuple[str, str, np.ndarray]]:
    for utt_id, place in read_scp(path).items():
        yield utt_id, place, _load(utt_id, place, bool(said_beside(path)))


def _load(utt_id: str, place: str, is_ours: bool = False) -> np.ndarray:
    """Load the array of one utterance from a `.npy` file or `ARK:OFFSET`.

    Ids in others' arks may be of before a data folder was copied, with a prefix say;
    in ours, another id tells of an ark that was written again since.
    """
    name = f"utterance {utt_id} in {place}"
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
        return read_matrix(place, utt_id if is_ours else None)
    except OtherUtteranceError as error:
        raise ValueError(
            f"{name}: {error}; the ark was written again since: run mvq.sh --stage 4"
        ) from error
    except Exception as error:  # numpy's and kaldiio's, by kind of damage
        raise ValueError(
            f"{name}: not readable ({type(error).__name__}: {error}); expected a whole "
            "array, write or copy it again"
        ) from error


def _read_hdf5(path: Path) -> Iterator[Tuple[str, str, np.ndarray]]:
    with open_hdf5(path) as file:
        for utt_id in dataset_keys(file):
            yield utt_id, str(path), _read_dataset(file, utt_id, str(path))


def _read_dataset(file: Any, utt_id: str, place: str) -> np.ndarray:
    """Read one dataset of an HDF5 file."""
    try:
        return np.asarray(file[utt_id])
    except OSError as error:
        raise ValueError(
            f"utterance {utt_id} in {place}: not readable ({error}); write or copy the "
            "file again"
        ) from error


_READERS: Dict[str, Callable[[Path], Iterator[Tuple[str, str, np.ndarray]]]] = {
    ".npy": _read_npy,
    ".scp": _read_scp,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
}
