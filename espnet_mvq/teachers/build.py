"""From a teacher's name to the teacher."""

from typing import Any, Union

import torch

from espnet_mvq.teachers.base import Teacher, TeacherError
from espnet_mvq.teachers.speech_model import build_from

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
    return build_from(
        BACKENDS,
        spec,
        layer,
        torch.device(device),
        dtype=dtype,
        batch_s=batch_s,
        conf=teacher_conf,
    )
