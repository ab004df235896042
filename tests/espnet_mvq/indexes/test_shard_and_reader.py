"""Arks of codebook indexes: written by a job, read by utterance."""

import dataclasses
import hashlib
import os
import shutil

import kaldiio
import numpy as np
import pytest
from builders import index_metadata
from corpus_builders import embedding_metadata, posterior_metadata, write_shard

from espnet_mvq.files.whole_file import file_sha256
from espnet_mvq.indexes import (
    FrameReader,
    IndexMetadata,
    ShardWriter,
)
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME
from espnet_mvq.indexes.shard import finished_shard, shard_paths


@pytest.fixture
def metadata():
    return index_metadata()


def some_indexes(length):
    return np.random.randint(0, 4, (length, 2)).astype(np.uint8)


@pytest.fixture
def utterances():
    """Lengths 7, 0 and 1, and an id that is longer in bytes than in characters."""
    return {"b": some_indexes(7), "a-ü": some_indexes(0), "c": some_indexes(1)}


@pytest.fixture
def data_dir(tmp_path, metadata, utterances):
    """A folder as the combination of one shard leaves it."""
    _, scp, json_path = write_shard(tmp_path / "shards", utterances, metadata)
    shutil.copy(scp, tmp_path / SCP_NAME)
    shutil.copy(json_path, tmp_path / METADATA_NAME)
    return tmp_path


def test_round_trip(data_dir, utterances):
    reader = FrameReader(data_dir / SCP_NAME)
    assert list(reader) == list(utterances) and len(reader) == 3
    for utt_id, indexes in utterances.items():
        assert utt_id in reader
        assert reader[utt_id].dtype == np.int64
        np.testing.assert_array_equal(reader[utt_id], indexes)
    assert reader.num_missing == 0


def test_metadata_count_and_vouch_for_the_ark(data_dir, metadata):
    loaded = finished_shard(data_dir / "shards", 1)
    assert loaded == metadata
    assert (loaded.num_utterances, loaded.num_frames) == (3, 8)
    ark = shard_paths(data_dir / "shards", 1)[0]
    digest = hashlib.sha256(ark.read_bytes()).hexdigest()
    assert loaded.shards == {"codebook_indexes.1.ark": digest}
    assert file_sha256(ark) == digest


def test_ark_is_plain_kaldi(data_dir, utterances):
    """Anyone can read it in sequence too."""
    ark = shard_paths(data_dir / "shards", 1)[0]
    loaded = dict(kaldiio.load_ark(str(ark)))
    assert list(loaded) == list(utterances)
    np.testing.assert_array_equal(loaded["b"], utterances["b"])


def test_bytes_of_an_ark(tmp_path, metadata):
    indexes = {"a": [[1, 2], [3, 0]], "bb": [[3, 1]]}
    indexes = {utt_id: np.array(rows, np.uint8) for utt_id, rows in indexes.items()}
    ark, scp, _ = write_shard(tmp_path, indexes, metadata)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 2), }"

    def numpy_file(rows, content):
        """kaldiio's mark and size, then numpy's file format 1.0."""
        padded = (header % rows).ljust(117) + b"\n"
        size = bytes([10 + len(padded) + len(content)])
        return b"NPY\x01" + size + b"\x93NUMPY\x01\x00\x76\x00" + padded + content

    first = b"a " + numpy_file(2, b"\x01\x02\x03\x00")
    assert ark.read_bytes() == first + b"bb " + numpy_file(1, b"\x03\x01")
    expected = f"a {ark}:2\nbb {ark}:{len(first) + 3}\n"
    assert scp.read_text() == expected


def test_shard_that_is_made_again_is_unfinished_until_its_end(data_dir, metadata):
    with pytest.raises(ValueError):
        with ShardWriter(data_dir / "shards", 1, metadata):
            assert finished_shard(data_dir / "shards", 1) is None
            raise ValueError
    assert finished_shard(data_dir / "shards", 1) is None


@pytest.mark.parametrize("missing", range(3))
def test_shard_without_one_of_its_files_is_not_finished(data_dir, missing):
    shard_paths(data_dir / "shards", 1)[missing].unlink()
    assert finished_shard(data_dir / "shards", 1) is None


@pytest.mark.parametrize(
    "indexes",
    [np.zeros((7, 2)), np.zeros((7, 3), np.uint8), np.zeros(7, np.uint8)],
)
def test_writer_refuses_other_arrays(tmp_path, metadata, indexes):
    with pytest.raises(ValueError, match=r"utterance a: .* expected uint8 \(T, 2\)"):
        write_shard(tmp_path, {"a": indexes}, metadata)


def test_missing_utterances_are_empty_counted_and_warned_about(data_dir, caplog):
    reader = FrameReader(data_dir / SCP_NAME)
    for number in range(1, 12):
        indexes = reader[f"x{number}"]
        assert indexes.shape == (0, 2) and indexes.dtype == np.int64
    assert reader.num_missing == 11 and "x1" not in reader
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split()[0] for message in messages] == ["1", "10"]
    assert "last x10" in messages[1] and str(data_dir / SCP_NAME) in messages[1]


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_damaged_ark_is_named(data_dir, damage):
    ark = shard_paths(data_dir / "shards", 1)[0]
    content = ark.read_bytes()
    ark.write_bytes(content[:30] if damage == "truncated" else b"\0" * len(content))
    reader = FrameReader(data_dir / SCP_NAME)
    with pytest.raises(ValueError, match="utterance b in .*could not read .*1.ark:2 "):
        reader["b"]


def test_ark_that_is_gone_is_named_at_the_start(data_dir):
    shard_paths(data_dir / "shards", 1)[0].unlink()
    with pytest.raises(ValueError, match="1.ark does not exist; was its folder moved"):
        FrameReader(data_dir / SCP_NAME)


@pytest.mark.parametrize(
    "array",
    [np.zeros((7, 2), np.float32), np.zeros((7, 3), np.uint8), np.zeros(7, np.uint8)],
)
def test_reader_refuses_other_arrays(data_dir, array):
    ark = data_dir / "other.ark"
    kaldiio.save_ark(str(ark), {"a": array}, write_function="numpy")
    (data_dir / SCP_NAME).write_text(f"a {ark}:2\n")
    with pytest.raises(ValueError, match=r"utterance a in .* expected uint8 \(T, 2\)"):
        FrameReader(data_dir / SCP_NAME)["a"]


def test_arks_that_are_extracted_again_are_refused(data_dir, metadata, utterances):
    """While it goes on, and afterwards if it was with another quantizer."""
    scp = data_dir / SCP_NAME
    again = dataclasses.replace(metadata, quantizer_id="4567")
    with ShardWriter(data_dir / "shards", 1, again) as shard:
        with pytest.raises(ValueError, match="is being extracted again; let mvq.sh"):
            FrameReader(scp)
        for utt_id, indexes in utterances.items():
            shard.write(utt_id, indexes)
    with pytest.raises(ValueError, match="quantizer_id: '0123456789abcdef' and '4567'"):
        FrameReader(scp)
    json_path = write_shard(data_dir / "shards", utterances, metadata)[2]
    assert len(FrameReader(scp)) == 3
    json_path.write_text("of another program")
    assert len(FrameReader(scp)) == 3
    json_path.unlink()
    assert len(FrameReader(scp)) == 3


@pytest.fixture
def reordered(tmp_path, metadata):
    """Return an scp of 12 utterances in 2 arks that were written in another order."""
    indexes = {f"utt{n:02d}": np.full((5, 2), n % 4, np.uint8) for n in range(12)}

    def write(utt_ids):
        metadata.shards, lines = {}, []
        for job in (1, 2):
            again = dataclasses.replace(metadata)
            part = {utt_id: indexes[utt_id] for utt_id in utt_ids[job - 1 :: 2]}
            scp = write_shard(tmp_path / "shards", part, again, job)[1]
            lines.append(scp.read_text())
            metadata.shards.update(again.shards)
        return "".join(lines)

    (tmp_path / SCP_NAME).write_text(write(list(indexes)))
    metadata.save(tmp_path / METADATA_NAME)
    write(list(reversed(indexes)))
    return tmp_path / SCP_NAME


def test_arks_in_another_order_are_refused_at_the_start(reordered):
    message = "codebook_indexes.1.ark was written again since .*run mvq.sh --stage 4"
    with pytest.raises(ValueError, match=message):
        FrameReader(reordered)


def test_arks_in_another_order_are_refused_at_each_utterance(reordered):
    """Where no json says that they were written again."""
    for job in (1, 2):
        shard_paths(reordered.parent / "shards", job)[2].unlink()
    reader = FrameReader(reordered)
    assert len(reader) == 12
    for utt_id in reader:
        with pytest.raises(
            ValueError, match="got utterance utt.*mvq.sh --stage 4"
        ) as e:
            reader[utt_id]
        assert str(e.value).startswith(f"utterance {utt_id} in {reordered}: could not")


def test_arks_of_one_name_in_two_folders(data_dir, metadata):
    """The metadata tell of one of them."""
    other = dataclasses.replace(metadata)
    lines = write_shard(data_dir / "others", {"d": some_indexes(3)}, other)[1]
    with (data_dir / SCP_NAME).open("a") as scp:
        scp.write(lines.read_text())
    reader = FrameReader(data_dir / SCP_NAME)
    assert len(reader["d"]) == 3 and len(reader["b"]) == 7


def test_pieces_of_an_scp_find_the_metadata(data_dir, utterances):
    """ESPnet's --num_splits_asr cuts every scp, and leaves the json where it is."""
    from espnet2.bin.split_scps import main

    scp = data_dir / SCP_NAME
    splits = data_dir / "splits2"
    main(f"--scps {scp} --num_splits 2 --output_dir {splits}".split())
    folder = splits / SCP_NAME
    readers = [FrameReader(folder / f"split.{n}") for n in (0, 1)]
    assert sorted([*readers[0], *readers[1]]) == sorted(utterances)
    for reader in readers:
        assert reader.metadata.differences(IndexMetadata.beside(scp)) == []
        for utt_id in reader:
            np.testing.assert_array_equal(reader[utt_id], utterances[utt_id])
    assert IndexMetadata.beside(folder) == readers[0].metadata


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_reading_leaves_no_file_open(data_dir):
    reader = FrameReader(data_dir / SCP_NAME)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert sum(len(reader[utt_id]) for utt_id in reader) == 8
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_after_a_fork(data_dir, utterances):
    """Data loaders' workers read at the same time, each at its own place."""
    import multiprocessing

    reader = FrameReader(data_dir / SCP_NAME)
    names = list(utterances) * 30
    with multiprocessing.get_context("fork").Pool(3) as pool:
        for utt_id, loaded in zip(names, pool.map(reader.__getitem__, names)):
            np.testing.assert_array_equal(loaded, utterances[utt_id])


def test_reader_of_embeddings(tmp_path):
    stored = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float16)
    _, scp, _ = write_shard(tmp_path, {"a": stored}, embedding_metadata(dim=3))
    reader = FrameReader(scp)
    assert reader["a"].dtype == np.float32
    assert np.array_equal(reader["a"], stored.astype(np.float32))
    assert reader["b"].shape == (0, 3) and reader["b"].dtype == np.float32


def test_reader_of_posteriors(tmp_path):
    stored = np.array([[1, 7, 65535], [0, 3, 9000]], np.uint16)
    metadata = posterior_metadata(1, ["<blank>", "a"])
    _, scp, _ = write_shard(tmp_path, {"a": stored}, metadata)
    reader = FrameReader(scp)
    assert reader["a"].dtype == reader["b"].dtype == np.int64
    assert np.array_equal(reader["a"], stored) and reader["b"].shape == (0, 3)
