"""Kaldi-style files of utterances: `utt_id value`, or lists of them."""

from pathlib import Path
from typing import Dict, Set, Union


def read_scp(path: Union[str, Path]) -> Dict[str, str]:
    """Read a two-column file in its order.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line has no value or an utterance stands there twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run the stage that makes it")
    table: Dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            columns = line.strip().split(maxsplit=1)
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


def read_list(path: Union[str, Path]) -> Set[str]:
    """Return the utterances of a file, the first word of each line.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"list of utterances {path}: no such file")
    with path.open(encoding="utf-8") as lines:
        return {line.split()[0] for line in lines if line.strip()}
