"""What all models that read a corpus's speech have in common, and how one is built."""

import contextlib
import importlib
import inspect
import math
from abc import ABC
from typing import Any, Callable, Dict, Mapping, Tuple, get_args, get_type_hints

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
    if dtype not in list(DTYPES) or not _is_of(batch_s, float) or batch_s < 0:
        raise TeacherError(
            f"teacher {spec}: got dtype {dtype!r} and batch_s {batch_s!r}, expected a "
            f"dtype of {', '.join(DTYPES)} and 0 s or more"
        )
    backend, _, name = spec.partition("/")
    module_name, factory = backends[backend]
    factory = getattr(importlib.import_module(module_name), factory)
    check_options(spec, factory, conf)
    model = factory(spec, name, *args, **conf)
    model.dtype = DTYPES[dtype]
    model.batch_samples = int(batch_s * model.sample_rate)
    # Not of a model that reads ready embeddings: it computes nothing
    if dtype != "float32" and getattr(model, "reads_audio", True):
        model.id += f",dtype={dtype}"
    return model


def check_options(spec: str, factory: Callable[..., Any], conf: Dict[str, Any]) -> None:
    """Refuse options that a back end does not have, and values of another type.

    Args:
        spec: The whole name, for messages.
        factory: Class or function; its options are the parameters with a default. One
            that passes `**` on checks those itself.
        conf: The options.

    Raises:
        TeacherError: If there is such an option.
    """
    parameters = inspect.signature(factory).parameters
    options = [n for n, p in parameters.items() if p.default is not p.empty]
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    of_class = inspect.isclass(factory)
    hints = get_type_hints(factory.__init__ if of_class else factory)
    for key, value in conf.items():
        if key not in options and not (passes_on and key not in parameters):
            raise TeacherError(
                f"teacher {spec}: unknown option: {key}; expected "
                f"{' or '.join(options) or 'none here'}"
            )
        kinds = get_args(hints.get(key)) or (hints.get(key),)
        if key in options and not any(_is_of(value, kind) for kind in kinds):
            words = [_KINDS[kind] for kind in kinds if kind in _KINDS]
            raise TeacherError(
                f"teacher {spec}: got {key} {value!r}, expected {' or '.join(words)}"
            )


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text (in quotes if yaml takes it for something else)",
}


def _is_of(value: Any, kind: Any) -> bool:
    """Say whether a value that yaml gave is of a type of Python."""
    if kind is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    return type(value) is kind
