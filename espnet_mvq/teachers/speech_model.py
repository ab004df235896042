"""Frozen models that read the speech of a corpus: base of teachers and task losses."""

import contextlib
from abc import ABC

import torch

from espnet_mvq.teachers.audio import read_audio

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class TeacherError(ValueError):
    """A teacher could not be found, loaded or used as asked."""


class SpeechModel(ABC):
    """A frozen model; results of an utterance do not depend on other utterances.

    Attributes:
        spec: The name it was built from, `BACKEND/NAME`.
        id: Back end, name and a hash of weights and of the settings that change
            results: equal id, equal results.
        sample_rate: Sample rate of the speech, in Hz.
        device: Device of the model.
        dtype: Precision of the computation; below float32 by torch's autocast.
        batch_samples: Maximum samples of a batch, padding included; a longer piece of
            speech runs alone.
        mixes_lengths: Utterances of different lengths can run in one padded batch
            without changing their results. If not, only equal lengths share a batch.
    """

    spec: str
    id: str
    sample_rate: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    batch_samples: int = 0
    mixes_lengths: bool = False

    def read(self, utt_id: str, place: str) -> torch.Tensor:
        """Read an utterance of a corpus.

        Args:
            utt_id: The utterance.
            place: Its audio file, as in `wav.scp`.

        Returns:
            Waveform in [-1, 1], float32, (S,).

        Raises:
            AudioError: If the audio cannot be used.
        """
        return read_audio(utt_id, place, self.sample_rate)

    def _autocast(self) -> contextlib.AbstractContextManager:
        """Context in which the model computes in `dtype`.

        It turns autocast off for float32: a student may train under autocast, and its
        teacher in the loop must not.
        """
        if self.dtype == torch.float32:
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, self.dtype)
