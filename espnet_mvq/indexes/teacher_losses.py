"""Teacher losses of a corpus: `utt_id value` lines, and their metadata as json."""

import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Dict, List, Sequence, Tuple, Union

from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.versioned_json import VersionedJson


def read_teacher_losses(path: Union[str, Path]) -> Dict[str, float]:
    """Read the loss of each utterance.

    ESPnet reads the same file as data of type `text_float`.

    Args:
        path: File of `utt_id value` lines.

    Returns:
        Losses in nats per label by utterance id, in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, a line is malformed, a value is not finite, or an
            utterance is repeated.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"teacher losses {path}: no such file; make it with python3 -m "
            "espnet_mvq.bin.teacher_loss"
        )
    losses: Dict[str, float] = {}
    for utt_id, text in read_scp(path).items():
        try:
            losses[utt_id] = float(text)
        except ValueError:
            losses[utt_id] = math.nan
        if not math.isfinite(losses[utt_id]):
            raise ValueError(
                f"teacher losses {path}: utterance {utt_id} has {text!r}, expected one "
                "finite number; make the file again, or take the line out"
            )
    if not losses:
        raise ValueError(
            f"teacher losses {path}: got no utterance, expected 'utt_id value' lines; "
            "make the file again"
        )
    return losses


def format_teacher_losses(losses: Dict[str, float]) -> str:
    """Return `utt_id value` lines; 9 digits keep all that a float32 has."""
    return "".join(f"{utt_id} {value:.9g}\n" for utt_id, value in losses.items())


@dataclass(kw_only=True)
class TeacherLossMetadata(VersionedJson):
    """Metadata of teacher losses, in `NAME.json` beside `NAME`.

    Attributes:
        teacher: Id of the teacher: back end, name and a hash of all its weights.
        loss: Kind of loss: ctc, attention, or espnet (the model's own sum of both).
        label: Unit of text by whose number each loss is divided.
        inputs: Hash of the utterances, their audio's places and their texts.
        num_utterances: Number of utterances with a loss.
        num_labels: Number of labels of all utterances.
        mean: Mean of the utterances' losses, unweighted.
        standard_deviation: Their standard deviation, over N (not N - 1).
        minimum, maximum: Their extremes.
        quartiles: Their 25th, 50th and 75th percentile, linearly interpolated.
        num_without_text: Utterances that have no loss because their text is empty.
        skipped: Utterances left out because their audio or text could not be used.
        espnet_mvq_version: Version that wrote the file.
    """

    FORMAT: ClassVar[str] = "espnet_mvq.teacher_loss"
    ORIGIN: ClassVar[str] = (
        "python3 -m espnet_mvq.bin.teacher_loss writes it beside the losses: run it "
        "again"
    )
    MEANING: ClassVar[Tuple[str, ...]] = ("teacher", "loss", "label", "inputs")

    teacher: str
    loss: str
    label: str
    inputs: str
    unit: str = "nats per label"
    num_utterances: int = 0
    num_labels: int = 0
    mean: float = math.nan
    standard_deviation: float = math.nan
    minimum: float = math.nan
    quartiles: List[float] = field(default_factory=list)
    maximum: float = math.nan
    num_without_text: int = 0
    skipped: List[str] = field(default_factory=list)
    espnet_mvq_version: str = ""

    @staticmethod
    def path_beside(losses: Union[str, Path]) -> Path:
        """Return the path of the metadata of a file of losses."""
        path = Path(losses)
        return path.with_name(f"{path.name}.json")

    def describe(self, losses: Sequence[float], num_labels: int) -> None:
        """Fill in counts and statistics.

        Args:
            losses: Losses of all utterances, in nats per label; at least one.
            num_labels: Number of labels of all utterances.
        """
        self.num_utterances, self.num_labels = len(losses), num_labels
        self.mean = statistics.fmean(losses)
        self.standard_deviation = statistics.pstdev(losses, self.mean)
        self.minimum, self.maximum = min(losses), max(losses)
        # `quantiles` needs at least two numbers.
        several = [*losses, *losses] if len(losses) == 1 else losses
        self.quartiles = statistics.quantiles(several, n=4, method="inclusive")
