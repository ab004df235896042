"""The command that hands codebook indexes to other programs, and their way back."""

import dataclasses
import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from builders import index_metadata
from corpus_builders import embedding_metadata, write_shard, write_table

from espnet_mvq.bin.export_indexes import main
from espnet_mvq.bin.import_indexes import main as import_indexes
from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME
from espnet_mvq.indexes.shard import shard_paths


@pytest.fixture
def ours(tmp_path):
    """A data folder with indexes of 3 utterances, one of them empty."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    metadata = index_metadata(frame_offset_samples=0.0, encode={"beam_size": 8})
    lengths = {"b": 7, "a-é": 0, "sp0.9-c": 5}
    arrays = {
        utt_id: np.random.randint(0, 4, (length, 2)).astype(np.uint8)
        for utt_id, length in lengths.items()
    }
    ark, scp, _ = write_shard(data_dir / "codebook_indexes", arrays, metadata)
    (data_dir / SCP_NAME).write_text(scp.read_text())
    metadata.save(data_dir / METADATA_NAME)
    places = {"b": "b.flac", "a-é": "sox a.wav -t wav - |", "sp0.9-c": "c.ark:17"}
    write_table(data_dir / "wav.scp", places)
    num_samples = {utt_id: 320 * length + 79 for utt_id, length in lengths.items()}
    write_table(data_dir / "utt2num_samples", num_samples)
    return SimpleNamespace(dir=data_dir, ark=ark, arrays=arrays, metadata=metadata)


@pytest.fixture
def options(ours):
    return ["--scp", str(ours.dir / SCP_NAME)]


def read_cuts(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_hdf5_holds_each_utterance(ours, options, tmp_path):
    import h5py

    main([*options, "--hdf5", str(tmp_path / "new" / "a.h5")])
    with h5py.File(tmp_path / "new" / "a.h5") as file:
        assert sorted(file) == sorted(ours.arrays)
        for utt_id, array in ours.arrays.items():
            assert file[utt_id].dtype == np.uint8
            np.testing.assert_array_equal(file[utt_id], array)
    metadata = IndexMetadata.load(tmp_path / "new" / "a.json")
    assert metadata.differences(ours.metadata) == [] and metadata.shards == {}
    assert (metadata.num_utterances, metadata.num_frames) == (3, 12)


def test_npy_files_and_their_scp(ours, options, tmp_path):
    main([*options, "--npy_dir", str(tmp_path / "npy")])
    lines = (tmp_path / "npy" / "npy.scp").read_text().splitlines()
    assert [line.split()[0] for line in lines] == list(ours.arrays)
    for line in lines:
        utt_id, place = line.split()
        array = np.load(place)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, ours.arrays[utt_id])


def test_embeddings_are_refused(tmp_path, ends_with_error):
    embeddings = {"u": np.zeros((3, 2), np.float16)}
    _, scp, _ = write_shard(tmp_path, embeddings, embedding_metadata(dim=2))
    words = ["--scp", str(scp), "--npy_dir", str(tmp_path / "npy")]
    assert "got embeddings, expected codebook" in ends_with_error(main, words)
    assert not (tmp_path / "npy").exists()


def test_indexes_of_utterances_stay_such(ours, tmp_path):
    """There and back; their one row is not measured by the speech."""
    metadata = dataclasses.replace(ours.metadata, level="utterance")
    indexes = dict.fromkeys(ours.arrays, np.ones((1, 2), np.uint8))
    _, scp, _ = write_shard(tmp_path / "utterances", indexes, metadata)
    main(["--scp", str(scp), "--npy_dir", str(tmp_path / "npy")])
    words = ["--data_dir", ours.dir, "--arrays", tmp_path / "npy"]
    words += ["--metadata", tmp_path / "npy" / METADATA_NAME]
    import_indexes([str(word) for word in words])
    assert IndexMetadata.load(ours.dir / METADATA_NAME).level == "utterance"


@pytest.mark.parametrize("target", ["--hdf5", "--npy_dir"])
@pytest.mark.parametrize("by", ["manifest", "arrays"])
@pytest.mark.parametrize("with_recordings", [False, True])
def test_export_and_import_give_the_same_bytes(
    ours, options, tmp_path, target, by, with_recordings
):
    path = tmp_path / ("a.h5" if target == "--hdf5" else "npy")
    manifest = tmp_path / "cuts.jsonl.gz"
    recordings = ["--data_dir", str(ours.dir)] if with_recordings else []
    main([*options, target, str(path), "--manifest", str(manifest), *recordings])
    back = tmp_path / "back"
    back.mkdir()
    for name in ("wav.scp", "utt2num_samples"):
        (back / name).write_bytes((ours.dir / name).read_bytes())
    metadata = path.with_suffix(".json") if target == "--hdf5" else path / METADATA_NAME
    source = ["--manifests", manifest] if by == "manifest" else ["--arrays", path]
    words = ["--data_dir", back, *source, "--metadata", metadata]
    import_indexes([str(word) for word in words])
    ark = shard_paths(back / "codebook_indexes", 1)[0]
    assert ark.read_bytes() == ours.ark.read_bytes()
    loaded = IndexMetadata.load(back / METADATA_NAME)
    assert loaded.differences(ours.metadata) == []
    assert loaded.shards == ours.metadata.shards


def test_manifest_has_recordings_that_lhotse_can_read(ours, options, tmp_path, caplog):
    manifest = tmp_path / "cuts.jsonl.gz"
    words = ["--hdf5", str(tmp_path / "a.h5"), "--manifest", str(manifest)]
    main([*options, *words, "--data_dir", str(ours.dir)])
    first, second, third = read_cuts(manifest)
    assert first == {
        "id": "b",
        "start": 0,
        "duration": 0.1449375,
        "channel": 0,
        "supervisions": [],
        "recording": {
            "id": "b",
            "sources": [{"type": "file", "channels": [0], "source": "b.flac"}],
            "sampling_rate": 16000,
            "num_samples": 2319,
            "duration": 0.1449375,
            "channel_ids": [0],
        },
        "custom": {
            "codebook_indexes": {
                "array": {
                    "storage_type": "numpy_hdf5",
                    "storage_path": str(tmp_path / "a.h5"),
                    "storage_key": "b",
                    "shape": [7, 2],
                },
                "temporal_dim": 0,
                "frame_shift": 0.02,
                "start": 0,
            }
        },
        "type": "MonoCut",
    }
    assert second["recording"]["sources"][0]["type"] == "command"
    assert "recording" not in third
    assert "1 cuts get no recording" in caplog.text and "sp0.9-c" in caplog.text


def test_utterances_that_the_data_folder_lacks(
    ours, options, tmp_path, ends_with_error
):
    path = ours.dir / "utt2num_samples"
    path.write_text(path.read_text().replace("b ", "x "))
    words = ["--manifest", str(tmp_path / "c.jsonl.gz"), "--data_dir", str(ours.dir)]
    words += ["--hdf5", str(tmp_path / "a.h5")]
    assert "1 of 3 utterances" in ends_with_error(main, [*options, *words])
    assert not (tmp_path / "a.h5").exists()


@pytest.mark.parametrize("number", ["x", "-4"])
def test_bad_number_of_samples_is_named(
    ours, options, tmp_path, ends_with_error, number
):
    path = ours.dir / "utt2num_samples"
    path.write_text(f"b {number}\na-é 79\nsp0.9-c 1679\n")
    words = ["--manifest", str(tmp_path / "c.jsonl.gz"), "--data_dir", str(ours.dir)]
    error = ends_with_error(main, [*options, "--hdf5", str(tmp_path / "a.h5"), *words])
    assert f"{path}: utterance b: got '{number}', expected a whole number" in error


def test_damaged_ark_leaves_no_file(ours, options, tmp_path, ends_with_error):
    ours.ark.write_bytes(ours.ark.read_bytes()[:-3])
    error = ends_with_error(main, [*options, "--hdf5", str(tmp_path / "a.h5")])
    assert "utterance sp0.9-c in" in error and "could not read" in error
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--hdf5", "a.hdf"], "--hdf5: got a.hdf, expected the ending .h5"),
        (["--npy_dir", "a", "--manifest", "a.json"], "expected the ending .jsonl.gz"),
        (["--npy_dir", "a", "--data_dir", "b"], "only a --manifest has recordings"),
        (["--npy_dir", "a", "--hdf5", "b.h5"], "not allowed with"),
    ],
)
def test_wrong_options(options, words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*options, *words])
    assert ended.value.code == 2 and message in capsys.readouterr().err
