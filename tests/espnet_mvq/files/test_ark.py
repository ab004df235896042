"""Records of arks: reading them, without running or unpickling anything."""

import io
import pickle

import kaldiio
import numpy as np
import pytest
import soundfile
from builders import index_metadata
from corpus_builders import MakeFile, write_shard

from espnet_mvq.bin.combine_indexes import main as combine_indexes
from espnet_mvq.bin.export_indexes import main as export_indexes
from espnet_mvq.bin.import_indexes import main as import_indexes
from espnet_mvq.files.ark import (
    OtherUtteranceError,
    read_audio,
    read_matrix,
    read_numpy,
)
from espnet_mvq.files.whole_file import file_sha256
from espnet_mvq.indexes import FrameReader, IndexMetadata
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME
from espnet_mvq.indexes.shard import shard_paths
from espnet_mvq.teachers import audio, build_teacher

INDEXES = np.arange(8, dtype=np.uint8).reshape(4, 2)


def write_record(path, record, utt_id=b"utt "):
    path.write_bytes(utt_id + record)
    return f"{path}:{len(utt_id)}"


def numpy_record(array):
    file = io.BytesIO()
    kaldiio.save_ark(file, {"": array}, write_function="numpy")
    return file.getvalue()[1:]


@pytest.mark.parametrize(
    "array", [INDEXES, np.zeros((0, 2), np.uint8), np.ones((3, 5), np.float16)]
)
def test_numpy_records(tmp_path, array):
    place = write_record(tmp_path / "a.ark", numpy_record(array))
    for utt_id in ("utt", None):
        loaded = read_numpy(place, utt_id)
        assert loaded.dtype == array.dtype
        np.testing.assert_array_equal(loaded, array)
    np.testing.assert_array_equal(read_matrix(place), array)


@pytest.mark.parametrize("options", [{}, {"text": True}, {"compression_method": 2}])
def test_matrices_of_kaldi(tmp_path, options):
    array = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    ark, scp = str(tmp_path / "a.ark"), str(tmp_path / "a.scp")
    kaldiio.save_ark(ark, {"utt": array}, scp=scp, **options)
    place = (tmp_path / "a.scp").read_text().split()[1]
    np.testing.assert_allclose(read_matrix(place, "utt"), array, atol=0.02)
    with pytest.raises(ValueError, match="got bytes that .*, expected a numpy array"):
        read_numpy(place)


@pytest.mark.parametrize("options", [{}, {"write_function": "soundfile"}])
def test_audio(tmp_path, options):
    samples = np.arange(-5, 5, dtype=np.int16)
    ark, scp = str(tmp_path / "a.ark"), str(tmp_path / "a.scp")
    kaldiio.save_ark(ark, {"utt": (16000, samples)}, scp=scp, **options)
    rate, loaded = read_audio((tmp_path / "a.scp").read_text().split()[1])
    assert rate == 16000 and loaded.shape == samples.shape


def test_utterance_before_the_offset_must_be_the_one_looked_for(tmp_path):
    ark = tmp_path / "a.ark"
    kaldiio.save_ark(
        str(ark), {u: INDEXES for u in ("a", "utt", "b")}, write_function="numpy"
    )
    places = {u: ark.read_bytes().index(b"%s NPY" % u.encode()) for u in ("a", "b")}
    for utt_id, start in places.items():
        with pytest.raises(
            OtherUtteranceError, match=f"utt there, got utterance {utt_id}"
        ):
            read_numpy(f"{ark}:{start + 2}", "utt")
        # An id that ends as another does
        with pytest.raises(OtherUtteranceError, match=f"got utterance {utt_id}"):
            read_numpy(f"{ark}:{start + 2}", f"x{utt_id}")
    with pytest.raises(OtherUtteranceError, match="got a place inside utterance a"):
        read_numpy(f"{ark}:30", "utt")
    with pytest.raises(OtherUtteranceError, match="got no utterance"):
        read_numpy(f"{ark}:99999", "utt")


@pytest.mark.parametrize(
    "record, message",
    [
        (b"", "got bytes that begin with b''"),
        (b"NPY", "record|empty|bytes"),
        (
            b"NPY\x08" + b"\xff" * 8,
            "the record has 0 of its 18446744073709551615 bytes",
        ),
        (numpy_record(INDEXES)[:-1], r"the record has \d+ of its \d+ bytes"),
        (b"NPY\x02\x00\x00", "."),
        (b"RIFF....", "got audio, expected a numpy array"),
    ],
)
def test_damaged_records(tmp_path, record, message):
    with pytest.raises(ValueError, match=message):
        read_numpy(write_record(tmp_path / "a.ark", record), "utt")


@pytest.fixture
def corpus(tmp_path):
    """A data folder, and a shard with the indexes of its one utterance."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    soundfile.write(data_dir / "a.wav", np.zeros(1600), 16000)
    (data_dir / "wav.scp").write_text(f"utt {data_dir}/a.wav\n")
    metadata = index_metadata(codebook_size=8)
    write_shard(tmp_path / "shards", {"utt": INDEXES}, metadata)
    metadata.save(data_dir / METADATA_NAME)
    return data_dir


def by_reader(data_dir, place):
    (data_dir / SCP_NAME).write_text(f"utt {place}\n")
    FrameReader(data_dir / SCP_NAME)["utt"]


def by_combine_indexes(data_dir, place):
    shards = data_dir.parent / "shards"
    ark, scp, described = shard_paths(shards, 1)
    scp.write_text(f"utt {place}\n")
    other = data_dir.parent / "a.ark"
    if other.is_file():
        # It reads no other ark than that of the shard.
        ark.write_bytes(other.read_bytes())
        metadata = IndexMetadata.load(described)
        metadata.shards = {ark.name: file_sha256(ark)}
        metadata.save(described)
    combine_indexes(["--data_dir", str(data_dir), "--shards", str(shards), "--nj", "1"])


def by_export_indexes(data_dir, place):
    (data_dir / SCP_NAME).write_text(f"utt {place}\n")
    out = str(data_dir / "npy")
    export_indexes(["--scp", str(data_dir / SCP_NAME), "--npy_dir", out])


def by_import_indexes(data_dir, place):
    (data_dir / "arrays.scp").write_text(f"utt {place}\n")
    words = f"--data_dir {data_dir} --arrays {data_dir}/arrays.scp --quantizer_id q"
    words += " --teacher t --layer 1 --frame_shift_samples 320"
    import_indexes(words.split())


def by_teacher(data_dir, place):
    (data_dir / "feats.scp").write_text(f"utt {place}\n")
    build_teacher(f"feats/{data_dir}/feats.scp", -1, frame_shift_samples=320)


def by_audio(data_dir, place):
    audio.read_audio("utt", place, 16000)


@pytest.mark.parametrize(
    "read",
    [
        by_reader,
        by_combine_indexes,
        by_export_indexes,
        by_import_indexes,
        by_teacher,
        by_audio,
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "pipe in front", "pickle", "npy", "-", "-:3"])
def test_nothing_is_run_or_unpickled(corpus, tmp_path, kind, read, caplog, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    marker, place = tmp_path / "marker", kind
    if kind == "pipe":
        place = f"touch {marker} |"
    elif kind == "pipe in front":
        place = f"| touch {marker}"
    elif kind == "pickle":
        record = b"PKL" + pickle.dumps(MakeFile(marker))
        place = write_record(tmp_path / "a.ark", record)
    elif kind == "npy":
        place = str(tmp_path / "utt.npy")
        np.save(place, np.array([[MakeFile(marker)]], dtype=object), allow_pickle=True)
    with pytest.raises((ValueError, OSError, SystemExit)) as caught:
        read(corpus, place)
    assert not marker.exists()
    messages = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    messages = messages or [str(caught.value)]
    assert len(messages) == 1 and "\n" not in messages[0]
    assert "utt" in messages[0]
    assert place in messages[0] or read is by_combine_indexes
