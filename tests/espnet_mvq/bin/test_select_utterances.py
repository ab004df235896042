"""Utterances for the quantizer."""

import pytest

from espnet_mvq.bin.select_utterances import main
from espnet_mvq.extraction.selection import take_hours
from espnet_mvq.files.scp import read_scp


@pytest.fixture
def options(data_dir, tmp_path):
    return ["--data_dir", str(data_dir), "--outdir", str(tmp_path / "selected")]


def test_chosen_utterances_last_so_long_and_keep_their_order(
    options, data_dir, tmp_path
):
    # 0.4 s to 0.9 s each
    main([*options, "--hours", str(1.5 / 3600)])
    chosen = read_scp(tmp_path / "selected" / "wav.scp")
    everything = read_scp(data_dir / "wav.scp")
    assert 2 <= len(chosen) <= 4
    assert list(chosen) == [u for u in everything if u in chosen]
    assert all(everything[u] == place for u, place in chosen.items())
    assert not (tmp_path / "selected" / "utt2spk").exists()


def test_small_corpus_is_taken_whole(options, tmp_path):
    main(options)
    assert len(read_scp(tmp_path / "selected" / "wav.scp")) == 6


def test_speakers_are_covered_and_written(options, data_dir, tmp_path):
    lines = [f"utt{n} spk{n // 5}\n" for n in range(6)]  # utt5 is spk1's only one
    (data_dir / "utt2spk").write_text("".join(lines))
    main([*options, "--hours", "0.0001"])
    speakers = read_scp(tmp_path / "selected" / "utt2spk")
    assert set(speakers.values()) == {"spk0", "spk1"} and "utt5" in speakers


def test_durations_are_guessed_without_the_file(options, data_dir, caplog):
    (data_dir / "utt2num_samples").unlink()
    main([*options, "--hours", str(30 / 3600)])
    assert "durations are guessed" in caplog.text


def test_at_least_two_are_chosen():
    assert take_hours("abc", dict.fromkeys("abc", 9.0), 1 / 3600) == ["a", "b"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("segments", "utt0 rec0 0 1\n", "segments: got recordings that are to be cut"),
        ("utt2num_samples", "utt0 1.5\n", "utt2num_samples: utterance utt0: got '1.5'"),
    ],
)
def test_wrong_data_are_refused(
    options, data_dir, ends_with_error, tmp_path, name, text, message
):
    (data_dir / name).write_text(text)
    assert message in ends_with_error(main, options)
    assert not (tmp_path / "selected").exists()
