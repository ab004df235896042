"""What all models that read a corpus's speech have in common, and how one is built."""

import contextlib
import importlib
from abc import ABC
from typing import Any, Dict, Mapping, Tuple

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
    """A frozen model; what it gives for an utterance depends on no other.

    Attributes:
        spec: The name it was built from, `BACKEND/NAME`.
        id: Back end, name and a hash of weights and of the settings that decide on
            results: equal id, equal results.
        sample_rate: Sample rate of the speech, in Hz.
        device: Where the model runs.
        dtype: What it computes in; less than float32 by torch's autocast.
        batch_samples: Samples that run at once at most, padding counted, unless one
            piece of speech alone is longer.
        mixes_lengths: Utterances of unlike lengths can run together, padded, without
            change of their results. Else only those of equal length do.
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
        """Compute in `dtype` where torch holds it safe.

        With float32 too: a student may train under autocast, and its teacher in the
        loop is not to.
        """
        if self.dtype == torch.float32:
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, self.dtype)


def build_from(
    backends: Mapping[str, Tuple[str, str]],
    spec: str,
    *args: Any,
    dtype: str,
    batch_s: float,
    conf: Dict[str, Any],
) -> Any:
    """Build a model by its back end.

    Args:
        backends: Module and factory of each back end.
        spec: `BACKEND/NAME`, of one of them.
        *args: What the factory is given after spec and name.
        dtype: What the model computes in, float32, bfloat16 or float16.
        batch_s: Speech that runs at once at most, in seconds, padding counted, unless
            one utterance is longer. 0: every utterance alone.
        conf: Options of the back end.

    Returns:
        The model; its id says if it computes in less than float32.

    Raises:
        TeacherError: If an option is unknown or of no use, or the factory says so.
    """
    if dtype not in DTYPES or batch_s < 0:
        raise TeacherError(
            f"teacher {spec}: got dtype {dtype!r} and batch_s {batch_s}, expected a "
            f"dtype of {', '.join(DTYPES)} and 0 s or more"
        )
    backend, _, name = spec.partition("/")
    module_name, factory = backends[backend]
    factory = getattr(importlib.import_module(module_name), factory)
    try:
        model = factory(spec, name, *args, **conf)
    except TypeError as error:
        if conf and "unexpected keyword argument" in str(error):
            raise TeacherError(f"teacher {spec}: unknown option: {error}") from error
        raise
    model.dtype = DTYPES[dtype]
    model.batch_samples = int(batch_s * model.sample_rate)
    # Not of a model that reads ready embeddings: it computes nothing
    if dtype != "float32" and getattr(model, "reads_audio", True):
        model.id += f",dtype={dtype}"
    return model
