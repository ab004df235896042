"""The metadata beside codebook indexes, and two-column files."""

import dataclasses
import json
import re

import pytest

from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import MEANING, METADATA_NAME, SCP_NAME, write_text
from espnet_mvq.indexes.scp import read_scp


@pytest.fixture
def metadata():
    return IndexMetadata(
        teacher="s3prl/fbank@abc",
        layer=1,
        quantizer_id="0123456789abcdef",
        num_codebooks=2,
        codebook_size=4,
        sample_rate=16000,
        frame_shift_samples=320,
        frame_offset_samples=199.5,
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


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "other"}, "got format 'other'"),
        ({"version": 2}, "got version 2, expected at most 1; install a newer"),
        ({"format": None}, "got format None"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_foreign_and_newer_files_are_refused(metadata, tmp_path, change, message):
    path = tmp_path / "a.json"
    metadata.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        IndexMetadata.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1', "3", '"text"'])
def test_damaged_files_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="a.json: not readable"):
        IndexMetadata.load(tmp_path / "a.json")


def test_missing_file_says_what_makes_it(tmp_path):
    message = re.escape(str(tmp_path / METADATA_NAME)) + ": no such file.*extraction"
    with pytest.raises(FileNotFoundError, match=message):
        IndexMetadata.beside(tmp_path / SCP_NAME)


def test_missing_fields_are_refused_by_name(tmp_path):
    content = {"format": "espnet_mvq.codebook_indexes", "version": 1}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="teacher"):
        IndexMetadata.load(tmp_path / "a.json")


@pytest.mark.parametrize("name", MEANING)
def test_differences_in_meaning_are_told(metadata, name):
    other = dataclasses.replace(metadata, **{name: "x"})
    assert metadata.differences(other) == [
        f"{name}: {getattr(metadata, name)!r} and 'x'"
    ]


def test_counts_and_shards_do_not_make_a_difference(metadata):
    other = dataclasses.replace(
        metadata, num_utterances=9, num_frames=9, shards={}, espnet_mvq_version="9"
    )
    assert metadata.differences(other) == []


def test_write_text_replaces_the_whole_file(tmp_path):
    for text in ("first, which is longer\n", "é\n"):
        write_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_scp_keeps_order_and_spaces_in_values(tmp_path):
    (tmp_path / "a.scp").write_text("b x.ark:3\na  sox in.wav -t wav - |\n")
    table = read_scp(tmp_path / "a.scp")
    assert list(table.items()) == [("b", "x.ark:3"), ("a", "sox in.wav -t wav - |")]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a x\nb\n", r"a\.scp:2: got 'b', expected 'utt_id value'"),
        ("a x\n\nb y\n", r"a\.scp:2: got ''"),
        ("a x\nb y\na z\n", r"a\.scp:3: utterance a again"),
    ],
)
def test_scp_errors_name_file_and_line(tmp_path, text, message):
    (tmp_path / "a.scp").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_scp(tmp_path / "a.scp")


def test_missing_scp(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.scp: no such file"):
        read_scp(tmp_path / "none.scp")
