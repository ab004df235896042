"""The file from which a run that broke off goes on, cut anywhere."""

import pytest

from espnet_mvq.indexes.partial_losses import PartialLosses
from espnet_mvq.indexes.teacher_losses import TeacherLossMetadata

METADATA = TeacherLossMetadata(teacher="t@0", loss="ctc", label="token", inputs="0")
INPUTS = {"a": ("a.wav", "X"), "ä": ("b.wav", "Y Z"), "c": ("c.wav", "Z")}
LOSSES = {"a": (1 / 3, 1), "ä": (1e-30, 3), "c": (123456.789, 1)}


@pytest.fixture
def reopen(tmp_path):
    """Return a function that opens the file and writes the missing losses."""

    def call(*utt_ids, metadata=METADATA, inputs=INPUTS):
        with PartialLosses(tmp_path / "x.partial", metadata, inputs) as partial:
            actual = dict(partial.losses)
            for utt_id in set(utt_ids) - set(actual):
                partial.write({utt_id: LOSSES[utt_id]})
        return actual

    return call


def test_round_trip_is_exact(reopen):
    assert reopen("a", "ä") == {}
    assert reopen("c") == {u: LOSSES[u] for u in ("a", "ä")}
    assert reopen() == LOSSES


def test_every_cut_keeps_the_whole_lines(reopen, tmp_path):
    path = tmp_path / "x.partial"
    reopen("a")
    reopen("ä")
    whole = path.read_bytes()
    header, first, _ = [len(line) for line in whole.splitlines(True)]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = {"a": LOSSES["a"]} if size >= header + first else {}
        assert reopen("c") == kept, size
        assert reopen() == {**kept, "c": LOSSES["c"]}, size


def test_losses_of_other_inputs_are_left_out(reopen):
    reopen(*INPUTS)
    other = {**INPUTS, "a": ("a.wav", "other text"), "c": ("other.wav", "Z")}
    assert reopen(inputs=other) == {"ä": LOSSES["ä"]}
    assert reopen(inputs={"a": INPUTS["a"]}) == {"a": LOSSES["a"]}
    teacher = TeacherLossMetadata(teacher="u@1", loss="ctc", label="token", inputs="0")
    assert reopen(metadata=teacher) == {}
    assert reopen() == {}  # which made the file anew
