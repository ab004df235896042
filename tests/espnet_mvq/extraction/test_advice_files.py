"""Advice as markdown, JSON and figure."""

import json

import pytest

from espnet_mvq import __version__
from espnet_mvq.extraction.advice_files import Advice, markdown, write_advice
from espnet_mvq.extraction.layer_verdict import LayerScore, Verdict


def make_advice(error_rate=0.365, log_mel_error_rate=0.7, num_layers=2):
    return Advice(
        teacher="hubert@1",
        data_dir="dump/raw/train",
        speech="6.0 minutes, 28 utterances, 7 of unknown speakers held out",
        num_codebooks=8,
        codebook_size=256,
        log_mel_error_rate=log_mel_error_rate,
        scores=[
            LayerScore(n, error_rate, 1.5, 0.25, 0.5, -0.1)
            for n in range(1, num_layers + 1)
        ],
        verdict=Verdict("use", [2], ["Try layer 2 first.", "It reads.", "Well."]),
    )


def test_markdown_with_a_text():
    assert markdown(make_advice()) == (
        "# Layers of hubert@1\n\n"
        "Try layer 2 first.\n\n"
        "It reads. Well.\n\n"
        "| layer | CER, % | reversal ratio | quantizer error, % | indexes that stay in "
        "noise, % | explained by log-mel, nats |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| log-mel | 70.0 |  |  |  |  |\n"
        "| 1 | 36.5 | 1.50 | 25.0 | 50.0 | -0.10 |\n"
        "| 2 | 36.5 | 1.50 | 25.0 | 50.0 | -0.10 |\n\n"
        "Speech: 6.0 minutes, 28 utterances, 7 of unknown speakers held out of "
        "dump/raw/train. Quantizer: 8 codebooks of 256 entries.\n"
    )


def test_markdown_without_a_text():
    text = markdown(make_advice(None, None))
    assert "CER" not in text and "log-mel |" not in text
    assert "| 1 | 1.50 | 25.0 |" in text


@pytest.mark.parametrize("rates, num_layers", [((0.3, 0.7), 40), ((None, None), 1)])
def test_files(tmp_path, rates, num_layers):
    advice = make_advice(*rates, num_layers)
    folder = tmp_path / "new" / "advice"
    assert write_advice(advice, folder) == markdown(advice)
    assert (folder / "advice.md").read_text() == markdown(advice)
    content = json.loads((folder / "advice.json").read_text())
    assert (content["format"], content["version"]) == ("espnet_mvq.layer_advice", 1)
    assert content["espnet_mvq_version"] == __version__
    assert content["log_mel_error_rate"] == rates[1]
    assert content["scores"][-1]["layer"] == num_layers
    assert content["verdict"]["layers"] == [2]
    assert (folder / "advice.png").read_bytes().startswith(b"\x89PNG")
