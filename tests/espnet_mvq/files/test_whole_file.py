"""Files are written whole."""

import errno
import re
from pathlib import Path

import pytest

from espnet_mvq.files.whole_file import replace_when_whole, write_text


def test_write_text_replaces_the_whole_file(tmp_path):
    for text in ("first, which is longer\n", "é\n"):
        write_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    message = f"{tmp_path}/a: could not be written (No space left on device); make room"
    with pytest.raises(OSError, match=re.escape(message)):
        write_text(tmp_path / "a", "text")
    assert list(tmp_path.iterdir()) == []


def test_any_error_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt):
        with replace_when_whole(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
