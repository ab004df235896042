"""Options of back ends, checked before a model is loaded."""

import importlib
import math

import pytest

from espnet_mvq.teachers import TeacherError
from espnet_mvq.teachers.build import check_options

NUMBER, WHOLE, TEXT = "a finite number", "a whole number", "a text .in quotes"


def back_end(name):
    module, _, attribute = name.rpartition(".")
    module = importlib.import_module(f"espnet_mvq.teachers.{module}")
    return getattr(module, attribute)


@pytest.mark.parametrize("value", ["abc", math.nan, math.inf, True, [1], {}])
@pytest.mark.parametrize(
    "name, option, words",
    [
        ("whisper.WhisperTeacher", "window_s", NUMBER),
        ("s3prl.S3PRLTeacher", "frame_offset_samples", NUMBER),
        ("espnet.ESPnetTeacher", "frame_shift_samples", WHOLE),
        ("espnet.ESPnetTeacher", "frame_offset_samples", NUMBER),
        ("features.StoredFeatures", "frame_shift_samples", WHOLE),
        ("features.StoredFeatures", "frame_offset_samples", NUMBER),
        ("features.StoredFeatures", "sample_rate", WHOLE),
    ],
)
def test_options_that_must_be_numbers(name, option, words, value):
    with pytest.raises(TeacherError, match=f"teacher x: {option}: got .*{words}"):
        check_options("x", back_end(name), {option: value})


@pytest.mark.parametrize("value", [False, 1, 1.5, None, []])
@pytest.mark.parametrize(
    "name, option",
    [
        ("espnet.ESPnetTeacher", "checkpoint"),
        ("espnet_task_loss.ESPnetTaskLoss", "checkpoint"),
        ("espnet_task_loss.ESPnetTaskLoss", "task"),
        ("espnet_task_loss.ESPnetTaskLoss", "bpemodel"),
        ("transformers_task_loss.CTCTaskLoss", "case"),
        ("transformers_task_loss.CTCTaskLoss", "ignored_characters"),
        ("whisper_task_loss.WhisperTaskLoss", "language"),
        ("whisper_task_loss.WhisperTaskLoss", "leading_space"),
    ],
)
def test_options_that_must_be_texts_or_booleans(name, option, value):
    optional = ("checkpoint", "bpemodel", "language")
    if value is None and option in optional:
        return check_options("x", back_end(name), {option: value})
    if value is False and option == "leading_space":
        return check_options("x", back_end(name), {option: value})
    words = "true or false" if option == "leading_space" else TEXT
    with pytest.raises(TeacherError, match=f"teacher x: {option}: got .*{words}"):
        check_options("x", back_end(name), {option: value})


def test_options_that_are_right_or_unknown():
    whisper = back_end("whisper.WhisperTeacher")
    for value in (0, 30, 1.5):
        check_options("x", whisper, {"window_s": value})
    for key in ("spec", "config", "device", "no_such"):
        with pytest.raises(
            TeacherError, match=f"option: {key}; expected some of window_s"
        ):
            check_options("x", whisper, {key: 1})
    for value in ("a", 2024, None):
        check_options("x", back_end("features.StoredFeatures"), {"teacher_id": value})
    # The class behind it knows which there are
    factory = back_end("transformers.build_transformers_teacher")
    check_options("x", factory, {"no_such": 1})
    with pytest.raises(TeacherError, match="unknown option: layer; expected none here"):
        check_options("x", factory, {"layer": 1})
