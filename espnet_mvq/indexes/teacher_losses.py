"""Teacher losses of a corpus: `utt_id value` lines, and a json that explains them."""

import dataclasses
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Dict, List, Sequence, Tuple, Union

from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.versioned_json import format_versioned_json, load_versioned_json

FILE_VERSION = 1
UNIT = "nats per label"


def read_teacher_losses(path: Union[str, Path]) -> Dict[str, float]:
    """Read the loss of each utterance, in the order of the file.

    ESPnet reads the same file as data of type `text_float`.

    Args:
        path: The file, `utt_id value` in each line.

    Returns:
        Losses in nats per label, all finite.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, a line is not of this form, a value is no number,
            NaN or infinite, or an utterance stands there twice.
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
    """Return the lines of a file; 9 digits are all that a float32 has."""
    return "".join(f"{utt_id} {value:.9g}\n" for utt_id, value in losses.items())


@dataclass(kw_only=True)
class TeacherLossMetadata:
    """What the json beside teacher losses says of them.

    Attributes:
        teacher: Id of the teacher: back end, name and a hash of all its weights.
        loss: Kind of loss: ctc, attention, or espnet (the model's own sum of both).
        label: What the losses are divided by the number of.
        inputs: Hash of the utterances, their audio's places and their texts.
        num_utterances: Utterances with a loss.
        num_labels: Labels of all of them.
        mean: Of the losses of all utterances, each counted once.
        standard_deviation: Likewise, about this mean, over N (not N - 1).
        minimum, maximum: Likewise.
        quartiles: 25th, 50th and 75th percentile, linear between neighbours.
        num_without_text: Utterances that have no loss because their text is empty.
        skipped: Utterances left out because their audio or text could not be used.
        espnet_mvq_version: Version that wrote the file.
    """

    FORMAT: ClassVar[str] = "espnet_mvq.teacher_loss"
    MEANING: ClassVar[Tuple[str, ...]] = ("teacher", "loss", "label", "inputs")

    teacher: str
    loss: str
    label: str
    inputs: str
    unit: str = UNIT
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
        """Return where the json of a file of losses is: `NAME.json` beside `NAME`."""
        path = Path(losses)
        return path.with_name(f"{path.name}.json")

    def describe(self, losses: Sequence[float], num_labels: int) -> None:
        """Fill in counts and statistics.

        Args:
            losses: Of all utterances, in nats per label; at least one.
            num_labels: Labels of all of them.
        """
        self.num_utterances, self.num_labels = len(losses), num_labels
        self.mean = statistics.fmean(losses)
        self.standard_deviation = statistics.pstdev(losses, self.mean)
        self.minimum, self.maximum = min(losses), max(losses)
        # `quantiles` wants two numbers at least
        pair = [*losses, losses[0]] if len(losses) == 1 else list(losses)
        self.quartiles = statistics.quantiles(pair, n=4, method="inclusive")

    def to_json(self) -> str:
        """Return the content of the json."""
        content = dataclasses.asdict(self)
        return format_versioned_json(self.FORMAT, FILE_VERSION, content)

    @classmethod
    def load(cls, path: Union[str, Path]) -> "TeacherLossMetadata":
        """Read the json.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no json of this kind, or of a newer version.
        """
        origin = (
            "python3 -m espnet_mvq.bin.teacher_loss writes it beside the losses: run "
            "it again"
        )
        return load_versioned_json(path, cls.FORMAT, FILE_VERSION, cls, origin)

    def differences(self, other: "TeacherLossMetadata") -> List[str]:
        """Say where two files' losses do not mean the same, one line for each."""
        return [
            f"{name}: {getattr(self, name)!r} and {getattr(other, name)!r}"
            for name in self.MEANING
            if getattr(self, name) != getattr(other, name)
        ]
