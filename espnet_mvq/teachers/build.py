"""From a teacher's name to the teacher."""

import importlib
from typing import Any, Union

import torch

from espnet_mvq.teachers.base import DTYPES, Teacher, TeacherError

# back end -> module and class; a new back end is a new file and a line here
BACKENDS = {
    "s3prl": ("espnet_mvq.teachers.s3prl", "S3PRLTeacher"),
    "transformers": ("espnet_mvq.teachers.transformers", "build_transformers_teacher"),
    "espnet": ("espnet_mvq.teachers.espnet", "ESPnetTeacher"),
    "feats": ("espnet_mvq.teachers.features", "FeatureTeacher"),
}


def build_teacher(
    spec: str,
    layer: int = -1,
    device: Union[str, torch.device] = "cpu",
    dtype: str = "float32",
    batch_s: float = 0.0,
    **teacher_conf: Any,
) -> Teacher:
    """Build a teacher.

    Args:
        spec: `s3prl/UPSTREAM`, `s3prl/UPSTREAM:CHECKPOINT`,
            `transformers/NAME_OR_DIR`, `espnet/EXP_DIR` or `feats/SCP`.
        layer: Layer of the embeddings, counted from 1; 0 = input of the first block,
            -1 = the last layer.
        device: Where the teacher runs.
        dtype: What it computes in, float32, bfloat16 or float16. Embeddings come out
            as float32; those of less precision are another teacher's to a quantizer.
        batch_s: Speech that runs at once at most, in seconds, padding counted, unless
            one utterance is longer. 0: every utterance alone.
        **teacher_conf: Options of the back end.

    Returns:
        The teacher, in eval mode.

    Raises:
        TeacherError: If there is no such back end, model or layer.
    """
    backend, slash, name = spec.partition("/")
    if backend not in BACKENDS or not slash or not name:
        raise TeacherError(
            f"teacher: got {spec!r}, expected BACKEND/NAME with a back end out of "
            f"{', '.join(BACKENDS)}; for example s3prl/wavlm_large"
        )
    if dtype not in DTYPES or batch_s < 0:
        raise TeacherError(
            f"teacher {spec}: got dtype {dtype!r} and batch_s {batch_s}, expected a "
            f"dtype of {', '.join(DTYPES)} and 0 s or more"
        )
    module_name, factory = BACKENDS[backend]
    factory = getattr(importlib.import_module(module_name), factory)
    try:
        teacher = factory(spec, name, layer, torch.device(device), **teacher_conf)
    except TypeError as error:
        if teacher_conf and "unexpected keyword argument" in str(error):
            raise TeacherError(f"teacher {spec}: unknown option: {error}") from error
        raise
    teacher.dtype = DTYPES[dtype]
    teacher.batch_samples = int(batch_s * teacher.sample_rate)
    if dtype != "float32" and teacher.reads_audio:
        teacher.id += f",dtype={dtype}"
    return teacher
