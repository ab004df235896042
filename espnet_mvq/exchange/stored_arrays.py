"""Arrays of codebook indexes in files that are not ours: HDF5 and `.npy`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Tuple, Union

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
    """Where the codebook indexes of one utterance are.

    Attributes:
        storage_type: lhotse's name of the storage, "numpy_hdf5" or "numpy_files".
        storage_path: HDF5 file, or folder of `.npy` files.
        storage_key: Dataset in the file, or file in the folder.
        origin: What told of them, for messages (manifest and line, or file).
        shape: Of the array as the manifest says it, (T, N); None: not said.
        frame_shift_s: Seconds between two frames; None: not said.
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
    """Find codebook indexes that no manifest tells of.

    Args:
        path: Folder with a file `UTT_ID.npy` for each utterance (at any depth), `.scp`
            of such files (`utt_id place`), or HDF5 with a dataset for each.

    Returns:
        Stored indexes by utterance id.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is of another kind, or an utterance comes twice.
    """
    path = Path(path)
    found: Dict[str, StoredIndexes] = {}
    if path.is_dir():
        for file in sorted(path.rglob("*.npy")):
            if file.stem in found:
                raise ValueError(
                    f"{file}: utterance {file.stem} again, it is in "
                    f"{found[file.stem].origin} too; expected each once"
                )
            found[file.stem] = _npy(file, str(file))
    elif path.suffix == ".scp":
        for utt_id, place in read_scp(path).items():
            if not place.endswith(".npy"):
                raise ValueError(
                    f"utterance {utt_id} in {path}: got {place}, expected a .npy file"
                )
            found[utt_id] = _npy(Path(place), str(path))
    elif path.suffix in HDF5_ENDINGS:
        with open_hdf5(path) as file:
            keys = dataset_keys(file)
        for key in keys:
            found[key] = StoredIndexes("numpy_hdf5", str(path), key, str(path))
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder of codebook indexes")
    else:
        raise ValueError(
            f"{path}: expected a folder of .npy files, .scp or "
            f"{' or '.join(HDF5_ENDINGS)}"
        )
    if not found:
        raise ValueError(f"{path}: got no arrays, expected one for each utterance")
    return found


class ArrayReader:
    """Loads stored indexes; HDF5 files stay open until the context manager ends."""

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
        """Load an utterance's array, (T, N), of the type it is stored in.

        Raises:
            FileNotFoundError: If its file is not there.
            ValueError: If it is in a storage we do not read, damaged, or of another
                shape than its manifest says.
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
        # A frame that begins within the utterance may end after it: teachers differ in
        # how they round. Our alignment is by time, so that frame does no harm.
        if stored.max_frames is not None and len(array) > stored.max_frames + 1:
            array = array[: stored.max_frames]
        return array

    def _load_hdf5(self, stored: StoredIndexes) -> np.ndarray:
        path, key = stored.storage_path, stored.storage_key
        if path not in self._files:
            _check_is_file(Path(path), f"{stored.origin}: ")
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
        _check_is_file(path, f"{stored.origin}: ")
        try:
            array = np.load(path, allow_pickle=False)
            if not isinstance(array, np.ndarray):  # a zip file of several
                raise ValueError("got an archive of arrays, expected one array")
            return array
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(
                f"{stored.origin}: {path} is not a whole .npy file ({error}); write or "
                "copy it again"
            ) from error


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
    """Check indexes of any integer type and convert them.

    multi_quantization packs the indexes of small codebooks, several into a byte. They
    are taken apart where the number of columns says that they are packed.

    Args:
        array: Codebook indexes, integer, (T, N); packed (T, N / how many in a byte).
        codebook_size: Values an index can take, K.
        num_codebooks: N; None: as many as the array has columns.

    Returns:
        Codebook indexes, uint8, (T, N).

    Raises:
        ValueError: Saying what was got and expected.
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
        # The first codebook's index is the lowest digit
        places = codebook_size ** np.arange(packed)
        array = array[:, :, None].astype(np.int64) // places % codebook_size
        array = array.reshape(len(array), num_codebooks)
    return array.astype(np.uint8)


def _indexes_per_byte(codebook_size: int) -> int:
    """Return how many indexes multi_quantization puts into a byte: a power of two."""
    count = 1
    while 1 < codebook_size ** (2 * count) <= 256:
        count *= 2
    return count


def _npy(path: Path, origin: str) -> StoredIndexes:
    return StoredIndexes("numpy_files", str(path.parent), path.name, origin)


def _check_is_file(path: Path, before: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{before}{path}: no such file; relative places count from the folder the "
            "command is started in, or from --storage_dir"
        )
