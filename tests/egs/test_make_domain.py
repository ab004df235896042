"""Domains: whose speech is in them, and how it sounds."""

import numpy as np
import pytest
import soundfile
from corpus_builders import load_script, write_table

script = load_script("egs/mini_librispeech/asr1/local/make_domain.py")

RATE = 16_000


@pytest.fixture
def data_dir(tmp_path):
    """Six speakers with one to six utterances of a second."""
    folder = tmp_path / "train"
    folder.mkdir()
    tables = {name: {} for name in ("wav.scp", "text", "utt2spk", "utt2num_samples")}
    for speaker in range(1, 7):
        samples = 0.1 * np.random.default_rng(speaker).standard_normal(RATE)
        for number in range(speaker):
            utt_id = f"{speaker}-{number}"
            path = folder / f"{utt_id}.wav"
            soundfile.write(path, samples, RATE)
            values = (path, "TWO WORDS", speaker, RATE)
            for table, value in zip(tables.values(), values):
                table[utt_id] = value
    for name, table in tables.items():
        write_table(folder / name, table)
    return folder


def run(data_dir, *options, name="out", condition="clean"):
    """Make a domain; return its folder and its tables."""
    outdir = data_dir.parent / name
    paths = ["--data_dir", str(data_dir), "--outdir", str(outdir)]
    script.main([*paths, "--condition", condition, *options])
    tables = {}
    for table in ("wav.scp", "text", "utt2spk", "utt2num_samples"):
        lines = (outdir / table).read_text().splitlines()
        tables[table] = dict(line.split(maxsplit=1) for line in lines)
    return outdir, tables


def spectrum(samples):
    """Return the power at each Hz, (S / 2,), of a second of audio."""
    return np.abs(np.fft.rfft(samples[:RATE])) ** 2


def test_groups_of_speakers_are_disjoint_whole_and_of_their_shares(data_dir):
    actual = [
        run(data_dir, *f"--shares 2 1 --group {group}".split(), name=str(group))
        for group in (0, 1)
    ]
    speakers = [set(tables["utt2spk"].values()) for _, tables in actual]
    assert speakers[0] | speakers[1] == set("123456")
    assert not speakers[0] & speakers[1]
    sizes = [len(tables["wav.scp"]) for _, tables in actual]
    assert sizes == [14, 7]
    for _, tables in actual:
        assert len({tuple(table) for table in tables.values()}) == 1
        assert set(tables["text"].values()) == {"TWO WORDS"}


def test_clean_is_the_corpus_itself(data_dir):
    outdir, tables = run(data_dir)
    for name, table in tables.items():
        assert (outdir / name).read_text() == (data_dir / name).read_text()
    assert not (outdir / "audio").exists()


def test_part_is_spread_evenly(data_dir):
    _, tables = run(data_dir, "--max_utterances", "7")
    lines = (data_dir / "wav.scp").read_text().splitlines()
    assert list(tables["wav.scp"]) == [line.split()[0] for line in lines[::3]]


@pytest.mark.parametrize("condition, length", [("telephone", 1), ("fast", 0.8)])
def test_converted_audio_and_its_length(data_dir, condition, length):
    _, tables = run(data_dir, condition=condition)
    assert len(tables["wav.scp"]) == 21
    for utt_id, path in tables["wav.scp"].items():
        info = soundfile.info(path)
        assert (info.frames, info.samplerate) == (length * RATE, RATE)
        assert int(tables["utt2num_samples"][utt_id]) == info.frames


def test_telephone_keeps_its_band_in_256_levels():
    noise = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    converted = script.telephone(noise, RATE, None)
    ratio = spectrum(converted) / spectrum(noise)
    assert 0.8 < np.median(ratio[600:3000]) < 1.2
    assert np.median(ratio[4500:]) < 1e-4 and np.median(ratio[20:100]) < 0.05
    # At 8 kHz the values are those of the mu-law: F(x) = ln(1 + 255 x) / ln 256
    narrow = script.resample_poly(
        script.sosfilt(
            script.butter(4, script.PHONE_BAND, "bandpass", fs=RATE, output="sos"),
            noise,
        ),
        1,
        2,
    )
    step = np.log(256) / 127  # of ln(1 + 255 x)
    expected = []
    for x in narrow:
        level = round(np.log(1 + 255 * abs(x)) / step)
        expected.append(np.sign(x) * (np.exp(level * step) - 1) / 255)
    assert len(set(np.round(expected, 9))) < 256
    np.testing.assert_allclose(
        converted, script.resample_poly(np.array(expected), 2, 1), atol=1e-9
    )


def test_fast_speech_is_higher_by_a_quarter():
    time = np.arange(2 * RATE) / RATE
    converted = script.fast(np.sin(2 * np.pi * 1000 * time), RATE, None)
    assert spectrum(converted).argmax() == 1250


def test_noise_is_ten_db_below_and_the_same_each_time(data_dir):
    first, tables = run(data_dir, condition="noise")
    before = {path: soundfile.read(path)[0] for path in tables["wav.scp"].values()}
    for utt_id, path in tables["wav.scp"].items():
        clean = soundfile.read(data_dir / f"{utt_id}.wav")[0]
        ratio = np.sum(clean**2) / np.sum((before[path] - clean) ** 2)
        assert abs(10 * np.log10(ratio) - 10) < 0.3
    run(data_dir, condition="noise")
    for path, samples in before.items():
        np.testing.assert_array_equal(soundfile.read(path)[0], samples)


@pytest.mark.parametrize(
    "options, message",
    [
        ("--shares 1 0", "expected numbers above 0"),
        ("--shares 1 1 --group 2", "a group from 0 to 1"),
        ("--shares 1 1 1 1 1 1 1 --group 6", "no speaker is left for group 6 of 7"),
    ],
)
def test_wrong_options_end_in_a_line(data_dir, ends_with_error, options, message):
    assert message in ends_with_error(run, data_dir, *options.split())


def test_unreadable_audio_is_named_and_nothing_looks_whole(data_dir, ends_with_error):
    (data_dir / "3-1.wav").write_bytes(b"RIFF")
    error = ends_with_error(run, data_dir, condition="fast")
    assert "utterance 3-1: cannot read" in error
    assert not (data_dir.parent / "out" / "wav.scp").exists()


@pytest.mark.parametrize("name", ["utt2spk", "utt2num_samples", "text"])
def test_utterance_that_is_in_no_domain_is_named(data_dir, ends_with_error, name):
    path = data_dir / name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("4-2 ")))
    error = ends_with_error(run, data_dir)
    assert "utterance 4-2: " in error and f"not in {path}" in error
