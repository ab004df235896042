"""Frozen models that read the speech of a corpus: base of teachers and task losses."""

import contextlib
import sys
from abc import ABC, abstractmethod
from typing import Iterator

import torch

from espnet_mvq.errors import one_line
from espnet_mvq.teachers.audio import read_audio

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class TeacherError(ValueError):
    """A teacher could not be found, loaded or used as asked."""


class SpeechSource(ABC):
    """Base of all that the extraction runs over the utterances of a corpus.

    Attributes:
        spec: The name it was built from, `BACKEND/NAME`.
        id: Back end, name and a hash of weights and of the settings that change
            results: equal id, equal results.
        sample_rate: Sample rate of the speech, in Hz.
        device: Device of the results.
        batch_samples: Maximum samples of a batch, padding included; a longer piece of
            speech runs alone.
        mixes_lengths: Utterances of different lengths can run in one padded batch
            without changing their results. If not, only equal lengths share a batch.
    """

    spec: str
    id: str
    sample_rate: int
    device: torch.device
    batch_samples: int = 0
    mixes_lengths: bool = False

    @abstractmethod
    def read(self, utt_id: str, place: str) -> torch.Tensor:
        """Read the input of an utterance; safe to call from several threads.

        Args:
            utt_id: The utterance.
            place: Its audio file, as in `wav.scp`.

        Raises:
            AudioError: If it cannot be used.
        """


class SpeechModel(SpeechSource):
    """A frozen model; results of an utterance do not depend on other utterances.

    Attributes:
        dtype: Precision of the computation; below float32 by torch's autocast.
    """

    dtype: torch.dtype = torch.float32

    def read(self, utt_id: str, place: str) -> torch.Tensor:
        """Read the waveform of an utterance, in [-1, 1], float32, (S,)."""
        return read_audio(utt_id, place, self.sample_rate)

    def _autocast(self) -> contextlib.AbstractContextManager:
        """Context in which the model computes in `dtype`.

        It turns autocast off for float32: a student may train under autocast, and its
        teacher in the loop must not.
        """
        if self.dtype == torch.float32:
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, self.dtype)


@contextlib.contextmanager
def loading(spec: str, failure: str, remedy: str = "") -> Iterator[None]:
    """Context in which another library loads a teacher; all errors get one class.

    Standard output goes to standard error: libraries print while they load, and
    standard output may be a data pipe.

    Args:
        spec: The whole name of the teacher, for messages.
        failure: Beginning of the message.
        remedy: End of the message.

    Raises:
        TeacherError: If anything is raised in it.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except TeacherError:
        raise
    except ImportError as error:
        backend = spec.partition("/")[0]
        package = backend if backend == "espnet" else f"'espnet-mvq[{backend}]'"
        raise TeacherError(
            f"teacher {spec}: a package it needs cannot be imported ({one_line(error)})"
            f"; install it, for example by pip install {package}"
        ) from error
    except Exception as error:  # libraries raise many kinds
        raise TeacherError(
            f"teacher {spec}: {failure} ({type(error).__name__}: {one_line(error)})"
            f"{remedy}"
        ) from error
