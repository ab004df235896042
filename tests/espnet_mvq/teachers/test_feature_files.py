"""Reading embeddings of other programs: every form, and how bad ones are refused."""

import sys

import kaldiio
import numpy as np
import pytest
from corpus_builders import write_features

from espnet_mvq.teachers import feature_files as module
from espnet_mvq.teachers.feature_files import read_features


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {
        f"utt{n}": generator.standard_normal((5 + n, 4)).astype(np.float32)
        for n in range(3)
    }


@pytest.fixture
def ark_scp(tmp_path, arrays):
    return write_features(tmp_path, arrays)


@pytest.fixture
def npy_scp(tmp_path, arrays):
    """Return a function that writes arrays and an scp of them."""

    def write(arrays=arrays):
        return write_features(tmp_path, arrays, "npy")

    return write


@pytest.fixture
def hdf5(tmp_path, arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "feats.h5", "w") as file:
        for utt_id, array in reversed(arrays.items()):
            file[f"part/{utt_id}"] = array
    return tmp_path / "feats.h5"


def assert_equal(actual, expected):
    assert [utt_id for utt_id, _ in actual] == list(expected)
    for (_, array), other in zip(actual, expected.values()):
        assert array.dtype == other.dtype
        np.testing.assert_array_equal(array, other)


def test_arks(ark_scp, arrays):
    assert_equal(list(read_features(ark_scp)), arrays)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_files(npy_scp, arrays, dtype):
    arrays = {utt_id: array.astype(dtype) for utt_id, array in arrays.items()}
    assert_equal(list(read_features(npy_scp(arrays))), arrays)


def test_hdf5(hdf5, arrays):
    expected = {f"part/{utt_id}": array for utt_id, array in arrays.items()}
    assert_equal(list(read_features(hdf5)), expected)


def test_one_npy_stays_on_the_disk(npy_scp, arrays, tmp_path):
    npy_scp()
    actual = list(read_features(str(tmp_path / "utt1.npy")))
    assert_equal(actual, {"utt1": arrays["utt1"]})
    assert isinstance(actual[0][1], np.memmap)


def test_empty_utterance_is_one_too(ark_scp, npy_scp, arrays):
    arrays["utt1"] = arrays["utt1"][:0]
    assert_equal(list(read_features(npy_scp(arrays))), arrays)


def test_utterances_are_read_one_by_one(ark_scp, arrays):
    """A missing array does not keep those before it from being used."""
    ark_scp.write_text(ark_scp.read_text().splitlines(True)[0] + "utt1 none.npy\n")
    actual = read_features(ark_scp)
    assert next(actual)[0] == "utt0"
    with pytest.raises(FileNotFoundError, match="utterance utt1 in none.npy: no such"):
        next(actual)


def test_bad_line_is_refused_before_reading(ark_scp):
    ark_scp.write_text(ark_scp.read_text().splitlines(True)[0] + "utt1\n")
    with pytest.raises(ValueError, match=r"feats.scp:2: got 'utt1', expected 'utt_id"):
        next(read_features(ark_scp))


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros(4, np.float32), r"got shape \(4,\), expected \(T, D\)"),
        (np.zeros((2, 3, 4), np.float32), r"got shape \(2, 3, 4\), expected \(T, D\)"),
        (np.zeros((3, 0), np.float32), r"got shape \(3, 0\), expected \(T, D\)"),
        (np.zeros((3, 4), np.int16), "got int16, expected a float array"),
        (np.zeros((3, 4), np.complex64), "got complex64, expected a float array"),
        (np.zeros((3, 5), np.float32), "got dimension 5, but utterance utt0 has 4"),
        (np.array([[1.0] * 4, [np.nan] * 4]), "got NaN or infinity in frame 1 "),
        (np.array([[1.0] * 4, [np.inf] * 4]), "got NaN or infinity in frame 1 "),
    ],
)
def test_bad_arrays_name_the_utterance(npy_scp, arrays, array, message):
    arrays["utt1"] = array
    with pytest.raises(ValueError, match=f"utterance utt1 in .*utt1.npy: {message}"):
        list(read_features(npy_scp(arrays)))


def test_later_pieces_are_checked(npy_scp, arrays, monkeypatch):
    monkeypatch.setattr(module, "_CHECKED_VALUES", 8)
    arrays["utt2"][6, 3] = np.nan
    with pytest.raises(ValueError, match="utterance utt2 .* frame 6 "):
        list(read_features(npy_scp(arrays)))


@pytest.mark.parametrize("cut", [10, -3])
def test_truncated_ark(ark_scp, tmp_path, cut):
    ark = tmp_path / "feats.ark"
    ark.write_bytes(ark.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"utterance utt\d in .*feats.ark:.*readable"):
        list(read_features(ark_scp))


def test_truncated_or_pickled_npy(npy_scp, arrays, tmp_path):
    scp = npy_scp()
    (tmp_path / "utt0.npy").write_bytes((tmp_path / "utt0.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="utterance utt0 in .*utt0.npy: not readable"):
        list(read_features(scp))
    np.save(tmp_path / "utt0.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="utterance utt0 in .*utt0.npy: not readable"):
        list(read_features(scp))


def test_audio_in_an_ark_is_no_embedding(tmp_path):
    ark, scp = tmp_path / "wav.ark", tmp_path / "wav.scp"
    with kaldiio.WriteHelper(f"ark,scp:{ark},{scp}") as writer:
        writer("utt", (16000, np.zeros(100, np.int16)))
    with pytest.raises(ValueError, match="utterance utt in .*got audio, expected a"):
        list(read_features(scp))


@pytest.mark.parametrize(
    "line, error, message",
    [
        ("utt9 none.npy", FileNotFoundError, "utterance utt9 .* no such file none.npy"),
        ("utt9 none.ark:7", FileNotFoundError, "utt9 .* no such file none.ark;"),
        ("utt9 copy-feats |", ValueError, "expected a .npy file or ARK:OFFSET"),
        ("utt9 feats.ark", ValueError, "expected a .npy file or ARK:OFFSET"),
        ("utt0 none.npy", ValueError, "feats.scp:4: got utterance utt0 again"),
    ],
)
def test_bad_lines(ark_scp, line, error, message):
    ark_scp.write_text(ark_scp.read_text() + line + "\n")
    with pytest.raises(error, match=message):
        list(read_features(ark_scp))


def test_file_that_is_missing_empty_or_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="features .*none.scp: no such file"):
        read_features(tmp_path / "none.scp")
    (tmp_path / "empty.scp").touch()
    with pytest.raises(ValueError, match="empty.scp: got no utterances"):
        list(read_features(tmp_path / "empty.scp"))
    with pytest.raises(ValueError, match="got the ending '.pt', expected one of .npy"):
        read_features(tmp_path / "feats.pt")
    with pytest.raises(ValueError, match="got the ending ''"):
        read_features(tmp_path)


def test_damaged_hdf5(hdf5):
    hdf5.write_bytes(hdf5.read_bytes()[:100])
    with pytest.raises(ValueError, match="feats.h5: not a whole HDF5 file"):
        list(read_features(hdf5))


def test_hdf5_with_a_bad_array(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "feats.hdf5", "w") as file:
        file["utt0"] = 1.0
    with pytest.raises(ValueError, match=r"utterance utt0 .*hdf5: got shape \(\)"):
        list(read_features(tmp_path / "feats.hdf5"))


def test_hdf5_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "feats.h5").touch()
    with pytest.raises(
        ValueError, match="needs h5py, which cannot be .*pip install h5py"
    ):
        list(read_features(tmp_path / "feats.h5"))
