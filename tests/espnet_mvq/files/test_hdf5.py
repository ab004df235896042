"""Opening HDF5 files and finding the arrays in them."""

import h5py
import numpy as np
import pytest

from espnet_mvq.files.hdf5 import dataset_keys, open_hdf5


def test_arrays_in_groups(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for key in ("b", "group/c", "a"):
            file[key] = np.zeros(3)
    with open_hdf5(tmp_path / "a.h5") as file:
        assert dataset_keys(file) == ["a", "b", "group/c"]
        with pytest.raises(ValueError):
            file["d"] = 1  # read only


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.h5: no such file"):
        open_hdf5(tmp_path / "none.h5")
    (tmp_path / "a.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="a.h5: not a whole HDF5 file"):
        open_hdf5(tmp_path / "a.h5")
