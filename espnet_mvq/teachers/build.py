"""From the name of a teacher to the teacher, and checks of its options."""

import importlib
from typing import Any, Callable, Dict, Mapping, Union

import torch

from espnet_mvq import options
from espnet_mvq.teachers.base import FrameSource
from espnet_mvq.teachers.speech_model import DTYPES, SpeechModel, TeacherError

# Back end -> file and class. A new back end is a new file and a line in this table.
BACKENDS = {
    "s3prl": "s3prl.S3PRLTeacher",
    "transformers": "transformers.build_transformers_teacher",
    "espnet": "espnet.ESPnetTeacher",
    "feats": "features.StoredFeatures",
}


def build_teacher(
    spec: str,
    layer: int = -1,
    device: Union[str, torch.device] = "cpu",
    dtype: str = "float32",
    batch_s: float = 0.0,
    **teacher_conf: Any,
) -> FrameSource:
    """Build a teacher.

    Args:
        spec: `s3prl/UPSTREAM`, `s3prl/UPSTREAM:CHECKPOINT`,
            `transformers/NAME_OR_DIR`, `espnet/EXP_DIR` or `feats/SCP`.
        layer: Layer of the embeddings, counted from 1; 0 = input of the first block,
            -1 = the last layer.
        device: Device of the teacher.
        dtype: Precision of its computation: float32, bfloat16 or float16. Embeddings
            are always float32; a teacher of lower precision has another id.
        batch_s: Maximum speech of a batch in seconds, padding included; a longer
            utterance runs alone. 0: every utterance alone.
        **teacher_conf: Options of the back end.

    Returns:
        A `Teacher` in eval mode; for `feats/SCP` stored embeddings, which have no
        `embed`.

    Raises:
        TeacherError: If there is no such back end, model or layer.
    """
    refusal = TeacherError(
        f"teacher: got {spec!r}, expected BACKEND/NAME with a back end out of "
        f"{', '.join(BACKENDS)}; for example s3prl/wavlm_large"
    )
    return build_from(
        BACKENDS,
        refusal,
        spec,
        layer,
        torch.device(device),
        dtype=dtype,
        batch_s=batch_s,
        conf=teacher_conf,
    )


def build_from(
    backends: Mapping[str, str],
    refusal: TeacherError,
    spec: str,
    *args: Any,
    dtype: str,
    batch_s: float,
    conf: Dict[str, Any],
) -> Any:
    """Build a model with a table of back ends.

    Args:
        backends: Back end -> file and factory, see `load_factory`.
        refusal: Error for a spec of another form or back end.
        spec: `BACKEND/NAME`.
        *args: Arguments of the factory after spec and name.
        dtype: As in `build_teacher`.
        batch_s: As in `build_teacher`.
        conf: Options of the back end.

    Returns:
        The model. Its id includes a dtype below float32.

    Raises:
        TeacherError: `refusal`, or if an option is unknown or invalid, or the factory
            raises it.
    """
    backend, _, name = spec.partition("/")
    if backend not in backends or not name:
        raise refusal
    if (
        dtype not in list(DTYPES)
        or not options.is_of_type(batch_s, float)
        or batch_s < 0
    ):
        raise TeacherError(
            f"teacher {spec}: got dtype {dtype!r} and batch_s {batch_s!r}, expected a "
            f"dtype of {', '.join(DTYPES)} and 0 s or more"
        )
    factory = load_factory(backends[backend])
    check_options(spec, factory, conf)
    model = factory(spec, name, *args, **conf)
    model.dtype = DTYPES[dtype]
    model.batch_samples = int(batch_s * model.sample_rate)
    # Stored embeddings are not computed.
    if dtype != "float32" and isinstance(model, SpeechModel):
        model.id += f",dtype={dtype}"
    return model


def load_factory(entry: str) -> Callable[..., Any]:
    """Import a class or function of this folder, given as `FILE.NAME`.

    Imported only when it is used: back ends need different packages.
    """
    module, _, name = entry.partition(".")
    return getattr(importlib.import_module(f"espnet_mvq.teachers.{module}"), name)


def check_options(spec: str, factory: Callable[..., Any], conf: Dict[str, Any]) -> None:
    """Check options of a back end: see `espnet_mvq.options.check_options`.

    Raises:
        TeacherError: If an option is unknown or of another type.
    """
    try:
        options.check_options(f"teacher {spec}", factory, conf)
    except ValueError as error:
        raise TeacherError(str(error)) from None
