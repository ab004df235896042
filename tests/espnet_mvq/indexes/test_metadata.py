"""The metadata beside codebook indexes and embeddings."""

import dataclasses
import json
import re

import numpy as np
import pytest
from builders import index_metadata
from corpus_builders import change_json, embedding_metadata, posterior_metadata

from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import (
    METADATA_NAME,
    SCP_NAME,
    EmbeddingMetadata,
    read_metadata,
)


@pytest.fixture
def metadata():
    return index_metadata(
        num_utterances=3,
        num_frames=21,
        encode={"beam_size": 4, "refine_passes": 4},
        shards={"codebook_indexes.1.ark": "00ff"},
        espnet_mvq_version="0.1.0",
    )


def test_round_trip(metadata, tmp_path):
    metadata.save(tmp_path / METADATA_NAME)
    assert IndexMetadata.load(tmp_path / METADATA_NAME) == metadata
    assert IndexMetadata.beside(str(tmp_path / SCP_NAME)) == metadata
    assert [path.name for path in tmp_path.iterdir()] == [METADATA_NAME]


def test_file_names_its_format_first(metadata, tmp_path):
    metadata.save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert list(content)[:2] == ["format", "version"]
    assert content["format"] == "espnet_mvq.codebook_indexes"
    assert content["version"] == 1 and content["frame_offset_samples"] == 199.5


def test_missing_file_names_the_command(tmp_path):
    message = re.escape(str(tmp_path / METADATA_NAME)) + ": no such file.*extraction"
    with pytest.raises(FileNotFoundError, match=message):
        IndexMetadata.beside(tmp_path / SCP_NAME)


def test_files_older_than_the_level_are_of_frames(metadata, tmp_path):
    path = tmp_path / "a.json"
    metadata.save(path)
    content = json.loads(path.read_text())
    del content["level"]
    path.write_text(json.dumps(content))
    assert IndexMetadata.load(path) == metadata
    path.write_text(json.dumps({**content, "level": "word"}))
    with pytest.raises(ValueError, match="got level 'word', expected frame or utter"):
        IndexMetadata.load(path)


def test_utterance_level_means_one_row(metadata):
    other = dataclasses.replace(metadata, level="utterance")
    assert metadata.differences(other) == ["level: 'frame' and 'utterance'"]
    other.check(np.zeros((1, 2), np.uint8))
    for rows in (0, 2):
        metadata.check(np.zeros((rows, 2), np.uint8))
        with pytest.raises(ValueError, match=f"got {rows} rows, expected 1"):
            other.check(np.zeros((rows, 2), np.uint8))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frame_shift_samples": 0}, "frame_shift_samples: got 0, expected a finite"),
        ({"frame_shift_samples": -320}, "got -320, expected a finite number >= 1"),
        ({"frame_shift_samples": None}, "frame_shift_samples: got None"),
        ({"frame_shift_samples": "320"}, "frame_shift_samples: got '320'"),
        ({"frame_shift_samples": np.nan}, "frame_shift_samples: got nan"),
        ({"frame_offset_samples": np.inf}, "frame_offset_samples: got inf, expected a"),
        ({"sample_rate": 0}, "sample_rate: got 0"),
        ({"layer": 1.5}, "layer: got 1.5, expected a whole number >= -1"),
        ({"num_codebooks": 0}, "num_codebooks: got 0, expected a whole number >= 1"),
        ({"num_codebooks": True}, "num_codebooks: got True"),
        (
            {"codebook_size": 257},
            "codebook_size: got 257, .* whole number from 1 to 256",
        ),
        ({"num_frames": -1}, "num_frames: got -1"),
        ({"shards": None}, "shards: got None, expected a dict"),
        ({"skipped": 3}, "skipped: got 3, expected a list"),
    ],
)
def test_impossible_values_are_refused_with_the_file(
    metadata, tmp_path, change, message
):
    path = tmp_path / "a.json"
    metadata.save(path)
    change_json(path, change)
    with pytest.raises(ValueError, match=f"a.json: not readable: .*{message}"):
        IndexMetadata.load(path)


def test_missing_fields_are_refused_by_name(tmp_path):
    content = {"format": "espnet_mvq.codebook_indexes", "version": 1}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="teacher"):
        IndexMetadata.load(tmp_path / "a.json")


@pytest.mark.parametrize("name", IndexMetadata.MEANING)
def test_differences_in_meaning(metadata, name):
    value = {"level": "utterance", "encode": {}}.get(name, "x")
    if isinstance(getattr(metadata, name), (int, float)):
        value = getattr(metadata, name) + 1
    other = dataclasses.replace(metadata, **{name: value})
    assert metadata.differences(other) == [
        f"{name}: {getattr(metadata, name)!r} and {value!r}"
    ]


def test_counts_and_shards_do_not_make_a_difference(metadata):
    other = dataclasses.replace(
        metadata, num_utterances=9, num_frames=9, shards={}, espnet_mvq_version="9"
    )
    assert metadata.differences(other) == []


ROWS, EMBEDDINGS = np.zeros((3, 2), np.uint8), np.zeros((3, 5), np.float16)


def test_arrays_of_the_metadata_are_accepted(metadata):
    for length in (3, 0):
        metadata.check(ROWS[:length])
    embedding_metadata(dim=5).check(EMBEDDINGS)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((3, 3), np.uint8), "got uint8 of shape \\(3, 3\\), expected uint8"),
        (ROWS.astype(np.int64), "got int64 of shape"),
        (ROWS + 4, "got index 4, expected 0 to 3"),
        (EMBEDDINGS.astype(np.float32), "expected float16 \\(T, 5\\)"),
        (EMBEDDINGS[:, 1:], "got float16 of shape \\(3, 4\\)"),
        (EMBEDDINGS + np.float16(np.inf), "got NaN or infinity in float16"),
    ],
)
def test_other_arrays_are_refused(metadata, array, message):
    if np.issubdtype(array.dtype, np.floating):
        metadata = embedding_metadata(dim=5)
    with pytest.raises(ValueError, match=message):
        metadata.check(array)


def test_metadata_of_another_kind_are_refused(metadata, tmp_path):
    metadata.save(tmp_path / "a.json")
    with pytest.raises(ValueError, match="expected 'espnet_mvq.embeddings'"):
        EmbeddingMetadata.load(tmp_path / "a.json")


def test_metadata_of_posteriors(tmp_path):
    metadata = posterior_metadata(2, ["<blank>", "a", "b"])
    metadata.save(tmp_path / "posteriors.json")
    assert read_metadata(tmp_path / "posteriors.scp") == metadata
    assert (metadata.vocab_size, metadata.width) == (3, 5)
    array = np.array([[2, 0, 100, 5000, 65535]], np.uint16)
    metadata.check(array)
    with pytest.raises(ValueError, match="got uint16 of shape \\(1, 4\\), expected u"):
        metadata.check(array[:, 1:])
    with pytest.raises(ValueError, match="got token 3, expected 0 to 2"):
        metadata.check(array + np.array([1, 0, 0, 0, 0], np.uint16))
    with pytest.raises(ValueError, match="top_k: got 4 of 3 tokens, expected at most"):
        posterior_metadata(4, ["<blank>", "a", "b"])
    with pytest.raises(ValueError, match="level 'utterance', expected frame for post"):
        dataclasses.replace(metadata, level="utterance")


def test_scp_of_another_name_has_its_own_metadata(metadata, tmp_path):
    metadata.save(tmp_path / "codebook_indexes_layer6.json")
    loaded = IndexMetadata.beside(tmp_path / "codebook_indexes_layer6.scp")
    assert loaded == metadata
