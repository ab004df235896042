"""Metadata of files of codebook indexes, embeddings or posteriors: what they mean."""

import json
import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Dict, List, Tuple, Type, TypeVar, Union

import numpy as np

from espnet_mvq.files.scp import read_lines
from espnet_mvq.files.versioned_json import VersionedJson

LEVELS = ("frame", "utterance")
# Type, minimum and maximum of the numeric fields
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
    "top_k": (Integral, 1, 2**16),
}
_CONTAINERS = {"skipped": list, "shards": dict, "encode": dict, "token_list": list}
_M = TypeVar("_M", bound="FrameMetadata")


@dataclass(kw_only=True)
class FrameMetadata(VersionedJson):
    """Metadata of arrays that have a row for each frame, or one for the utterance.

    Attributes:
        teacher: Id of the teacher (back end, name, hash of the weights).
        layer: Teacher layer, counted from 1.
        sample_rate: Sample rate of the speech in Hz.
        frame_shift_samples: Samples between the centres of two frames.
        frame_offset_samples: Centre of frame 0 in samples.
        level: "frame", or "utterance": an array has one row, the mean over the frames.
            Older files have no level and are of frames.
        num_utterances: Number of utterances with arrays.
        num_frames: Number of rows of all arrays.
        skipped: Utterances without an array because their audio was unusable.
        shards: sha256 of each ark, by its name relative to this file.
        espnet_mvq_version: Version that wrote the files.
    """

    STEM: ClassVar[str]  # of the names of the files
    ORIGIN: ClassVar[str] = (
        "it is written beside its scp by the extraction: run the extraction again"
    )
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
            container = _CONTAINERS.get(name, object)
            if not isinstance(value, container):
                raise ValueError(
                    f"{name}: got {value!r}, expected a {container.__name__}"
                )

    @classmethod
    def beside(cls: Type[_M], scp: Union[str, Path]) -> _M:
        """Load the metadata of an scp, `NAME.json` beside `NAME.scp`.

        ESPnet's `--num_splits_asr` splits an scp into a folder of `split.0` and so on,
        which have no json. Their metadata are those of the first ark they point to,
        equal but for the counts.
        """
        return cls.load(_json_path(scp))

    @property
    def teacher_id(self) -> str:
        """Teacher and layer as one text."""
        return f"{self.teacher}, layer {self.layer}"

    @property
    def width(self) -> int:
        """Numbers in a row of an array."""
        raise NotImplementedError

    def check(self, array: np.ndarray) -> None:
        """Check an utterance's array against the metadata.

        Raises:
            ValueError: If type, shape or values differ.
        """
        raise NotImplementedError

    def _check_form(self, array: np.ndarray, dtype: type) -> None:
        """Check type and shape of an array (T, width)."""
        if array.dtype != dtype or array.ndim != 2 or array.shape[1] != self.width:
            raise ValueError(
                f"got {array.dtype} of shape {array.shape}, expected "
                f"{np.dtype(dtype)} (T, {self.width})"
            )
        if self.level == "utterance" and len(array) != 1:
            raise ValueError(f"got {len(array)} rows, expected 1: level utterance")


@dataclass(kw_only=True)
class IndexMetadata(FrameMetadata):
    """Metadata of codebook indexes, `codebook_indexes.json`.

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

    @property
    def width(self) -> int:
        """See `FrameMetadata.width`."""
        return self.num_codebooks

    def check(self, array: np.ndarray) -> None:
        """Check that an array is uint8, (T, N), of values below K."""
        self._check_form(array, np.uint8)
        if array.size and array.max() >= self.codebook_size:
            raise ValueError(
                f"got index {array.max()}, expected 0 to {self.codebook_size - 1}"
            )


@dataclass(kw_only=True)
class EmbeddingMetadata(FrameMetadata):
    """Metadata of embeddings, `embeddings.json`.

    Attributes:
        dim: Dimension D.
    """

    STEM: ClassVar[str] = "embeddings"
    FORMAT: ClassVar[str] = "espnet_mvq.embeddings"
    MEANING: ClassVar[Tuple[str, ...]] = FrameMetadata.MEANING + ("dim",)

    dim: int

    @property
    def width(self) -> int:
        """See `FrameMetadata.width`."""
        return self.dim

    def check(self, array: np.ndarray) -> None:
        """Check that an array is float16, (T, D), of finite values."""
        self._check_form(array, np.float16)
        if not np.isfinite(array).all():
            raise ValueError(
                "got NaN or infinity in float16, expected values within 65504; take "
                "a layer whose embeddings are smaller"
            )


@dataclass(kw_only=True)
class PosteriorMetadata(FrameMetadata):
    """Metadata of posteriors of a CTC teacher, `posteriors.json`.

    An array has the form of `espnet_mvq.distillation.sparse_posteriors`: the k most
    likely tokens of a frame, and the log-probabilities of these and of the rest.

    Attributes:
        top_k: Tokens k of a frame.
        token_list: The teacher's tokens, V of them, the blank among them.
    """

    STEM: ClassVar[str] = "posteriors"
    FORMAT: ClassVar[str] = "espnet_mvq.posteriors"
    MEANING: ClassVar[Tuple[str, ...]] = FrameMetadata.MEANING + (
        "top_k",
        "vocab_size",
    )

    top_k: int
    token_list: List[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level != "frame":
            raise ValueError(f"got level {self.level!r}, expected frame for posteriors")
        if not self.top_k <= self.vocab_size <= 2**16:
            raise ValueError(
                f"top_k: got {self.top_k} of {self.vocab_size} tokens, expected at "
                "most all of them, and at most 65536 in all"
            )

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return len(self.token_list)

    @property
    def width(self) -> int:
        """See `FrameMetadata.width`."""
        return 2 * self.top_k + 1

    def check(self, array: np.ndarray) -> None:
        """Check that an array is uint16, (T, 2 k + 1), of tokens below V."""
        self._check_form(array, np.uint16)
        tokens = array[:, : self.top_k]
        if tokens.size and tokens.max() >= self.vocab_size:
            raise ValueError(
                f"got token {tokens.max()}, expected 0 to {self.vocab_size - 1}"
            )


# Classes of metadata by the stem of their files
KINDS: Dict[str, Type[FrameMetadata]] = {
    kind.STEM: kind for kind in (IndexMetadata, EmbeddingMetadata, PosteriorMetadata)
}
SCP_NAME = f"{IndexMetadata.STEM}.scp"
METADATA_NAME = f"{IndexMetadata.STEM}.json"


def check_number(name: str, value: Any, label: str = "") -> None:
    """Check the value of a numeric field.

    Args:
        name: The field.
        value: Its value.
        label: Name in the message; default: that of the field.

    Raises:
        ValueError: If the value is of another type or out of range.
    """
    kind, least, most = _NUMBERS[name]
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if is_number and -math.inf < value < math.inf and least <= value <= most:
        return
    expected = "a whole number" if kind is Integral else "a finite number"
    if least > -math.inf:
        expected += f" from {least} to {most}" if most < math.inf else f" >= {least}"
    raise ValueError(f"{label or name}: got {value!r}, expected {expected}")


def read_metadata(scp: Union[str, Path]) -> FrameMetadata:
    """Load the metadata of an scp of any kind.

    Args:
        scp: See `FrameMetadata.beside`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of none of `KINDS`.
    """
    path = _json_path(scp)
    try:
        file_format = json.loads(path.read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        file_format = None  # `load` tells the error.
    kinds = {kind.FORMAT: kind for kind in KINDS.values()}
    return kinds.get(file_format, IndexMetadata).load(path)


def _json_path(scp: Union[str, Path]) -> Path:
    """Return the path of the metadata of an scp; see `FrameMetadata.beside`."""
    path = Path(scp)
    if path.is_dir():
        path = path / "split.0"
    if path.suffix != ".scp" and path.is_file():
        place = next(read_lines(path), "").strip().partition(" ")[2]
        path = Path(place.rpartition(":")[0])
    return path.with_suffix(".json")
