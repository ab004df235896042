"""Reading audio: accepted and refused files."""

import kaldiio
import numpy as np
import pytest
import soundfile
import torch

from espnet_mvq.teachers.audio import AudioError, read_audio


@pytest.fixture
def samples():
    """Return a sweep whose values 16-bit integers hold exactly."""
    return (np.arange(-800, 800, dtype=np.float32) * 16) / 2**15


def test_wav_and_flac(tmp_path, samples):
    for name in ("a.wav", "a b.flac"):
        soundfile.write(tmp_path / name, samples, 16000)
        speech = read_audio("utt", str(tmp_path / name), 16000)
        assert speech.dtype == torch.float32 and speech.shape == (1600,)
        np.testing.assert_allclose(speech, samples, atol=1e-7)


def test_float_wav_keeps_its_values(tmp_path):
    values = np.random.randn(100).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", values, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(
        read_audio("utt", str(tmp_path / "a.wav"), 16000), values
    )


def test_place_in_an_ark(tmp_path, samples):
    """As ESPnet's `--audio_format flac.ark` and `wav.ark` write it."""
    integers = (samples * 2**15).astype(np.int16)
    ark, scp = tmp_path / "a.ark", tmp_path / "a.scp"
    with kaldiio.WriteHelper(f"ark,scp:{ark},{scp}") as writer:
        writer("other", (16000, integers[:5]))
        writer("utt", (16000, integers))
    place = scp.read_text().splitlines()[1].split()[1]
    speech = read_audio("utt", place, 16000)
    assert place.startswith(f"{ark}:") and speech.dtype == torch.float32
    np.testing.assert_allclose(speech, samples, atol=1e-7)
    with pytest.raises(AudioError, match="has 16000 Hz, expected 8000 Hz"):
        read_audio("utt", place, 8000)


def test_wav_of_8_bits_in_an_ark(tmp_path, samples):
    """Its bytes are unsigned, silence is 128."""
    ark, scp = tmp_path / "a.ark", tmp_path / "a.scp"
    with kaldiio.WriteHelper(f"ark,scp:{ark},{scp}") as writer:
        writer("utt", (16000, np.round(samples * 128 + 128).astype(np.uint8)))
    speech = read_audio("utt", scp.read_text().split()[1], 16000)
    np.testing.assert_allclose(speech, samples, atol=1 / 256)


def test_one_channel_as_a_column(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", samples[:, None], 16000)
    assert len(read_audio("utt", str(tmp_path / "a.wav"), 16000)) == 1600


@pytest.mark.parametrize(
    "change, rate, message",
    [
        (lambda x: np.stack([x, x], axis=1), 16000, "has 2 channels.*mono"),
        (lambda x: x, 8000, "has 8000 Hz, expected 16000 Hz.*--fs"),
        (lambda x: x, 44100, "has 44100 Hz, expected 16000 Hz.*--fs"),
        (lambda x: x[:0], 16000, "is empty"),
        (lambda x: np.append(x, np.nan), 16000, "contains NaN or infinity"),
        (lambda x: np.append(x, np.inf), 16000, "contains NaN or infinity"),
    ],
)
def test_unusable_audio_is_refused(tmp_path, samples, change, rate, message):
    soundfile.write(tmp_path / "a.wav", change(samples), rate, subtype="FLOAT")
    with pytest.raises(AudioError, match=f"utterance utt: .*a.wav {message}"):
        read_audio("utt", str(tmp_path / "a.wav"), 16000)


@pytest.mark.parametrize("end", ["|", " |"])
def test_pipe_is_refused(end):
    with pytest.raises(AudioError, match="is a pipe; expected a file.*stage 3"):
        read_audio("utt", "sox a.sph -t wav -" + end, 16000)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no audio at all"])
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match="utterance utt: could not read .*a.wav"):
        read_audio("utt", str(tmp_path / "a.wav"), 16000)


@pytest.mark.parametrize("name", ["none.wav", "none.ark:12"])
def test_missing_file_is_named(tmp_path, name):
    with pytest.raises(AudioError, match=f"utterance utt: could not read .*{name}"):
        read_audio("utt", str(tmp_path / name), 16000)


def test_flac_cut_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.uniform(-1, 1, 16000), 16000)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(AudioError, match="utterance utt: "):
        read_audio("utt", str(path), 16000)
