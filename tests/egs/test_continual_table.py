"""The table of continual learning, and forgetting."""

import json

import pytest
from corpus_builders import load_script

script = load_script("egs/mini_librispeech/asr1/local/continual_table.py")


ERRORS = {
    "plain": [[40.0], [55.0, 30.0], [70.0, 50.0, 20.0]],
    "decor": [[40.0], [38.0, 35.0], [42.0, 33.0, 25.0]],
}


@pytest.fixture
def options(tmp_path):
    """Three experiments of two methods, scored on the domains seen so far."""
    words = ["--domains", "a", "b", "c", "--test_sets", "a_test", "b_test", "c_test"]
    for method, rows in ERRORS.items():
        words += ["--method", method]
        for step, row in enumerate(rows):
            exp = tmp_path / f"{method}{step}"
            words.append(str(exp))
            for domain, error in zip("abc", row):
                for metric, rate in (("wer", error), ("cer", error / 2)):
                    folder = exp / "decode" / f"{domain}_test" / f"score_{metric}"
                    folder.mkdir(parents=True)
                    (folder / "result.json").write_text(
                        json.dumps({"error_rate": rate})
                    )
    return words


def test_errors_after_each_step_and_forgetting(options, capsys):
    script.main(options)
    wer, cer = capsys.readouterr().out.split("## CER %")
    assert "|method|after|a|b|c|\n|---|---|---|---|---|\n|plain|a|40.0|||" in wer
    assert "|plain|b|55.0|30.0||\n|plain|c|70.0|50.0|20.0|" in wer
    # ((70 - 40) + (50 - 30)) / 2, and ((42 - 38) + (33 - 35)) / 2
    assert "|plain|46.7|+25.0|" in wer and "|decor|33.3|+1.0|" in wer
    assert "|plain|23.3|+12.5|" in cer


@pytest.mark.parametrize(
    "errors, expected",
    [
        ([[10.0], [15.0, 3.0]], 5.0),
        ([[10.0], [8.0, 3.0]], -2.0),
        ([[10.0], [20.0, 9.0], [5.0, 9.0, 1.0]], (-5.0 + 0.0) / 2),
    ],
)
def test_forgetting_looks_at_the_best_step_before_the_last(errors, expected):
    assert script.forgetting(errors) == expected


def test_missing_files_are_named(options, ends_with_error, tmp_path):
    (tmp_path / "decor1/decode/a_test/score_cer/result.json").unlink()
    error = ends_with_error(script.main, options)
    assert "decor1: got 0 CER scores of a_test" in error


@pytest.mark.parametrize(
    "options, message",
    [
        ("--domains a b --test_sets a", "got 2 domains and 1 test sets"),
        ("--domains a --test_sets a", "at least two"),
        ("--domains a b --test_sets a b", "method m: got 1 experiments, expected 2"),
    ],
)
def test_numbers_that_do_not_fit(ends_with_error, options, message):
    words = [*options.split(), "--method", "m", "exp"]
    assert message in ends_with_error(script.main, words)
