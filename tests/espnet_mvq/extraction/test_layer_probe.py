"""Probes of layers on frames whose text, noise or time is known."""

import math

import pytest
import torch
from builders import FRAMES

from espnet_mvq.extraction.layer_probe import (
    add_white_noise,
    join_frames,
    log_mel_context,
    noise_move,
    reversal_ratio,
    standardise,
    text_error_rate,
)

LETTERS = "abcd "
TEXTS = ["abcd abba", "dad cab bad", "cab dab", "add a bad cab", "bad dad", "abc dab"]


def spell(text, generator):
    """Return frames (T, 8) of a text: a channel for each letter, then a pause."""
    codes = torch.eye(8)
    rows = [codes[n] for letter in text for n in [LETTERS.index(letter)] * 2 + [7]]
    return torch.stack(rows) + 0.1 * torch.randn(len(rows), 8, generator=generator)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_frames_that_spell_the_text_are_read_without_error(generator):
    utterances = [(spell(text, generator), text) for text in TEXTS * 4]
    state = torch.get_rng_state()
    assert text_error_rate(utterances[6:], utterances[:6], learning_rate=0.03) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_random_frames_are_read_with_errors_and_alike_for_a_seed(generator):
    frames = [torch.randn(3 * len(text), 8, generator=generator) for text in TEXTS * 4]
    utterances = list(zip(frames, TEXTS * 4))
    rates = [text_error_rate(utterances[6:], utterances[:6]) for _ in range(2)]
    assert rates[0] == rates[1] > 0.6


def test_a_huge_channel_does_not_hide_the_others(generator):
    """As in Whisper's upper layers, where one channel has nearly all the variance."""

    def with_outlier(text):
        frames = spell(text, generator)
        frames[:, 6] = 1000 * torch.rand(len(frames), generator=generator).pow(8)
        return frames, text

    utterances = [with_outlier(text) for text in TEXTS * 4]
    assert text_error_rate(utterances[6:], utterances[:6], num_steps=200) < 0.3


def test_a_text_longer_than_its_frames_is_left_out(generator):
    utterances = [(spell(text, generator), text) for text in TEXTS * 4]
    too_long = (torch.zeros(3, 8), "abcd" * 5)
    assert text_error_rate([*utterances[6:], too_long], utterances[:6]) < 0.1


def test_standardise_uses_the_first_frames_alone():
    first, other = standardise(
        torch.tensor([[1.0, 5], [3, 5]]), torch.tensor([[5.0, 6]])
    )
    assert first.tolist() == [[-1, 0], [1, 0]]
    assert other.tolist() == [[3, 1]]


def test_join_frames():
    frames = torch.arange(5.0).unsqueeze(1)
    assert join_frames(frames, 2).tolist() == [[0.5], [2.5]]
    assert join_frames(frames[:1], 2).tolist() == [[0]]


def test_log_mel_has_the_time_of_the_teacher_frames():
    """A click in the middle of a teacher frame is in its middle spectrum."""
    frame, waveform = 20, torch.zeros(16000)
    waveform[320 * frame + 200] = 1.0
    features = log_mel_context(waveform, 49, **FRAMES).reshape(49, 9, 40)
    energy = features.sum(2)
    assert energy[frame, 4] == energy.max()
    assert energy[frame + 3, 1] > energy[frame + 3, 4]  # 60 ms before
    assert energy[5].std() == 0


@pytest.mark.parametrize("num_samples, num_frames", [(1, 1), (400, 2)])
def test_log_mel_of_short_speech(num_samples, num_frames):
    features = log_mel_context(torch.ones(num_samples), num_frames, **FRAMES)
    assert features.shape == (num_frames, 360) and features.isfinite().all()


def test_noise_has_the_power_that_was_asked_for(generator):
    speech = torch.sin(torch.arange(32000.0))
    noise = add_white_noise(speech, 20.0, generator) - speech
    ratio = speech.square().mean() / noise.square().mean()
    assert 10 * math.log10(ratio) == pytest.approx(20, abs=0.2)
    silence = torch.zeros(100)
    assert torch.equal(add_white_noise(silence, 20.0, generator), silence)


def test_noise_move_counts_channels_alike(generator):
    clean = torch.randn(500, 2, 4, generator=generator)
    noise = torch.randn(500, 2, 4, generator=generator)
    move = noise_move(clean, clean + noise)
    expected = torch.nn.functional.cosine_similarity(clean, clean + noise, dim=2)
    torch.testing.assert_close(move, 1 - expected.mean(0), rtol=0, atol=0.02)
    scale, shift = torch.tensor([1.0, 10, 100, 1000]), 7.0
    scaled = noise_move(clean * scale + shift, (clean + noise) * scale + shift)
    torch.testing.assert_close(scaled, move, rtol=0, atol=1e-4)
    assert noise_move(clean, clean).abs().max() < 1e-6
    assert noise_move(torch.zeros(5, 2, 4), torch.ones(5, 2, 4)).isfinite().all()


def test_reversal_ratio_is_a_geometric_mean():
    ratio = reversal_ratio(
        torch.tensor([[0.1, 0.2], [0.2, 0.0]]), torch.tensor([[0.2, 0.2], [1.6, 0.0]])
    )
    torch.testing.assert_close(ratio, torch.tensor([4.0, 1.0]))
