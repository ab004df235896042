"""Hypotheses of two arms aligned with each other."""

from espnet_mvq.reporting.scoring import align
from espnet_mvq.reporting.utterances import word_columns


def test_columns_of_two_hypotheses():
    refs = {"u": "the cat sat on it"}
    both = [
        align(refs, {"u": hyp}, str.split)[0]
        for hyp in ("oh the cat sat it", "the dear old hat sat on it now")
    ]
    columns = word_columns(both)
    assert columns == [
        ("", [("I", "+oh"), ("", "")]),
        ("the", [("C", "the"), ("C", "the")]),
        ("", [("", ""), ("I", "+dear")]),
        ("", [("", ""), ("I", "+old")]),
        ("cat", [("C", "cat"), ("S", "hat")]),
        ("sat", [("C", "sat"), ("C", "sat")]),
        ("on", [("D", "∗∗"), ("C", "on")]),
        ("it", [("C", "it"), ("C", "it")]),
        ("", [("", ""), ("I", "+now")]),
    ]
