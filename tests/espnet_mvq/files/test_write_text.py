"""Text files are written whole."""

from espnet_mvq.files.write_text import write_text


def test_write_text_replaces_the_whole_file(tmp_path):
    for text in ("first, which is longer\n", "é\n"):
        write_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    assert len(list(tmp_path.iterdir())) == 1
