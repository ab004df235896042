"""Files of teacher losses: reading, refused lines, and the json beside them."""

import json

import numpy as np
import pytest

from espnet_mvq.indexes.teacher_losses import (
    TeacherLossMetadata,
    format_teacher_losses,
    read_teacher_losses,
)


@pytest.fixture
def metadata():
    return TeacherLossMetadata(teacher="t@0", loss="ctc", label="token", inputs="00")


def test_round_trip_in_the_order_of_the_file(tmp_path):
    losses = {"b": 1.5, "a": 1 / 3, "c": 0.0, "d": 123456.789, "e": 1e-12}
    (tmp_path / "teacher_loss").write_text(format_teacher_losses(losses))
    loaded = read_teacher_losses(tmp_path / "teacher_loss")
    assert list(loaded) == list(losses)
    assert np.array_equal(
        np.float32(list(loaded.values())), np.float32(list(losses.values()))
    )


def test_lines_are_kaldis():
    assert format_teacher_losses({"u-1": 0.25, "u-2": 2 / 3}) == (
        "u-1 0.25\nu-2 0.666666667\n"
    )


def test_espnet_reads_the_same_numbers(tmp_path):
    from espnet2.fileio.read_text import load_num_sequence_text

    path = tmp_path / "teacher_loss"
    path.write_text(format_teacher_losses({"b": 1 / 7, "a": 30000.125}))
    loaded = load_num_sequence_text(path, loader_type="text_float")
    assert loaded == {u: [value] for u, value in read_teacher_losses(path).items()}


@pytest.mark.parametrize(
    "line, message",
    [
        ("bad nan", "utterance bad has 'nan', expected one finite number"),
        ("bad -inf", "utterance bad has '-inf', expected one finite"),
        ("bad 1e999", "utterance bad has '1e999', expected one finite"),
        ("bad 1,5", "utterance bad has '1,5', expected one finite"),
        ("bad 1.0 2.0", "utterance bad has '1.0 2.0', expected one finite"),
        ("bad", "teacher_loss:2: got 'bad', expected 'utt_id value'"),
        ("", "teacher_loss:2: got '', expected 'utt_id value'"),
        ("good 2.0", "teacher_loss:2: got utterance good again"),
    ],
)
def test_bad_lines_are_refused_by_name(tmp_path, line, message):
    path = tmp_path / "teacher_loss"
    path.write_text(f"good 1.0\n{line}\nother 3.0\n")
    with pytest.raises(ValueError) as error:
        read_teacher_losses(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_no_file_and_no_utterance(tmp_path):
    with pytest.raises(FileNotFoundError, match="espnet_mvq.bin.teacher_loss"):
        read_teacher_losses(tmp_path / "none")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ValueError, match="empty: got no utterance"):
        read_teacher_losses(tmp_path / "empty")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_statistics_are_numpys(metadata, count):
    losses = np.random.default_rng(0).gamma(2.0, size=count).tolist()
    metadata.describe(losses, 99)
    assert (metadata.num_utterances, metadata.num_labels) == (count, 99)
    assert metadata.mean == pytest.approx(np.mean(losses))
    assert metadata.standard_deviation == pytest.approx(np.std(losses))
    assert metadata.quartiles == pytest.approx(np.percentile(losses, [25, 50, 75]))
    assert (metadata.minimum, metadata.maximum) == (min(losses), max(losses))


def test_metadata_round_trip(metadata, tmp_path):
    metadata.describe([1.0, 2.0], 7)
    metadata.skipped = ["x"]
    path = metadata.path_beside(tmp_path / "loss.v1")
    assert path == tmp_path / "loss.v1.json"
    path.write_text(metadata.to_json())
    assert TeacherLossMetadata.load(path) == metadata
    content = json.loads(path.read_text())
    assert (content["format"], content["version"]) == ("espnet_mvq.teacher_loss", 1)
    assert content["unit"] == "nats per label"


def test_missing_metadata_name_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="run it again"):
        TeacherLossMetadata.load(tmp_path / "none.json")
