"""Kaldi-style two-column files: `utt_id value`, one utterance a line."""

from pathlib import Path
from typing import Dict, Union


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
