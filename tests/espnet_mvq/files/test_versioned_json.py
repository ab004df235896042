"""Json files that say what they are."""

import re

import pytest

from espnet_mvq.files.versioned_json import format_versioned_json, load_versioned_json

BYTES = '{\n  "format": "f",\n  "version": 2,\n  "a": [\n    1\n  ]\n}\n'


def load(path, build=dict):
    return load_versioned_json(path, "f", 2, build, "make one")


def test_fixed_bytes_and_back(tmp_path):
    text = format_versioned_json("f", 2, {"a": [1]})
    assert text == BYTES
    (tmp_path / "x.json").write_text(text)
    assert load(tmp_path / "x.json") == {"a": [1]}


def test_older_version_is_read(tmp_path):
    (tmp_path / "x.json").write_text(format_versioned_json("f", 1, {"a": 1}))
    assert load(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not readable"),
        ("[]", "not readable"),
        ('{"version": 1}', "not readable: 'format'"),
        (format_versioned_json("g", 2, {}), "got format 'g', expected 'f'"),
        (format_versioned_json("f", 3, {}), "got version 3, expected at most 2"),
        (format_versioned_json("f", 2, {"b": 1}), "unexpected keyword argument 'b'"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load(path, build=lambda *, a=0: a)
    assert str(path) in str(caught.value)


def test_missing_file_tells_where_it_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.json: no such file; make one"):
        load(tmp_path / "x.json")
