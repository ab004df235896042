"""Cut manifests of lhotse: layout, writing, refused manifests."""

import gzip
import json
import re

import pytest

from espnet_mvq.exchange.lhotse import (
    espnet_speed_id,
    make_cut,
    make_recording,
    read_manifests,
    write_manifest,
)
from espnet_mvq.exchange.stored_arrays import StoredIndexes

# As lhotse 1.33 writes a cut of icefall's recipe
LINE = (
    '{"id": "84-1-0000-7", "start": 0, "duration": 1.0, "channel": 0, "supervisions": '
    '[{"id": "84-1-0000", "recording_id": "rec", "start": 0, "duration": 1.0, '
    '"channel": 0}], "recording": {"id": "rec", "sources": [{"type": "file", '
    '"channels": [0], "source": "a.flac"}], "sampling_rate": 16000, "num_samples": '
    '16000, "duration": 1.0, "channel_ids": [0]}, "custom": {"codebook_indexes": '
    '{"array": {"storage_type": "numpy_hdf5", "storage_path": "exp/clean-100.h5", '
    '"storage_key": "84-1-0000-7", "shape": [49, 8]}, "temporal_dim": 0, '
    '"frame_shift": 0.02, "start": 0}}, "type": "MonoCut"}\n'
)


@pytest.fixture
def cut():
    return json.loads(LINE)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes cuts and returns the manifest."""

    def write(*cuts, name="cuts.jsonl.gz"):
        path = tmp_path / name
        opener = gzip.open if name.endswith(".gz") else open
        with opener(path, "wt") as file:
            file.write("".join(json.dumps(cut) + "\n" for cut in cuts))
        return path

    return write


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "cuts.jsonl"])
def test_manifest_of_lhotse(write, cut, name):
    path = write(cut, name=name)
    assert read_manifests([str(path)]) == {
        "84-1-0000": StoredIndexes(
            storage_type="numpy_hdf5",
            storage_path="exp/clean-100.h5",
            storage_key="84-1-0000-7",
            origin=f"{path}:1: cut 84-1-0000-7",
            shape=(49, 8),
            frame_shift_s=0.02,
            first_frame=0,
            max_frames=50,
        )
    }


@pytest.mark.parametrize(
    "id_source, utt_id",
    [("supervision", "84-1-0000"), ("cut", "84-1-0000-7"), ("recording", "rec")],
)
def test_source_of_the_utterance_id(write, cut, id_source, utt_id):
    assert list(read_manifests([write(cut)], id_source)) == [utt_id]


def test_cut_without_supervision_and_recording_gives_its_own_id(write, cut):
    """As the cuts that icefall writes during extraction."""
    cut["supervisions"] = []
    del cut["recording"]
    path = write(cut)
    assert list(read_manifests([path])) == ["84-1-0000-7"]
    with pytest.raises(ValueError, match="cuts.jsonl.gz:1: .*got no recording"):
        read_manifests([path], "recording")


def test_several_supervisions_give_no_id(write, cut):
    cut["supervisions"] *= 2
    path = write(cut)
    with pytest.raises(ValueError, match="got 2 supervisions, expected one"):
        read_manifests([path])
    assert list(read_manifests([path], "cut")) == ["84-1-0000-7"]


def test_relative_storage_paths_count_from_storage_dir(write, cut):
    (stored,) = read_manifests([write(cut)], storage_dir="/asr").values()
    assert stored.storage_path == "/asr/exp/clean-100.h5"
    cut["custom"]["codebook_indexes"]["array"]["storage_path"] = "/there/a.h5"
    (stored,) = read_manifests([write(cut)], storage_dir="/asr").values()
    assert stored.storage_path == "/there/a.h5"


def test_cut_of_a_part_of_its_recording(write, cut):
    cut.update(start=0.3, duration=0.51)
    (stored,) = read_manifests([write(cut)]).values()
    assert (stored.first_frame, stored.max_frames) == (15, 26)
    cut["custom"]["codebook_indexes"]["start"] = 0.4
    with pytest.raises(ValueError, match="starts at 0.3 s, but .* at 0.4 s"):
        read_manifests([write(cut)])


@pytest.mark.parametrize("speed", [0.9, 1.1])
@pytest.mark.parametrize("has_recording", [True, False])
def test_indexes_of_another_speed_are_refused(write, cut, speed, has_recording):
    """lhotse's perturb_speed changes all but the custom fields."""
    cut["duration"] = cut["recording"]["duration"] = round(1 / speed, 6)
    if not has_recording:
        del cut["recording"]
    with pytest.raises(ValueError, match="got 49 frames, expected .* was its speed"):
        read_manifests([write(cut)])


def test_other_field_and_cuts_without_it(write, cut, caplog):
    other = {**cut, "id": "b", "supervisions": [], "custom": {"wavlm": None}}
    other["custom"]["wavlm"] = cut["custom"]["codebook_indexes"]
    path = write(cut, other)
    assert list(read_manifests([path], field="wavlm")) == ["b"]
    assert "1 cuts have no field 'wavlm', first 84-1-0000" in caplog.text


def test_utterance_in_two_manifests_is_refused(write, cut):
    paths = [write(cut), write(cut, name="again.jsonl")]
    with pytest.raises(ValueError) as caught:
        read_manifests(paths)
    message = str(caught.value)
    assert f"{paths[1]}:1: utterance 84-1-0000 again" in message
    assert f"it is in {paths[0]}:1" in message


@pytest.mark.parametrize(
    "change, message",
    [
        ({"type": "MixedCut"}, "got a MixedCut, expected one of MonoCut, MultiCut"),
        ({"custom": {"codebook_indexes": {"shape": [4, 2]}}}, "expected a Temporal"),
        ({"custom": {"codebook_indexes": 3}}, "not a cut as lhotse writes it"),
        ({"duration": None}, "not a cut as lhotse writes it"),
        ({"custom": []}, None),
    ],
)
def test_other_cuts(write, cut, change, message):
    path = write({**cut, **change})
    if message is None:
        assert read_manifests([path]) == {}
        return
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}:1: .*{message}"):
        read_manifests([path])


def test_other_time_axis_and_frame_shift_0_are_refused(write, cut):
    for name, value, message in (
        ("temporal_dim", 1, "expected a TemporalArray with temporal_dim 0"),
        ("frame_shift", 0, "ZeroDivisionError"),
    ):
        changed = json.loads(json.dumps(cut))
        changed["custom"]["codebook_indexes"][name] = value
        with pytest.raises(ValueError, match=message):
            read_manifests([write(changed)])


@pytest.mark.parametrize("content", ["truncated", "no gzip", "no json", "empty line"])
def test_damaged_manifests_are_named(write, cut, tmp_path, content):
    path = write(*[{**cut, "id": f"{n}", "supervisions": []} for n in range(500)])
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif content == "no gzip":
        path.write_text(LINE)
    else:
        path = tmp_path / "cuts.jsonl"
        path.write_text(LINE + {"no json": '{"id": 3', "empty line": "\n"}[content])
    with pytest.raises(ValueError, match=f"manifest {re.escape(str(path))}: not read"):
        read_manifests([path])


def test_missing_manifest_and_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.jsonl.gz: no such file"):
        read_manifests([tmp_path / "none.jsonl.gz"])
    with pytest.raises(ValueError, match="cuts.json: expected the ending .jsonl.gz"):
        read_manifests([tmp_path / "cuts.json"])


def test_written_manifest_has_lhotses_layout(cut, tmp_path):
    stored = StoredIndexes(
        "numpy_hdf5", "exp/clean-100.h5", "84-1-0000-7", "-", (49, 8), 0.02
    )
    recording = make_recording("rec", "a.flac", 16000, 16000)
    cuts = [make_cut("84-1-0000-7", stored, recording), make_cut("é", stored)]
    path = tmp_path / "cuts.jsonl.gz"
    write_manifest(path, cuts)
    before = path.read_bytes()
    with gzip.open(path, "rt", encoding="utf-8") as file:
        first, second = map(json.loads, file)
    # lhotse's line without the supervision
    assert list(first) == list(cut) and first == {**cut, "supervisions": []}
    assert "recording" not in second and second["duration"] == 0.98
    assert list(read_manifests([path])) == ["84-1-0000-7", "é"]
    write_manifest(path, cuts)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_recordings_of_commands_and_arks():
    (source,) = make_recording("a", "sox a.wav -t wav - |", 8, 16000)["sources"]
    assert (source["type"], source["source"]) == ("command", "sox a.wav -t wav -")
    assert make_recording("a", "data/wav.1.ark:17", 8, 16000) is None


@pytest.mark.parametrize(
    "utt_id, expected",
    [("a_sp1.1", "sp1.1-a"), ("a_sp1.1b", "a_sp1.1b"), ("_sp0.9", "_sp0.9")],
)
def test_ids_of_other_speeds(utt_id, expected):
    assert espnet_speed_id(utt_id) == expected
