"""Arrays of codebook indexes in HDF5 or `.npy` files, as other programs use them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Tuple, Union

import numpy as np

from espnet_mvq.files.hdf5 import (
    HDF5_ENDINGS,
    dataset_keys,
    import_h5py,
    is_dataset,
    open_hdf5,
)
from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import replace_when_whole, write_text


@dataclass(frozen=True)
class StoredIndexes:
    """Place of the codebook indexes of one utterance.

    Attributes:
        storage_type: lhotse's name of the storage, "numpy_hdf5" or "numpy_files".
        storage_path: HDF5 file, or folder of `.npy` files.
        storage_key: Dataset in the file, or file in the folder.
        origin: Manifest and cut, or file, that gave the place, for messages.
        shape: Shape of the array, (T, N), as in the manifest; None: unknown.
        frame_shift_s: Seconds between two frames; None: unknown.
        first_frame: Frame of the array where the utterance begins.
        max_frames: Frames that fit into the utterance's duration; None: no limit.
    """

    storage_type: str
    storage_path: str
    storage_key: str
    origin: str
    shape: Optional[Tuple[int, ...]] = None
    frame_shift_s: Optional[float] = None
    first_frame: int = 0
    max_frames: Optional[int] = None


def find_arrays(path: Union[str, Path]) -> Dict[str, StoredIndexes]:
    """Find codebook indexes without a manifest.

    Args:
        path: Folder with a file `UTT_ID.npy` for each utterance, at any depth; `.scp`
            of `utt_id FILE.npy` lines; or HDF5 with a dataset for each utterance.

    Returns:
        Stored indexes by utterance id.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If it is of another kind, has no arrays, or repeats an utterance.
    """
    arrays: Dict[str, StoredIndexes] = {}
    for utt_id, stored in _list_arrays(Path(path)):
        if utt_id in arrays:
            raise ValueError(
                f"{stored.origin}: utterance {utt_id} again, it is in "
                f"{arrays[utt_id].origin} too; expected each once"
            )
        arrays[utt_id] = stored
    if not arrays:
        raise ValueError(f"{path}: got no arrays, expected one for each utterance")
    return arrays


def _list_arrays(path: Path) -> Iterator[Tuple[str, StoredIndexes]]:
    """Yield utterance ids and their indexes; see `find_arrays`."""
    if path.is_dir():
        for file in sorted(path.rglob("*.npy")):
            place = str(file.parent), file.name
            yield file.stem, StoredIndexes("numpy_files", *place, origin=str(file))
    elif path.suffix == ".scp":
        for utt_id, value in read_scp(path).items():
            if not value.endswith(".npy"):
                raise ValueError(
                    f"utterance {utt_id} in {path}: got {value}, expected a .npy file"
                )
            place = str(Path(value).parent), Path(value).name
            yield utt_id, StoredIndexes("numpy_files", *place, origin=str(path))
    elif path.suffix in HDF5_ENDINGS:
        with open_hdf5(path) as file:
            for key in dataset_keys(file):
                yield key, StoredIndexes("numpy_hdf5", str(path), key, str(path))
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder of codebook indexes")
    else:
        raise ValueError(
            f"{path}: expected a folder of .npy files, .scp or "
            f"{' or '.join(HDF5_ENDINGS)}"
        )


class ArrayReader:
    """Context manager that loads stored indexes and keeps HDF5 files open."""

    def __init__(self) -> None:
        self._files: Dict[str, Any] = {}
        self._loaders = {"numpy_hdf5": self._load_hdf5, "numpy_files": self._load_npy}

    def __enter__(self) -> "ArrayReader":
        return self

    def __exit__(self, *exception: Any) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def load(self, stored: StoredIndexes) -> np.ndarray:
        """Load an utterance's array, (T, N), of any type.

        Raises:
            FileNotFoundError: If its file is missing.
            ValueError: If it is damaged, or of another storage type or shape than
                expected.
        """
        if stored.storage_type not in self._loaders:
            raise ValueError(
                f"{stored.origin}: got storage type {stored.storage_type!r}, expected "
                f"one of {', '.join(self._loaders)}; store the arrays again with "
                "lhotse's NumpyHdf5Writer or NumpyFilesWriter"
            )
        array = self._loaders[stored.storage_type](stored)
        if array.ndim != 2 or stored.shape not in (None, array.shape):
            expected = "two dimensions (T, N)" if array.ndim != 2 else stored.shape
            raise ValueError(
                f"{stored.origin}: {stored.storage_key} in {stored.storage_path} has "
                f"shape {array.shape}, expected {expected}; was it written again after "
                "the manifest?"
            )
        array = array[stored.first_frame :]
        # Teachers round differently: one more frame may begin within the utterance.
        # It does no harm, since frames are aligned by time.
        if stored.max_frames is not None and len(array) > stored.max_frames + 1:
            array = array[: stored.max_frames]
        return array

    def _load_hdf5(self, stored: StoredIndexes) -> np.ndarray:
        path, key = stored.storage_path, stored.storage_key
        if path not in self._files:
            _check_is_file(Path(path), stored.origin)
            try:
                self._files[path] = open_hdf5(path)
            except ValueError as error:
                raise ValueError(f"{stored.origin}: {error}") from error
        file = self._files[path]
        if key not in file or not is_dataset(file[key]):
            raise ValueError(
                f"{stored.origin}: {path} has no dataset {key!r}, expected the "
                "utterance's indexes there; is it the file the manifest was made with?"
            )
        try:
            return file[key][()]
        except OSError as error:
            raise ValueError(
                f"{stored.origin}: dataset {key!r} in {path} is not readable "
                f"({error}); write or copy the file again"
            ) from error

    def _load_npy(self, stored: StoredIndexes) -> np.ndarray:
        path = Path(stored.storage_path, stored.storage_key)
        _check_is_file(path, stored.origin)
        try:
            array = np.load(path, allow_pickle=False)
            if not isinstance(array, np.ndarray):  # an archive of several
                raise ValueError("got an archive of arrays, expected one array")
            return array
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(
                f"{stored.origin}: {path} is not a whole .npy file ({error}); write or "
                "copy it again"
            ) from error


def _check_is_file(path: Path, origin: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{origin}: {path}: no such file; relative places count from the folder "
            "the command is started in, or from --storage_dir"
        )


def write_hdf5(
    path: Union[str, Path], utterances: Iterable[Tuple[str, np.ndarray]]
) -> Dict[str, int]:
    """Write HDF5 with a dataset for each utterance, atomically.

    Args:
        path: File to write.
        utterances: Ids and codebook indexes, uint8, (T, N).

    Returns:
        Number of frames of each utterance.

    Raises:
        OSError: If it cannot be written.
        ValueError: If h5py is not installed, or an id cannot name a dataset.
    """
    h5py = import_h5py(path)
    num_frames: Dict[str, int] = {}
    with replace_when_whole(path) as temporary, h5py.File(temporary, "w") as file:
        for utt_id, indexes in utterances:
            try:
                file.create_dataset(utt_id, data=indexes)
            except (ValueError, TypeError) as error:
                raise ValueError(f"utterance {utt_id} in {path}: {error}") from error
            num_frames[utt_id] = len(indexes)
    return num_frames


def write_npy(
    folder: Union[str, Path], utterances: Iterable[Tuple[str, np.ndarray]]
) -> Dict[str, int]:
    """Write `UTT_ID.npy` for each utterance, and last `npy.scp`.

    Args:
        folder: Folder to write to; created if missing.
        utterances: Ids and codebook indexes, uint8, (T, N).

    Returns:
        Number of frames of each utterance.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If an id cannot name a file.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    num_frames: Dict[str, int] = {}
    for utt_id, indexes in utterances:
        if "/" in utt_id:
            raise ValueError(
                f"utterance {utt_id}: got an id with '/', expected one that can name a "
                "file; write HDF5 instead"
            )
        np.save(folder / f"{utt_id}.npy", indexes, allow_pickle=False)
        num_frames[utt_id] = len(indexes)
    lines = [f"{utt_id} {folder / utt_id}.npy\n" for utt_id in num_frames]
    write_text(folder / "npy.scp", "".join(lines))
    return num_frames


def to_uint8(
    array: np.ndarray, codebook_size: int, num_codebooks: Optional[int] = None
) -> np.ndarray:
    """Convert codebook indexes of any integer type.

    multi_quantization packs several indexes of small codebooks into a byte. They are
    unpacked if the number of columns shows that they are packed.

    Args:
        array: Codebook indexes, integer, (T, N); or packed, (T, N / indexes per byte).
        codebook_size: Values an index can take, K.
        num_codebooks: N; None: the number of columns.

    Returns:
        Codebook indexes, uint8, (T, N).

    Raises:
        ValueError: If type, shape or values do not fit.
    """
    expected = f"integers (T, {num_codebooks or 'N'}) in 0 .. {codebook_size - 1}"
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"got {array.dtype} of shape {array.shape}, expected {expected}"
        )
    columns, packed = array.shape[1], _indexes_per_byte(codebook_size)
    is_packed = packed > 1 and columns * packed == num_codebooks
    if num_codebooks not in (None, columns) and not is_packed:
        raise ValueError(f"got shape {array.shape}, expected {expected}")
    limit = codebook_size**packed if is_packed else codebook_size
    if array.size and not 0 <= array.min() <= array.max() < limit:
        raise ValueError(
            f"got values from {array.min()} to {array.max()}, expected {expected}; "
            "give the quantizer they were made with"
        )
    if is_packed:
        # The index of the first codebook is the lowest digit.
        places = codebook_size ** np.arange(packed)
        array = array[:, :, None].astype(np.int64) // places % codebook_size
        array = array.reshape(len(array), num_codebooks)
    return array.astype(np.uint8)


def _indexes_per_byte(codebook_size: int) -> int:
    """Return how many indexes multi_quantization packs into a byte: a power of two."""
    count = 1
    while 1 < codebook_size ** (2 * count) <= 256:
        count *= 2
    return count
