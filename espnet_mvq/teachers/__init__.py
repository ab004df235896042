"""Teachers: frozen models that turn speech into embeddings."""

from espnet_mvq.teachers.base import Teacher, TeacherError
from espnet_mvq.teachers.build import build_teacher

__all__ = ["Teacher", "TeacherError", "build_teacher"]
