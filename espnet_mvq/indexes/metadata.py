"""Metadata of codebook-index files and their like: what a frame in them means."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Tuple, Type, TypeVar, Union

import numpy as np

from espnet_mvq.files.scp import read_lines
from espnet_mvq.files.versioned_json import (
    format_versioned_json,
    load_versioned_json,
)
from espnet_mvq.files.whole_file import write_text

FILE_VERSION = 1
# What an array holds a row for: each frame, or the whole utterance
LEVELS = ("frame", "utterance")
# Kind of number in each field, the least and the most it can be
_NUMBERS: Dict[str, Tuple[type, float, float]] = {
    "layer": (Integral, -1, math.inf),
    "sample_rate": (Real, 1, math.inf),
    "frame_shift_samples": (Real, 1, math.inf),
    "frame_offset_samples": (Real, -math.inf, math.inf),
    "num_utterances": (Integral, 0, math.inf),
    "num_frames": (Integral, 0, math.inf),
    "num_codebooks": (Integral, 1, math.inf),
    "codebook_size": (Integral, 1, 256),
    "dim": (Integral, 1, math.inf),
}
_CONTAINERS = {"skipped": list, "shards": dict, "encode": dict}
_M = TypeVar("_M", bound="FrameMetadata")


@dataclass(kw_only=True)
class FrameMetadata:
    """What a json says of the arrays of frames beside it, whatever they are.

    Attributes:
        teacher: Id of the teacher (back end, name, hash of the weights).
        layer: Teacher layer, counted from 1.
        sample_rate: Of the speech, in Hz.
        frame_shift_samples: Samples between the centres of two frames.
        frame_offset_samples: Centre of frame 0, in samples.
        level: frame; or utterance: arrays have one row, of the mean over the frames.
            Files without it are older, and of frames.
        num_utterances: Utterances with arrays.
        num_frames: Rows of all of them.
        skipped: Utterances left out because their audio could not be used.
        shards: Name of each ark (relative to this file) and the sha256 of its bytes.
        espnet_mvq_version: Version that wrote the files.
    """

    STEM: ClassVar[str]  # of the names of all files of this kind
    FORMAT: ClassVar[str]
    MEANING: ClassVar[Tuple[str, ...]] = (
        "teacher",
        "layer",
        "sample_rate",
        "frame_shift_samples",
        "frame_offset_samples",
        "level",
    )

    teacher: str
    layer: int
    sample_rate: int
    frame_shift_samples: int
    frame_offset_samples: float
    level: str = "frame"
    num_utterances: int = 0
    num_frames: int = 0
    skipped: List[str] = field(default_factory=list)
    shards: Dict[str, str] = field(default_factory=dict)
    espnet_mvq_version: str = ""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(
                f"got level {self.level!r}, expected {' or '.join(LEVELS)}"
            )
        for name, value in vars(self).items():
            if name in _NUMBERS:
                check_number(name, value)
            kind = _CONTAINERS.get(name, object)
            if not isinstance(value, kind):
                raise ValueError(f"{name}: got {value!r}, expected a {kind.__name__}")

    def save(self, path: Union[str, Path]) -> None:
        """Write the metadata; an existing file is replaced as a whole."""
        content = dataclasses.asdict(self)
        write_text(path, format_versioned_json(self.FORMAT, FILE_VERSION, content))

    @classmethod
    def load(cls: Type[_M], path: Union[str, Path]) -> _M:
        """Read metadata.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not metadata of this kind, or a newer version.
        """
        origin = (
            f"it is written beside {cls.STEM}.scp by the extraction: run the "
            "extraction again"
        )
        return load_versioned_json(path, cls.FORMAT, FILE_VERSION, cls, origin)

    @classmethod
    def beside(cls: Type[_M], scp: Union[str, Path]) -> _M:
        """Read the metadata of an scp: `NAME.json` beside `NAME.scp`.

        Where an scp has none, as the pieces that ESPnet's `--num_splits_asr` cuts it
        into (a folder of `split.0` and so on), those of the first ark it points to
        say the same but for the counts.
        """
        return cls.load(_place_beside(scp))

    def check(self, array: np.ndarray) -> None:
        """Refuse an array that is not what these metadata describe.

        Args:
            array: The frames of an utterance.

        Raises:
            ValueError: Saying what was got and expected.
        """
        if self.level == "utterance" and len(array) != 1:
            raise ValueError(f"got {len(array)} rows, expected 1: level utterance")

    def differences(self: _M, other: _M) -> List[str]:
        """Say where two files' frames do not mean the same, one line for each."""
        lines = []
        for name in self.MEANING:
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                lines.append(f"{name}: {mine!r} and {others!r}")
        return lines


@dataclass(kw_only=True)
class IndexMetadata(FrameMetadata):
    """What `codebook_indexes.json` says of the indexes beside it.

    Attributes:
        quantizer_id: Content id of the quantizer.
        num_codebooks: Indexes per frame, N.
        codebook_size: Values an index can take, K.
        encode: Settings of the code search, the options of `Quantizer.encode`.
    """

    STEM: ClassVar[str] = "codebook_indexes"
    FORMAT: ClassVar[str] = "espnet_mvq.codebook_indexes"
    MEANING: ClassVar[Tuple[str, ...]] = FrameMetadata.MEANING + (
        "quantizer_id",
        "num_codebooks",
        "codebook_size",
        "encode",
    )

    quantizer_id: str
    num_codebooks: int
    codebook_size: int
    encode: Dict[str, int] = field(default_factory=dict)

    def check(self, array: np.ndarray) -> None:
        """See `FrameMetadata.check`; expected are uint8 (T, N) below K."""
        shape_ok = array.ndim == 2 and array.shape[1] == self.num_codebooks
        if array.dtype != np.uint8 or not shape_ok:
            raise ValueError(
                f"got {array.dtype} of shape {array.shape}, expected uint8 (T, "
                f"{self.num_codebooks})"
            )
        super().check(array)
        if array.size and array.max() >= self.codebook_size:
            raise ValueError(
                f"got index {array.max()}, expected 0 to {self.codebook_size - 1}"
            )


@dataclass(kw_only=True)
class EmbeddingMetadata(FrameMetadata):
    """What `embeddings.json` says of the float embeddings beside it.

    Attributes:
        dim: Dimension D.
    """

    STEM: ClassVar[str] = "embeddings"
    FORMAT: ClassVar[str] = "espnet_mvq.embeddings"
    MEANING: ClassVar[Tuple[str, ...]] = FrameMetadata.MEANING + ("dim",)

    dim: int

    def check(self, array: np.ndarray) -> None:
        """See `FrameMetadata.check`; expected are finite float16 (T, D)."""
        shape_ok = array.ndim == 2 and array.shape[1] == self.dim
        if array.dtype != np.float16 or not shape_ok:
            raise ValueError(
                f"got {array.dtype} of shape {array.shape}, expected float16 (T, "
                f"{self.dim})"
            )
        super().check(array)
        if not np.isfinite(array).all():
            raise ValueError(
                "got NaN or infinity in float16, expected values within 65504; take "
                "a layer whose embeddings are smaller"
            )


def check_number(name: str, value: Any, told_as: str = "") -> None:
    """Refuse what cannot be the value of a field.

    Args:
        name: The field, a number.
        value: What it is to be.
        told_as: How the message calls it; default: as the field is called.

    Raises:
        ValueError: Saying what was got and expected.
    """
    kind, least, most = _NUMBERS[name]
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if is_number and -math.inf < value < math.inf and least <= value <= most:
        return
    expected = "a whole number" if kind is Integral else "a finite number"
    if least > -math.inf:
        expected += f" from {least} to {most}" if most < math.inf else f" >= {least}"
    raise ValueError(f"{told_as or name}: got {value!r}, expected {expected}")


def read_metadata(scp: Union[str, Path]) -> FrameMetadata:
    """Read the metadata of an scp, of whichever kind they are.

    Args:
        scp: As for `FrameMetadata.beside`.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If they are not metadata of arrays of frames.
    """
    path = _place_beside(scp)
    try:
        file_format = json.loads(path.read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        file_format = None  # what is wrong, the class will say
    if file_format == EmbeddingMetadata.FORMAT:
        return EmbeddingMetadata.load(path)
    return IndexMetadata.load(path)


def _place_beside(scp: Union[str, Path]) -> Path:
    """Return where the metadata of an scp are; see `FrameMetadata.beside`."""
    path = Path(scp)
    if path.is_dir():
        path = path / "split.0"
    described = path.with_suffix(".json")
    if path.suffix != ".scp" and path.is_file():
        place = next(read_lines(path), "").strip().partition(" ")[2]
        described = Path(place.rpartition(":")[0]).with_suffix(".json")
    return described


SCP_NAME = f"{IndexMetadata.STEM}.scp"
METADATA_NAME = f"{IndexMetadata.STEM}.json"
