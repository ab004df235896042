"""Two-column files."""

import pytest

from espnet_mvq.files.scp import read_counts, read_list, read_scp


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


@pytest.mark.parametrize("read", [read_scp, read_list])
@pytest.mark.parametrize("lines_before", [0, 3000])
def test_files_that_are_not_utf8_are_named_with_the_line(tmp_path, read, lines_before):
    """Far into a file too: text is decoded in blocks."""
    lines = [b"utt%d a.wav\n" % n for n in range(lines_before)]
    lines += ["é x\n".encode(), "\xe9 x\n".encode("latin-1")]
    (tmp_path / "a.scp").write_bytes(b"".join(lines))
    message = rf"a\.scp:{lines_before + 2}: got bytes that are not UTF-8 .*iconv"
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "a.scp")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["-3", "1.5", "nan", "x", "1 2"])
def test_counts_are_whole_numbers(tmp_path, value):
    (tmp_path / "a").write_text("utt0 0\nutt1 16000\n")
    assert read_counts(tmp_path / "a") == {"utt0": 0, "utt1": 16000}
    (tmp_path / "a").write_text(f"utt0 1\nutt1 {value}\n")
    message = f"a: utterance utt1: got '{value}', expected a whole number of 0 or more"
    with pytest.raises(ValueError, match=message):
        read_counts(tmp_path / "a")
