"""Two-column files."""

import pytest

from espnet_mvq.files.scp import read_scp


def test_scp_keeps_order_and_spaces_in_values(tmp_path):
    (tmp_path / "a.scp").write_text("b x.ark:3\na  sox in.wav -t wav - |\n")
    table = read_scp(tmp_path / "a.scp")
    assert list(table.items()) == [("b", "x.ark:3"), ("a", "sox in.wav -t wav - |")]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a x\nb\n", r"a\.scp:2: got 'b', expected 'utt_id value'"),
        ("a x\n\nb y\n", r"a\.scp:2: got ''"),
        ("a x\nb y\na z\n", r"a\.scp:3: got utterance a again"),
    ],
)
def test_scp_errors_name_file_and_line(tmp_path, text, message):
    (tmp_path / "a.scp").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_scp(tmp_path / "a.scp")


def test_missing_scp(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.scp: no such file"):
        read_scp(tmp_path / "none.scp")
