"""Text files are written whole."""

import errno
from pathlib import Path

import pytest

from espnet_mvq.files.write_text import write_text


def test_write_text_replaces_the_whole_file(tmp_path):
    for text in ("first, which is longer\n", "é\n"):
        write_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    def full(path, text, encoding):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device: '.*/a'"):
        write_text(tmp_path / "a", "text")
    assert list(tmp_path.iterdir()) == []
