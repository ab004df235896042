"""Speech to compare layers on: which utterances, and their copies."""

import numpy as np
import pytest
import soundfile
import torch

from espnet_mvq.extraction import layer_speech
from espnet_mvq.extraction.layer_probe import add_white_noise, noise_move
from espnet_mvq.extraction.layer_speech import (
    choose_held_out,
    embed_copies,
    read_minutes,
)
from espnet_mvq.files.scp import read_scp
from espnet_mvq.teachers import build_teacher
from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.base import EmbeddingError


@pytest.fixture
def teacher(teacher_dir):
    return build_teacher(f"transformers/{teacher_dir}")


@pytest.fixture
def places(data_dir):
    """Six utterances of 0.4 to 0.9 s."""
    return read_scp(data_dir / "wav.scp")


def test_utterances_are_read_until_they_last_long_enough(teacher, places, caplog):
    utt_ids = list(places)[::-1]
    assert list(read_minutes(teacher, utt_ids, places, 0.001)) == utt_ids[:4]
    assert list(read_minutes(teacher, utt_ids, places, 3.1 / 60)) == utt_ids[:5]
    assert not caplog.records
    assert list(read_minutes(teacher, utt_ids, places, 1.0)) == utt_ids
    assert "fewer than 1" in caplog.text


def test_long_and_broken_utterances_are_left_out(
    teacher, places, tmp_path, monkeypatch
):
    soundfile.write(tmp_path / "long.wav", np.zeros(16000), 16000)
    (tmp_path / "broken.wav").write_text("no audio")
    places = {
        "long": str(tmp_path / "long.wav"),
        "broken": str(tmp_path / "broken.wav"),
        **places,
    }
    monkeypatch.setattr(layer_speech, "_LONGEST_S", 0.95)
    chosen = read_minutes(teacher, list(places), places, 1.0, "skip")
    assert list(chosen) == [f"utt{n}" for n in range(6)]
    with pytest.raises(AudioError, match="utterance broken"):
        read_minutes(teacher, list(places), places, 1.0)
    few = ["long", "utt0", "utt1", "utt2"]
    with pytest.raises(ValueError, match="got 3 utterances .* 1 of more than 0.95 s"):
        read_minutes(teacher, few, places, 1.0)


def test_held_out_are_other_speakers_where_there_are_enough():
    utt_ids = [f"u{n}" for n in range(8)]
    speakers = {u: f"s{n % 4}" for n, u in enumerate(utt_ids)}
    assert choose_held_out(utt_ids, speakers) == ({"u0", "u4"}, "2 of other speakers")
    speakers = {u: f"s{n % 3}" for n, u in enumerate(utt_ids)}
    expected = {"u0", "u4"}, "2 of the same speakers"
    assert choose_held_out(utt_ids, speakers) == expected
    assert choose_held_out(utt_ids, {}) == ({"u0", "u4"}, "2 of unknown speakers")


def test_copies_are_those_of_the_teacher(teacher, places):
    waveforms = {u: teacher.read(u, places[u]) for u in ("utt1", "utt2")}
    actual = embed_copies(teacher, [1, 2], waveforms, {"utt2"}, seed=3)
    generator = torch.Generator().manual_seed(3)
    for utt_id, utterance in actual.items():
        speech = waveforms[utt_id]
        noisy = add_white_noise(speech, 20.0, generator)
        copies = [speech, noisy, speech.flip(0), noisy.flip(0)]
        frames = [e[:, 1:] for e in teacher.embed_layers(copies)]
        torch.testing.assert_close(utterance.frames, frames[0])
        torch.testing.assert_close(utterance.move, noise_move(*frames[:2]))
        torch.testing.assert_close(utterance.reversed_move, noise_move(*frames[2:]))
        assert utterance.log_mel.shape == (len(frames[0]), 360)
        assert utterance.is_held_out == (utt_id == "utt2")
        if utterance.is_held_out:
            torch.testing.assert_close(utterance.noisy, frames[1])
        else:
            assert utterance.noisy is None


def test_one_layer_of_a_model_whose_layers_differ(teacher, places, monkeypatch):
    waveforms = {u: teacher.read(u, places[u]) for u in ("utt1", "utt2")}
    expected = embed_copies(teacher, [1, 2], waveforms, {"utt2"})["utt1"]
    monkeypatch.setattr(teacher, "embed_layers", None)
    actual = embed_copies(teacher, [2], waveforms, {"utt2"})["utt1"]
    torch.testing.assert_close(actual.frames, expected.frames[:, 1:])


def test_embeddings_that_are_not_finite(teacher, places, monkeypatch):
    waveforms = {u: teacher.read(u, places[u]) for u in ("utt1", "utt2", "utt3")}
    embed = teacher.embed_layers

    def embed_layers(copies):
        broken = len(copies[0]) == len(waveforms["utt3"])
        return [e * (np.nan if broken else 1) for e in embed(copies)]

    monkeypatch.setattr(teacher, "embed_layers", embed_layers)
    with pytest.raises(EmbeddingError, match="utterance utt3: .* NaN or infinity"):
        embed_copies(teacher, [1, 2], waveforms, {"utt2"})
    kept = embed_copies(teacher, [1, 2], waveforms, {"utt2"}, on_error="skip")
    assert list(kept) == ["utt1", "utt2"]
    with pytest.raises(ValueError, match="got 2 .* to train .* 0 to test"):
        embed_copies(teacher, [1, 2], waveforms, {"utt3"}, on_error="skip")
