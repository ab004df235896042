"""Data types of the plugin for ESPnet's data sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Iterator, List, Tuple, Union

import numpy as np
from espnet2.train.dataset import DATA_TYPES

from espnet_mvq.files.scp import read_list
from espnet_mvq.indexes import FrameReader
from espnet_mvq.indexes.teacher_losses import TeacherLossMetadata, read_teacher_losses

# ESPnet takes the first entry that is a prefix of the type's name, so none of its own
# may be a prefix of these.
NAME = "mvq_ark"
LOSS_NAME = "mvq_loss"
LIST_NAME = "mvq_list"


class NumberReader(Mapping):
    """Maps utterance ids to one number each, float32, (1,).

    Args:
        numbers: Numbers by utterance.
        default: Number of all other utterances.
    """

    def __init__(self, numbers: Mapping, default: float):
        self._numbers = numbers
        self._default = default

    def __getitem__(self, utt_id: str) -> np.ndarray:
        return np.array([self._numbers.get(utt_id, self._default)], dtype=np.float32)

    def __contains__(self, utt_id: object) -> bool:
        return utt_id in self._numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def teacher_loss_reader(path: str) -> NumberReader:
    """Read the teacher's task losses of utterances.

    An utterance without a loss, for example without text, has NaN; one that the teacher
    could not align has an infinite loss.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged.
    """
    losses = dict.fromkeys(skipped_utterances(path), np.inf)
    return NumberReader({**losses, **read_teacher_losses(path)}, np.nan)


def skipped_utterances(path: Union[str, Path]) -> List[str]:
    """Return the utterances that are skipped according to the metadata of losses."""
    metadata_path = TeacherLossMetadata.path_beside(path)
    if not metadata_path.is_file():
        return []
    return TeacherLossMetadata.load(metadata_path).skipped


def list_reader(path: str) -> NumberReader:
    """Read a list of utterances as flags: 1 for those in it, 0 for all others.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    return NumberReader(dict.fromkeys(read_list(path), 1.0), 0.0)


def register_data_types() -> Tuple[str, ...]:
    """Add the data types to ESPnet's table, and return their names."""
    DATA_TYPES[NAME] = dict(
        func=FrameReader,
        kwargs=[],
        help="Codebook indexes of espnet_mvq (uint8, frames x codebooks), embeddings "
        "(float16, frames x channels) or posteriors (uint16, frames x 2 k + 1); "
        "missing utterances read as empty. codebook_indexes.json, embeddings.json or "
        "posteriors.json must lie beside the scp."
        "\n\n"
        "   utterance_id_a codebook_indexes.1.ark:15\n"
        "   utterance_id_b codebook_indexes.1.ark:5231\n"
        "   ...",
    )
    DATA_TYPES[LOSS_NAME] = dict(
        func=teacher_loss_reader,
        kwargs=[],
        help="Task loss of a teacher on each utterance, for espnet_mvq; NaN where "
        "there is none.\n\n"
        "   utterance_id_a 0.7312\n"
        "   utterance_id_b 1.2041\n"
        "   ...",
    )
    DATA_TYPES[LIST_NAME] = dict(
        func=list_reader,
        kwargs=[],
        help="List of utterances, for espnet_mvq: those without a text of their own."
        "\n\n"
        "   utterance_id_a\n"
        "   utterance_id_b\n"
        "   ...",
    )
    return NAME, LOSS_NAME, LIST_NAME
