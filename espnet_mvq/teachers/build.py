"""From a teacher's name to the teacher."""

import importlib
from typing import Any, Union

import torch

from espnet_mvq.teachers.base import Teacher, TeacherError

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
    **teacher_conf: Any,
) -> Teacher:
    """Build a teacher.

    Args:
        spec: `s3prl/UPSTREAM`, `s3prl/UPSTREAM:CHECKPOINT`,
            `transformers/NAME_OR_DIR`, `espnet/EXP_DIR` or `feats/SCP`.
        layer: Layer of the embeddings, counted from 1; 0 = input of the first block,
            -1 = the last layer.
        device: Where the teacher runs.
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
    module_name, factory = BACKENDS[backend]
    factory = getattr(importlib.import_module(module_name), factory)
    try:
        return factory(spec, name, layer, torch.device(device), **teacher_conf)
    except TypeError as error:
        if teacher_conf and "unexpected keyword argument" in str(error):
            raise TeacherError(f"teacher {spec}: unknown option: {error}") from error
        raise
