"""Json files that name their format and version."""

import re
from dataclasses import dataclass, field
from typing import ClassVar, List, Tuple

import pytest

from espnet_mvq.files.versioned_json import VersionedJson

BYTES = '{\n  "format": "f",\n  "version": 2,\n  "a": [\n    1\n  ],\n  "b": 0\n}\n'


@dataclass
class Content(VersionedJson):
    FORMAT: ClassVar[str] = "f"
    VERSION: ClassVar[int] = 2
    ORIGIN: ClassVar[str] = "make one"
    MEANING: ClassVar[Tuple[str, ...]] = ("a",)

    a: List[int] = field(default_factory=list)
    b: int = 0

    def __post_init__(self):
        if self.b < 0:
            raise ValueError("b: got a negative number")


def test_fixed_bytes_and_back(tmp_path):
    path = tmp_path / "x.json"
    Content([1]).save(path)
    assert path.read_text() == BYTES
    assert Content.load(path) == Content([1])


def test_older_version_is_read(tmp_path):
    (tmp_path / "x.json").write_text(BYTES.replace('"version": 2', '"version": 1'))
    assert Content.load(tmp_path / "x.json") == Content([1])


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not readable"),
        ("{", "not readable"),
        ("[]", "not readable"),
        ("3", "not readable"),
        ('{"version": 1}', "not readable: 'format'"),
        (BYTES.replace('"f"', '"g"'), "got format 'g', expected 'f'"),
        (BYTES.replace('"f"', "null"), "got format None"),
        (BYTES.replace("2", "3"), "got version 3, expected at most 2; install a newer"),
        (BYTES.replace('"b"', '"c"'), "unexpected keyword argument 'c'"),
        (BYTES.replace("0", "-1"), "b: got a negative number"),
    ],
)
def test_errors_name_the_file(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Content.load(path)
    assert str(path) in str(caught.value)


def test_missing_file_names_its_origin(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.json: no such file; make one"):
        Content.load(tmp_path / "x.json")


def test_differences_are_those_of_meaning():
    assert Content([1], b=1).differences(Content([2])) == ["a: [1] and [2]"]
