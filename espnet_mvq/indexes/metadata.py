"""Metadata of codebook-index files: who made them, and what a frame means."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Union

import numpy as np

SCP_NAME = "codebook_indexes.scp"
METADATA_NAME = "codebook_indexes.json"
FILE_FORMAT = "espnet_mvq.codebook_indexes"
FILE_VERSION = 1


@dataclass
class IndexMetadata:
    """What `codebook_indexes.json` says of the indexes beside it.

    Attributes:
        teacher: Id of the teacher (back end, name, hash of the weights).
        layer: Teacher layer, counted from 1.
        quantizer_id: Content id of the quantizer.
        num_codebooks: Indexes per frame, N.
        codebook_size: Values an index can take, K.
        sample_rate: Of the speech, in Hz.
        frame_shift_samples: Samples between the centres of two frames.
        frame_offset_samples: Centre of frame 0, in samples.
        num_utterances: Utterances with indexes.
        num_frames: Frames of all of them.
        encode: Settings of the code search, the options of `Quantizer.encode`.
        skipped: Utterances left out because their audio could not be used.
        shards: Name of each ark (relative to this file) and the sha256 of its bytes.
        espnet_mvq_version: Version that wrote the files.
    """

    teacher: str
    layer: int
    quantizer_id: str
    num_codebooks: int
    codebook_size: int
    sample_rate: int
    frame_shift_samples: int
    frame_offset_samples: float
    num_utterances: int = 0
    num_frames: int = 0
    encode: Dict[str, int] = field(default_factory=dict)
    skipped: List[str] = field(default_factory=list)
    shards: Dict[str, str] = field(default_factory=dict)
    espnet_mvq_version: str = ""

    def save(self, path: Union[str, Path]) -> None:
        """Write the metadata; an existing file is replaced as a whole."""
        content = {"format": FILE_FORMAT, "version": FILE_VERSION}
        content.update(dataclasses.asdict(self))
        write_text(path, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, path: Union[str, Path]) -> "IndexMetadata":
        """Read metadata.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not metadata of codebook indexes, or a newer version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"metadata {path}: no such file; it is written beside {SCP_NAME} when "
                "codebook indexes are extracted: run the extraction again"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            file_format, version = content.pop("format"), content.pop("version")
            if file_format != FILE_FORMAT:
                raise ValueError(
                    f"got format {file_format!r}, expected {FILE_FORMAT!r}"
                )
            if version > FILE_VERSION:
                raise ValueError(
                    f"got version {version}, expected at most {FILE_VERSION}; install "
                    "a newer espnet_mvq"
                )
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"metadata {path}: not readable: {error}") from error

    @classmethod
    def beside(cls, scp: Union[str, Path]) -> "IndexMetadata":
        """Read the metadata that lie beside an scp of codebook indexes."""
        return cls.load(Path(scp).parent / METADATA_NAME)

    def check_indexes(self, indexes: np.ndarray) -> None:
        """Refuse an array that is not what these metadata describe.

        Args:
            indexes: Codebook indexes of an utterance, expected uint8 (T, N).

        Raises:
            ValueError: Saying what was got and expected.
        """
        shape_ok = indexes.ndim == 2 and indexes.shape[1] == self.num_codebooks
        if indexes.dtype != np.uint8 or not shape_ok:
            raise ValueError(
                f"got {indexes.dtype} of shape {indexes.shape}, expected uint8 (T, "
                f"{self.num_codebooks})"
            )

    def differences(self, other: "IndexMetadata") -> List[str]:
        """Say where two files' indexes do not mean the same, one line for each."""
        lines = []
        for name in MEANING:
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                lines.append(f"{name}: {mine!r} and {others!r}")
        return lines


# Fields that must agree for two files of indexes to mean the same.
MEANING = (
    "teacher",
    "layer",
    "quantizer_id",
    "num_codebooks",
    "codebook_size",
    "sample_rate",
    "frame_shift_samples",
    "frame_offset_samples",
    "encode",
)


def write_text(path: Union[str, Path], text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
