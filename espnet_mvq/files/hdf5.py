"""HDF5 with a dataset for each utterance; h5py is an optional dependency."""

from pathlib import Path
from typing import Any, List, Union

HDF5_ENDINGS = (".h5", ".hdf5")


def import_h5py(path: Union[str, Path]) -> Any:
    """Import h5py to read or write a file.

    Raises:
        ValueError: If h5py is not installed; names the file.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(
            f"{path}: HDF5 needs h5py, which cannot be imported ({error}); "
            "pip install h5py"
        ) from error
    return h5py


def open_hdf5(path: Union[str, Path]) -> Any:
    """Open an HDF5 file for reading.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or h5py is not installed.
    """
    h5py = import_h5py(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"{path}: not a whole HDF5 file ({error}); write or copy it again"
        ) from error


def is_dataset(item: Any) -> bool:
    """Whether an item of an HDF5 file is a dataset and not a group."""
    return hasattr(item, "shape")


def dataset_keys(file: Any) -> List[str]:
    """Return the sorted names of all datasets; those in groups are `group/name`."""
    keys: List[str] = []
    file.visititems(lambda key, item: keys.append(key) if is_dataset(item) else None)
    return keys
