"""Probes of a teacher's layer: does it spell the text, and does it know the speech?

All are small enough for some minutes of speech on a CPU.
"""

import math
from typing import List, Sequence, Tuple

import jiwer
import torch
import torchaudio
from torch.nn.functional import ctc_loss, dropout, layer_norm
from torch.nn.utils.rnn import pad_sequence

from espnet_mvq.quantization.quality import channel_statistics

# Frames (T, D) of an utterance, and its text
Transcribed = Tuple[torch.Tensor, str]

_MEL_BINS = 40
_MEL_SHIFT_S, _MEL_WINDOW_S = 0.01, 0.025
_CONTEXT = range(-8, 9, 2)  # mel frames around the centre of a teacher frame
_LEAST_MOVE = 1e-6  # keeps the ratio of two moves finite


def text_error_rate(
    train: Sequence[Transcribed],
    held_out: Sequence[Transcribed],
    *,
    num_steps: int = 100,
    batch_size: int = 4,
    learning_rate: float = 0.003,
    dropout_rate: float = 0.3,
    seed: int = 0,
) -> float:
    """Character error rate of a linear layer that reads characters off frames.

    The layer is trained with CTC for a fixed number of steps of Adam, with a step size
    that falls to 0, and decoded greedily. Frames are normalised one by one, since a few
    channels of some models are a thousand times as large as all others, and then by
    channel.

    Args:
        train: Utterances to train on.
        held_out: Utterances to decode.
        num_steps: Number of steps.
        batch_size: Maximum number of utterances of a step.
        learning_rate: Learning rate of the first step.
        dropout_rate: Share of the channels that are dropped in training.
        seed: Seed of the order and of the dropout.

    Returns:
        Errors over characters of the held-out texts, which may exceed 1.
    """
    characters = sorted({character for _, text in train for character in text})
    label_of = {character: n for n, character in enumerate(characters, 1)}  # 0: blank
    frames = [layer_norm(x.float(), x.shape[1:]) for x, _ in train]
    mean, scale = _statistics(torch.cat(frames))
    frames = [(x - mean) / scale for x in frames]
    labels = [torch.tensor([label_of[c] for c in text]) for _, text in train]
    weight = torch.zeros(len(mean), len(characters) + 1, requires_grad=True)
    bias = torch.zeros(len(characters) + 1, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias])
    generator = torch.Generator().manual_seed(seed)
    order: List[int] = []
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        for step in range(num_steps):
            if len(order) < min(batch_size, len(train)):
                order = torch.randperm(len(train), generator=generator).tolist()
            rows, order = order[:batch_size], order[batch_size:]
            scores = [dropout(frames[n], dropout_rate) @ weight + bias for n in rows]
            num_labels = torch.tensor([len(labels[n]) for n in rows])
            loss = ctc_loss(
                pad_sequence(scores).log_softmax(2),
                torch.cat([labels[n] for n in rows]),
                torch.tensor([len(score) for score in scores]),
                num_labels,
                reduction="sum",
                zero_infinity=True,  # texts that are longer than their frames
            )
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / num_steps)
            optimizer.zero_grad()
            (loss / num_labels.sum()).backward()
            optimizer.step()
    hypotheses = []
    with torch.no_grad():
        for x, _ in held_out:
            x = (layer_norm(x.float(), x.shape[1:]) - mean) / scale
            best = (x @ weight + bias).argmax(1).unique_consecutive()
            hypotheses.append("".join(characters[n - 1] for n in best.tolist() if n))
    return jiwer.cer([text for _, text in held_out], hypotheses)


def _statistics(x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (D,) of the channels of frames (F, D); 1 if constant."""
    mean, variance, constant = channel_statistics(x)
    return mean.float(), torch.where(constant, 1.0, variance.sqrt()).float()


def standardise(train: torch.Tensor, *others: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    """Bring frames (F, D) to mean 0 and deviation 1 of the channels of the first."""
    mean, scale = _statistics(train)
    return tuple((x - mean) / scale for x in (train, *others))


def join_frames(frames: torch.Tensor, count: int) -> torch.Tensor:
    """Average each `count` frames: (T, D) -> (T // count, D), at least one."""
    count = min(count, len(frames))
    whole = len(frames) // count * count
    return frames[:whole].reshape(-1, count, frames.shape[1]).mean(1)


def log_mel_context(
    waveform: torch.Tensor,
    num_frames: int,
    *,
    sample_rate: int,
    frame_shift_samples: int,
    frame_offset_samples: float,
) -> torch.Tensor:
    """Log-mel spectrogram around each teacher frame: what a student can see.

    Args:
        waveform: Samples, (S,).
        num_frames: Number of teacher frames T.
        sample_rate: In Hz.
        frame_shift_samples: Samples between two teacher frames.
        frame_offset_samples: Centre of teacher frame 0.

    Returns:
        9 spectra of 40 bins, 20 ms apart, around the centre of each frame, (T, 360).
    """
    hop = round(_MEL_SHIFT_S * sample_rate)
    window = round(_MEL_WINDOW_S * sample_rate)
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate,
        n_fft=2 ** math.ceil(math.log2(window)),
        win_length=window,
        hop_length=hop,
        n_mels=_MEL_BINS,
        # Speech may be shorter than the window that a reflection would need.
        pad_mode="constant",
    )
    spectra = mel(waveform.float()).clamp(min=1e-8).log().T
    centres = frame_offset_samples + frame_shift_samples * torch.arange(num_frames)
    rows = (centres / hop).round().long().unsqueeze(1) + torch.tensor(list(_CONTEXT))
    return spectra[rows.clamp(0, len(spectra) - 1)].flatten(1)


def add_white_noise(
    waveform: torch.Tensor, snr_db: float, generator: torch.Generator
) -> torch.Tensor:
    """Add white noise to a waveform (S,), its power below that of the whole."""
    noise = torch.randn(len(waveform), generator=generator)
    power = waveform.square().mean() / 10 ** (snr_db / 10)
    return waveform + noise * power.sqrt()


def noise_move(clean: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """How far noise moves the frames of an utterance, by layer.

    Args:
        clean: Embeddings of the utterance, (T, L, D).
        noisy: Embeddings of the same speech in noise, (T, L, D).

    Returns:
        Mean of 1 - cosine over the frames, (L,), after each channel was brought to the
        mean 0 and deviation 1 of the clean frames.
    """
    mean, deviation = clean.mean(0), clean.std(0, unbiased=False)
    scale = deviation.clamp(min=1e-6 * float(deviation.max()) or 1.0)
    parts = ((clean - mean) / scale, (noisy - mean) / scale)
    return 1 - torch.nn.functional.cosine_similarity(*parts, dim=2).mean(0)


def reversal_ratio(moves: torch.Tensor, reversed_moves: torch.Tensor) -> torch.Tensor:
    """How much farther noise moves the frames if the speech runs backwards.

    Played backwards, speech has the same sounds, loudness and spectrum, but nobody
    speaks so. A layer that holds knowledge of speech against the noise resists less
    there: the ratio is above 1. It is near 1 for a layer that hears sounds only, and
    below 1 if the speech ran backwards before.

    Args:
        moves: `noise_move` of each utterance, (U, L).
        reversed_moves: Of its reversed copy in the same noise, (U, L).

    Returns:
        Geometric mean of the ratio over the utterances, (L,).
    """
    least = _LEAST_MOVE
    ratios = reversed_moves.clamp(min=least).log() - moves.clamp(min=least).log()
    return ratios.mean(0).exp()
