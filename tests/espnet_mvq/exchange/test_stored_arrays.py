"""Arrays of codebook indexes in HDF5 and .npy: found, loaded, checked, written."""

import numpy as np
import pytest

from espnet_mvq.exchange.stored_arrays import (
    ArrayReader,
    StoredIndexes,
    find_arrays,
    to_uint8,
    write_hdf5,
    write_npy,
)


@pytest.fixture
def arrays():
    lengths = {"b": 5, "sp0.9-a": 1, "empty": 0}
    return {
        utt_id: np.random.randint(0, 256, (length, 3)).astype(np.uint8)
        for utt_id, length in lengths.items()
    }


@pytest.fixture
def hdf5(tmp_path, arrays):
    write_hdf5(tmp_path / "a.h5", arrays.items())
    return tmp_path / "a.h5"


def load(stored):
    with ArrayReader() as reader:
        return reader.load(stored)


def assert_equal(stored_arrays, arrays):
    assert sorted(stored_arrays) == sorted(arrays)
    for utt_id, stored in stored_arrays.items():
        array = load(stored)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, arrays[utt_id])


def test_hdf5_round_trip(hdf5, arrays, tmp_path):
    assert_equal(find_arrays(hdf5), arrays)
    assert list(tmp_path.iterdir()) == [hdf5]


def test_hdf5_groups_are_no_utterances(tmp_path):
    write_hdf5(tmp_path / "a.h5", [("x/y", np.zeros((2, 3), np.uint8))])
    assert list(find_arrays(str(tmp_path / "a.h5"))) == ["x/y"]


@pytest.mark.parametrize("form", ["folder", "scp"])
def test_npy_round_trip(tmp_path, arrays, form):
    write_npy(tmp_path / "npy", arrays.items())
    path = tmp_path / "npy" / ("npy.scp" if form == "scp" else "")
    assert_equal(find_arrays(path), arrays)


def test_failed_writing_leaves_the_old_file(hdf5):
    before = hdf5.read_bytes()
    twice = [("a", np.zeros((1, 3), np.uint8))] * 2
    with pytest.raises(ValueError, match="utterance a in .*a.h5"):
        write_hdf5(hdf5, twice)
    assert hdf5.read_bytes() == before and len(list(hdf5.parent.iterdir())) == 1


def test_npy_files_cannot_have_a_slash(tmp_path):
    with pytest.raises(ValueError, match="utterance a/b: .*write HDF5 instead"):
        write_npy(tmp_path, [("a/b", np.zeros((1, 3), np.uint8))])


def test_folder_with_an_utterance_twice(tmp_path, arrays):
    for name in ("x", "y"):
        write_npy(tmp_path / name, arrays.items())
    with pytest.raises(ValueError, match="y/b.npy: utterance b again.*x/b.npy"):
        find_arrays(tmp_path)


def test_nothing_to_find(tmp_path):
    with pytest.raises(ValueError, match="got no arrays"):
        find_arrays(tmp_path)
    for name in ("none", "none.scp", "none.h5"):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
            find_arrays(tmp_path / name)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match="a.txt: expected a folder of .npy files"):
        find_arrays(tmp_path / "a.txt")
    (tmp_path / "a.scp").write_text("a a.ark:3\n")
    with pytest.raises(ValueError, match="utterance a in .*a.scp: got a.ark:3"):
        find_arrays(tmp_path / "a.scp")


@pytest.mark.parametrize(
    "first, most, rows",
    [(0, 5, [0, 1, 2, 3, 4]), (0, 4, [0, 1, 2, 3, 4]), (0, 3, [0, 1, 2]), (4, 9, [4])],
)
def test_part_of_an_array(hdf5, arrays, first, most, rows):
    """One frame more than the duration holds is kept: teachers round differently."""
    stored = StoredIndexes(
        "numpy_hdf5", str(hdf5), "b", "m:1", first_frame=first, max_frames=most
    )
    np.testing.assert_array_equal(load(stored), arrays["b"][rows])


@pytest.mark.parametrize(
    "change, kind, message",
    [
        ({"storage_type": "lilcom_chunky"}, ValueError, "m:1: .*'lilcom_chunky'"),
        ({"storage_key": "x"}, ValueError, "m:1: .*a.h5 has no dataset 'x'"),
        ({"storage_path": "none.h5"}, FileNotFoundError, "m:1: none.h5: no such file"),
        ({"shape": (5, 4)}, ValueError, r"shape \(5, 3\), expected \(5, 4\)"),
        ({"storage_type": "numpy_files"}, FileNotFoundError, "m:1: .*a.h5/b: no such"),
    ],
)
def test_unreadable_arrays_are_named(hdf5, change, kind, message):
    stored = dict(storage_path=str(hdf5), storage_key="b", origin="m:1")
    stored = StoredIndexes(**{"storage_type": "numpy_hdf5", **stored, **change})
    with pytest.raises(kind, match=message):
        load(stored)


def test_damaged_files_are_named(hdf5, tmp_path):
    hdf5.write_bytes(hdf5.read_bytes()[:300])
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(ValueError, match="m:1: .*a.h5: not a whole HDF5 file"):
        load(StoredIndexes("numpy_hdf5", str(hdf5), "b", "m:1"))
    with pytest.raises(ValueError, match="m:1: .*b.npy is not a whole .npy file"):
        load(StoredIndexes("numpy_files", str(tmp_path), "b.npy", "m:1"))
    with (tmp_path / "b.npy").open("wb") as file:
        np.savez(file, np.zeros((1, 3), np.uint8))
    with pytest.raises(ValueError, match="m:1: .*b.npy .*got an archive of arrays"):
        load(StoredIndexes("numpy_files", str(tmp_path), "b.npy", "m:1"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_any_integer_type_is_converted(dtype):
    indexes = to_uint8(np.array([[0, 255]], dtype=dtype), 256, 2)
    assert indexes.dtype == np.uint8 and indexes.tolist() == [[0, 255]]


@pytest.mark.parametrize(
    "array, message",
    [
        ([[0, 256]], "got values from 0 to 256, expected integers .* in 0 .. 255"),
        ([[-1, 0]], "got values from -1 to 0"),
        ([[0, 0, 0]], r"got shape \(1, 3\), expected integers \(T, 2\)"),
        ([[0.0, 1.0]], r"got float64 of shape \(1, 2\)"),
        ([0, 1], r"of shape \(2,\)"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        to_uint8(np.array(array), 256, 2)


@pytest.mark.parametrize("codebook_size, per_byte", [(16, 2), (4, 4), (2, 8)])
def test_bytes_that_multi_quantization_packs(codebook_size, per_byte):
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("multi_quantization")
    quantizer = quantization.Quantizer(4, codebook_size, 8)
    frames = torch.randn(6, 4)
    # 0 passes: that library's refinement fails for codebooks this small
    packed = quantizer.encode(frames, 0).numpy()
    assert packed.shape == (6, 8 // per_byte) and packed.dtype == np.uint8
    expected = quantizer.encode(frames, 0, as_bytes=False)
    np.testing.assert_array_equal(to_uint8(packed, codebook_size, 8), expected)


def test_packed_bytes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="got values from 81 to 81"):
        to_uint8(np.array([[81]]), 3, 4)
    assert to_uint8(np.array([[80]]), 3, 4).tolist() == [[2, 2, 2, 2]]
    assert to_uint8(np.array([[0, 0]]), 1, 2).tolist() == [[0, 0]]
