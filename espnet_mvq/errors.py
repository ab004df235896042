"""Errors of other libraries in our messages."""

_MAX_TEXT = 300  # characters


def one_line(error: Exception) -> str:
    """Return the text of an error in one line; the middle of a long text is cut out."""
    words, half = " ".join(str(error).split()), _MAX_TEXT // 2
    return words if len(words) <= 2 * half else f"{words[:half]}...{words[-half:]}"
