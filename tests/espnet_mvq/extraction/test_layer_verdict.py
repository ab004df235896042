"""Verdicts on scores like those that were measured."""

import dataclasses
import re

import pytest

from espnet_mvq.extraction.layer_verdict import LayerScore, judge

RATIOS = [1.04, 1.14, 1.43, 1.90]


def make_scores(error_rates, ratios, nats=2.0):
    """Return the scores of layers 1, 2, ..."""
    rates = error_rates or [None] * len(ratios)
    return [
        LayerScore(n, rate, ratio, 0.4, 0.5, nats)
        for n, (rate, ratio) in enumerate(zip(rates, ratios), 1)
    ]


@pytest.mark.parametrize(
    "error_rates, log_mel, teacher, layers, words",
    [
        ([0.56, 0.45, 0.37, 0.36], 0.70, "use", [4, 3], "Try layers 3-4 first; layer"),
        ([0.56, 0.34, 0.37, 0.35], 0.70, "use", [2, 4, 3], "Try layers 2-4 first; l"),
        ([0.34, 0.56, 0.37, 0.35], 0.70, "use", [1, 4, 3], "Try layers 1, 3-4 first"),
        ([0.56, 0.45, 0.40, 0.30], 0.70, "use", [4], "Try layer 4 first."),
        ([0.70, 0.69, 0.69, 0.69], 0.70, "refuse", [], "adds next to nothing"),
        ([0.68, 0.66, 0.58, 0.64], 0.70, "doubt", [3], "hardly the language"),
        ([0.0, 0.0, 0.0, 0.0], 0.0, "use", [1, 2, 3, 4], "Try layers 1-4 first"),
    ],
)
def test_text_decides_where_there_is_one(error_rates, log_mel, teacher, layers, words):
    verdict = judge(make_scores(error_rates, RATIOS), log_mel)
    assert (verdict.teacher, verdict.layers) == (teacher, layers)
    assert words in " ".join(verdict.sentences)


@pytest.mark.parametrize(
    "ratios, teacher, layers, words",
    [
        (RATIOS, "use", [4], "Try layer 4 first."),
        ([1.0, 1.5, 1.9, 1.7], "use", [3, 4], "Try layers 3-4 first; layer 3 is the b"),
        ([1.0, 1.1, 1.2, 1.3], "doubt", [4], "not clear .* none, try layer 4 first"),
        ([1.0, 1.1, 1.1, 1.1], "refuse", [], "do not use it"),
    ],
)
def test_reversal_decides_without_a_text(ratios, teacher, layers, words):
    verdict = judge(make_scores(None, ratios), None)
    assert (verdict.teacher, verdict.layers) == (teacher, layers)
    assert re.search(words, verdict.sentences[0])


@pytest.mark.parametrize("log_mel, rates", [(None, None), (0.7, [0.7, 0.6])])
def test_faulty_speech_is_named(log_mel, rates):
    verdict = judge(make_scores(rates, [0.98, 0.55]), log_mel)
    assert verdict.teacher == "refuse" and "reversed in time" in verdict.sentences[-1]
    verdict = judge(make_scores(rates, [0.98, 1.02], nats=0.2), log_mel)
    assert verdict.teacher == "refuse" and "is this speech?" in verdict.sentences[-1]


def test_small_ratios_beside_large_ones_mean_nothing():
    assert judge(make_scores(None, [0.85, 1.6]), None).teacher == "use"
    assert judge(make_scores([0.3, 0.7], [0.85, 1.0]), 0.7).layers == [1]


@pytest.mark.parametrize("ratio", [1.0, 1.9])
def test_an_upper_layer_of_little_speech_is_not_taken_for_noise(ratio):
    assert judge(make_scores([0.3], [ratio], nats=0.2), 0.7).layers == [1]


def test_encoder_output_comes_last():
    scores = make_scores([0.36, 0.35, 0.34], RATIOS[1:])
    scores[2] = dataclasses.replace(scores[2], layer=-1)
    verdict = judge(scores, 0.7)
    assert verdict.layers == [-1, 2, 1]
    assert "Try layers 1-2, -1 first; layer -1 is" in verdict.sentences[0]
