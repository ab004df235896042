"""Copying a data folder within limits of duration."""

import re

import pytest
from corpus_builders import load_script, write_table

format_data = load_script("egs/TEMPLATE/asr1/pyscripts/format_data.py")


@pytest.fixture
def data_dir(tmp_path):
    """Three utterances of 1, 2 and 3 s by two speakers."""
    folder = tmp_path / "data"
    folder.mkdir()
    seconds = {"a-1": 1, "a-2": 2, "b-3": 3}
    write_table(folder / "wav.scp", {u: f"/audio/{u}.wav" for u in seconds})
    write_table(folder / "text", {u: f"SOME TEXT {n}" for u, n in seconds.items()})
    write_table(folder / "utt2spk", {u: u[0] for u in seconds})
    num_samples = {u: n * 16_000 for u, n in seconds.items()}
    write_table(folder / "utt2num_samples", num_samples)
    return folder


def run(data_dir, *options):
    outdir = data_dir.parent / "out"
    options = ["--data_dir", data_dir, "--outdir", outdir, *options]
    format_data.main([str(option) for option in options])
    return outdir


def test_copy_without_limits_is_the_same(data_dir):
    outdir = run(data_dir)
    for path in data_dir.iterdir():
        assert (outdir / path.name).read_text() == path.read_text()
    assert (outdir / "spk2utt").read_text() == "a a-1 a-2\nb b-3\n"
    assert (outdir / "feats_type").read_text() == "raw\n"


def test_limits_are_inclusive_and_hold_for_all_files(data_dir):
    outdir = run(data_dir, "--min_duration", 2, "--max_duration", 2)
    assert (outdir / "text").read_text() == "a-2 SOME TEXT 2\n"
    assert (outdir / "spk2utt").read_text() == "a a-2\n"


@pytest.mark.parametrize(
    "break_data, options, message",
    [
        (lambda d: (d / "text").unlink(), [], "no such file: .*text; run stage 1"),
        (
            lambda d: (d / "text").write_text("a-1 X\na-2 X\n"),
            [],
            "1 utterances are in only one of wav.scp and text, first b-3",
        ),
        (
            lambda d: None,
            ["--min_duration", 9],
            "none of 3 utterances is between 9.0 s",
        ),
        (
            lambda d: (d / "segments").write_text("a-1 r 0 1\n"),
            [],
            "segments: got recordings with segments",
        ),
    ],
)
def test_errors_are_one_line_and_exit_code_1(
    data_dir, ends_with_error, break_data, options, message
):
    break_data(data_dir)
    assert re.search(message, ends_with_error(run, data_dir, *options))
    assert not (data_dir.parent / "out" / "wav.scp").exists()
