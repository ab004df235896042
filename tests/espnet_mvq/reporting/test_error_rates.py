"""Error rates of decoded sets, of our recipes and of ESPnet's."""

import pytest
from corpus_builders import write_table
from experiment_builders import write_experiment, write_result

from espnet_mvq.reporting.error_rates import read_decodings
from espnet_mvq.reporting.training_log import ReportError

REFS = {"u1": "the cat sat", "u2": "a dog", "u3": "on the mat"}
HYPS = {"u1": "the hat sat down", "u2": "", "u3": "on the mat"}


@pytest.fixture
def exp(tmp_path):
    (tmp_path / "raw" / "test").mkdir(parents=True)
    write_table(tmp_path / "raw" / "test" / "text", REFS)
    return write_experiment(tmp_path / "exp" / "a", [], texts=HYPS)


def rates(exp):
    decodings = read_decodings(exp, exp.parents[1] / "raw")
    return {
        (name, metric): result["error_rate"]
        for name, decoding in decodings.items()
        for metric, result in decoding.results.items()
    }


def test_hypotheses_of_espnets_recipes_are_scored(exp):
    """4 of 8 words; 1 letter, 5 of " down", 5 of "a dog"; not the parts in logdir."""
    expected = {("decode_asr/test", "wer"): 50.0}
    expected["decode_asr/test", "cer"] = pytest.approx(100 * 11 / 26)
    assert rates(exp) == expected


def test_scores_of_our_recipes_come_first(exp):
    write_result(exp, "test/score_wer", error_rate=12.5)
    write_result(exp, "dev/score_wer", error_rate=25.0)
    found = rates(exp)
    assert found["decode_asr/test", "wer"] == 12.5
    assert found["decode_asr/dev", "wer"] == 25.0
    assert found["decode_asr/test", "cer"] == pytest.approx(100 * 11 / 26)


def test_reasons_of_missing_rates(exp):
    text = exp / "decode_asr" / "test" / "text"
    write_table(text, {**HYPS, "u9": "x"})
    (decoding,) = read_decodings(exp, exp.parents[1] / "raw").values()
    assert not decoding.results and "no reference: u9" in decoding.problem
    assert str(text) in decoding.problem
    (decoding,) = read_decodings(exp, exp.parents[1] / "none").values()
    assert "none/test/text" in decoding.problem
    write_result(exp, "dev/score_wer", num_tokens=0)
    (exp / "decode_asr" / "dev" / "score_wer" / "result.json").write_text("{")
    with pytest.raises(ReportError, match="result.json is damaged"):
        rates(exp)
