"""Audio of a corpus: one channel, at the sample rate of the teacher."""

import re
from typing import Tuple

import numpy as np
import soundfile
import torch

from espnet_mvq.files.ark import read_audio as read_ark_audio

_ARK_PLACE = re.compile(r"\.ark:\d+$")


class AudioError(ValueError):
    """An utterance's audio cannot be used."""


def read_audio(utt_id: str, place: str, sample_rate: int) -> torch.Tensor:
    """Read the audio of an utterance.

    Args:
        utt_id: The utterance, for messages.
        place: Its value in `wav.scp`: a file soundfile can read, or `FILE.ark:OFFSET`.
        sample_rate: Required sample rate, in Hz.

    Returns:
        Samples in [-1, 1], float32, (S,).

    Raises:
        AudioError: If it is unreadable or empty, has another rate or several channels,
            or contains NaN or infinity.
    """
    if place.endswith("|"):
        raise AudioError(
            f"utterance {utt_id}: {place!r} is a pipe; expected a file. Run ESPnet's "
            "stage 3 (format_wav_scp), which turns pipes into files"
        )
    try:
        samples, rate = _read(place)
    except Exception as error:  # soundfile and kaldiio raise many kinds
        raise AudioError(
            f"utterance {utt_id}: could not read {place} ({error}); replace the file "
            "or take the utterance out of wav.scp"
        ) from error
    if samples.ndim != 1:
        problem = f"has {samples.shape[1]} channels, expected one; convert it to mono"
    elif rate != sample_rate:
        problem = (
            f"has {rate} Hz, expected {sample_rate} Hz as the teacher; resample it "
            f"(ESPnet: run.sh --fs {sample_rate})"
        )
    elif len(samples) == 0:
        problem = "is empty (0 samples); take it out of wav.scp"
    elif not np.isfinite(samples).all():
        problem = (
            "contains NaN or infinity; replace the file or take the utterance out of "
            "wav.scp"
        )
    else:
        return torch.from_numpy(samples)
    raise AudioError(f"utterance {utt_id}: {place} {problem}")


def _read(place: str) -> Tuple[np.ndarray, int]:
    """Read samples, float32, (S,) or (S, channels), and the rate in Hz."""
    if not _ARK_PLACE.search(place):
        return soundfile.read(place, dtype="float32")
    rate, samples = read_ark_audio(place)
    if samples.dtype == np.uint8:  # 8-bit wav, whose silence is 128
        samples = (samples.astype(np.int16) - 128).astype(np.int8)
    if samples.dtype.kind == "i":
        samples = samples / np.float32(2 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32), rate
