"""Teachers: frozen models that turn speech into embeddings, and stored embeddings."""

from espnet_mvq.teachers.base import FrameSource, Teacher, TeacherError
from espnet_mvq.teachers.build import build_teacher

__all__ = ["FrameSource", "Teacher", "TeacherError", "build_teacher"]
