"""Kaldi's text files of utterances: `utt_id value` lines, or lists of ids."""

from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Set, Union


def read_lines(path: Union[str, Path]) -> Iterator[str]:
    """Yield the lines of a UTF-8 file.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If a line is not UTF-8.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}:{_undecodable_line(path)}: got bytes that are not UTF-8 "
            f"({error.reason}), expected UTF-8 text; convert the file, with iconv -f "
            "LATIN1 -t UTF-8 for example"
        ) from error


def read_scp(path: Union[str, Path], empty_values: bool = False) -> Dict[str, str]:
    """Read a two-column file.

    Args:
        path: The file.
        empty_values: Lines without a value have an empty one, as in `text`.

    Returns:
        Values by utterance id, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line has no value, an utterance is repeated, or the file is not
            UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run the stage that makes it")
    table: Dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        columns = line.strip().split(maxsplit=1)
        if empty_values and len(columns) == 1:
            columns.append("")
        if len(columns) != 2:
            raise ValueError(
                f"{path}:{number}: got {line.rstrip()!r}, expected 'utt_id value'"
            )
        if columns[0] in table:
            raise ValueError(
                f"{path}:{number}: got utterance {columns[0]} again, expected each "
                "once; take one of the lines out"
            )
        table[columns[0]] = columns[1]
    return table


def read_counts(path: Union[str, Path]) -> Dict[str, int]:
    """Read a two-column file of counts, such as `utt2num_samples`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: See `read_scp`; or if a value is not a whole number of 0 or more.
    """
    table = read_scp(path)
    for utt_id, text in table.items():
        if not text.isdecimal():
            raise ValueError(
                f"{path}: utterance {utt_id}: got {text!r}, expected a whole number of "
                "0 or more; make the file again"
            )
    return {utt_id: int(text) for utt_id, text in table.items()}


def read_ids(path: Union[str, Path]) -> List[str]:
    """Return the first word of each line, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"list of utterances {path}: no such file")
    return [line.split()[0] for line in read_lines(path) if line.strip()]


def read_list(path: Union[str, Path]) -> Set[str]:
    """Return the utterance ids of a file as a set; see `read_ids`."""
    return set(read_ids(path))


def first_few(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first utterances of a list, for messages."""
    return separator.join(items[:5])


def _undecodable_line(path: Path) -> int:
    """Return the number of the first line that is not UTF-8."""
    number = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return number
