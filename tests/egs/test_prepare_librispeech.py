"""Kaldi-style data directories from the official LibriSpeech layout."""

import logging

import numpy as np
import pytest
import soundfile
from corpus_builders import load_script

prepare = load_script("egs/TEMPLATE/asr1/pyscripts/prepare_librispeech.py")

WORDS = {"1-2-0000": "A B", "1-2-0001": "C", "1-20-0000": "D", "10-3-0000": "E F"}
NUM_SAMPLES = 800


def write_audio(path, num_samples=NUM_SAMPLES, sample_rate=16000, channels=1):
    signal = np.zeros((num_samples, channels), dtype=np.float32)
    soundfile.write(str(path), signal, sample_rate)


def chapter_of(corpus, utt_id):
    speaker, chapter, _ = utt_id.split("-")
    return corpus / "dev" / speaker / chapter


@pytest.fixture
def corpus(tmp_path):
    """Two readers, three chapters, four utterances."""
    root = tmp_path / "LibriSpeech"
    for utt_id, words in WORDS.items():
        folder = chapter_of(root, utt_id)
        folder.mkdir(parents=True, exist_ok=True)
        write_audio(folder / f"{utt_id}.flac")
        with (folder / f"{utt_id[:-5]}.trans.txt").open("a") as f:
            f.write(f"{utt_id} {words}\n")
    return root


def arguments(corpus, outdir, *options):
    required = ["--corpus", corpus, "--subset", "dev", "--outdir", outdir]
    return [str(option) for option in [*required, *options]]


def test_files_and_their_order(corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    outdir = tmp_path / "data" / "dev"
    prepare.main(arguments(corpus, outdir))
    rows = {p.name: p.read_text().splitlines() for p in outdir.iterdir()}
    order = ["1-2-0000", "1-2-0001", "1-20-0000", "10-3-0000"]
    paths = [chapter_of(corpus, u).resolve() / f"{u}.flac" for u in order]
    assert rows == {
        "wav.scp": [f"{u} {path}" for u, path in zip(order, paths)],
        "text": [f"{u} {WORDS[u]}" for u in order],
        "utt2spk": [f"{u} {u.split('-')[0]}" for u in order],
        "spk2utt": ["1 1-2-0000 1-2-0001 1-20-0000", "10 10-3-0000"],
        "utt2num_samples": [f"{u} {NUM_SAMPLES}" for u in order],
    }
    assert caplog.messages[-1].endswith("4 utterances, 2 speakers, 0.00 hours")
    assert [p.name for p in outdir.parent.iterdir()] == ["dev"]


@pytest.mark.parametrize("extension, format", [("wav", "WAV"), ("opus", "OGG")])
def test_num_samples_is_the_decoded_length(tmp_path, extension, format):
    chapter = tmp_path / "c" / "dev" / "1" / "2"
    chapter.mkdir(parents=True)
    path = chapter / f"1-2-0000.{extension}"
    subtype = "OPUS" if extension == "opus" else None
    signal = np.random.RandomState(0).uniform(-0.1, 0.1, 12345)
    soundfile.write(str(path), signal, 16000, format=format, subtype=subtype)
    (chapter / "1-2.trans.txt").write_text("1-2-0000 A\n")
    prepare.main(arguments(tmp_path / "c", tmp_path / "out"))
    decoded, _ = soundfile.read(str(path))
    row = (tmp_path / "out" / "utt2num_samples").read_text()
    assert row == f"1-2-0000 {len(decoded)}\n"


def remove_trans(chapter):
    (chapter / "1-2.trans.txt").unlink()


def set_trans(text):
    return lambda chapter: (chapter / "1-2.trans.txt").write_bytes(text)


def write_empty_wav(path):
    soundfile.write(str(path), np.zeros(0), 16000, format="WAV")


def set_audio(**kwargs):
    return lambda chapter: write_audio(chapter / "1-2-0001.flac", **kwargs)


DEFECTS = [
    (remove_trans, "without a readable transcript file", 2),
    (set_trans(b"1-2-0000 A\n1-2-0001 \xff"), "without a readable transcript", 2),
    (set_trans(b"1-2-0000 A\n"), "audio file(s) without a transcript", 1),
    (set_trans(b"1-2-0000 A\n1-2-0001\n"), "empty transcript(s)", 1),
    (set_trans(b"1-2-0000 A\n1-2-0001 B\n1-2-0001 C"), "more than once", 1),
    (lambda c: (c / "1-2-0001.flac").unlink(), "transcript(s) without audio", 1),
    (lambda c: write_audio(c / "1-2-0001.wav"), "more than once", 1),
    (lambda c: write_audio(c / "5-2-0001.wav"), "in the wrong chapter", 0),
    (lambda c: (c / "1-2-0001.flac").write_text("?"), "unreadable audio", 1),
    (lambda c: (c / "1-2-0001.flac").write_bytes(b""), "of zero length", 1),
    (lambda c: write_empty_wav(c / "1-2-0001.flac"), "(0 samples)", 1),
    (set_audio(sample_rate=8000), "8000 Hz, not 16000 Hz", 1),
    (set_audio(channels=2), "2 channels", 1),
]


@pytest.mark.parametrize("damage, message, num_lost", DEFECTS)
def test_defects(corpus, tmp_path, caplog, ends_with_error, damage, message, num_lost):
    damage(chapter_of(corpus, "1-2-0001"))
    error = ends_with_error(prepare.main, arguments(corpus, tmp_path / "out"))
    assert message in error and "expected" in error and "--on_error skip" in error
    assert not (tmp_path / "out").exists()

    prepare.main(arguments(corpus, tmp_path / "out", "--on_error", "skip"))
    assert [r.levelname for r in caplog.records][1] == "WARNING"
    left = (tmp_path / "out" / "wav.scp").read_text().splitlines()
    assert len(left) == len(WORDS) - num_lost


def test_all_kinds_are_reported_and_only_the_first_are_named(corpus, tmp_path, caplog):
    chapter = chapter_of(corpus, "1-2-0001")
    set_audio(channels=2)(chapter)
    for i in range(10, 17):
        write_audio(chapter / f"1-2-00{i}.flac")
    with pytest.raises(SystemExit):
        prepare.main(arguments(corpus, tmp_path / "out"))
    without, stereo = caplog.messages
    assert without.startswith("7 audio file(s) without a transcript: ")
    assert "1-2-0014.flac, ...; expected" in without and "0015" not in without
    assert stereo.startswith("1 audio file(s) with several channels: ")


def test_missing_folders(corpus, tmp_path, ends_with_error):
    outdir = tmp_path / "out"
    error = ends_with_error(prepare.main, arguments(tmp_path / "no", outdir))
    assert "no corpus folder" in error and "LIBRISPEECH=" in error
    words = arguments(corpus, outdir, "--subset", "x")
    error = ends_with_error(prepare.main, words)
    assert f"no subset x in {corpus.resolve()}; there: dev;" in error
    (tmp_path / "c" / "dev").mkdir(parents=True)
    error = ends_with_error(prepare.main, arguments(tmp_path / "c", outdir))
    assert "no utterance in" in error


def test_second_run_replaces_its_own_files_only(corpus, tmp_path):
    outdir = tmp_path / "out"
    outdir.mkdir()
    (outdir / "mine").touch()
    (outdir / "text").write_text("old\n")
    prepare.main(arguments(corpus, outdir))
    assert (outdir / "mine").exists() and "old" not in (outdir / "text").read_text()


def test_interrupted_writing_leaves_no_wav_scp(corpus, tmp_path, monkeypatch):
    prepare.main(arguments(corpus, tmp_path / "out"))

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare.main(arguments(corpus, tmp_path / "out"))
    assert not (tmp_path / "out" / "wav.scp").exists()
    assert not list(tmp_path.glob(".out.*"))
