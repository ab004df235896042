"""The experiments of a report: logs, decoded sets, data of a teacher."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from espnet_mvq.errors import one_line
from espnet_mvq.files.experiment import read_config
from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import FrameMetadata, read_metadata
from espnet_mvq.reporting.error_rates import Decoding, read_decodings
from espnet_mvq.reporting.training_data import (
    ark_paths,
    data_files,
    find_quantizer,
    recipe_folder,
)
from espnet_mvq.reporting.training_log import ReportError, read_epochs


@dataclass
class TeacherData:
    """Codebook indexes, embeddings or posteriors that a training read.

    Attributes:
        scp: Their scp.
        metadata: Their metadata.
        num_bytes: Bytes of the arks.
        quantizer: File of the quantizer; None if there is none or it was not found.
    """

    scp: Path
    metadata: FrameMetadata
    num_bytes: int
    quantizer: Optional[Path] = None


@dataclass
class Arm:
    """An experiment of the report.

    Attributes:
        name: Name in the report.
        exp: Experiment folder.
        config: Content of its config.yaml.
        epochs: Statistics of each epoch, see `read_epochs`; empty if none is finished.
        decodings: Decoded sets, see `read_decodings`.
        teacher_data: Codebook indexes, embeddings and posteriors.
        problems: Reasons why parts are missing.
    """

    name: str
    exp: Path
    config: Dict[str, Any]
    epochs: List[Dict[str, float]]
    decodings: Dict[str, Decoding]
    teacher_data: List[TeacherData] = field(default_factory=list)
    problems: List[str] = field(default_factory=list)

    def values(self, stat: str, factor: float = 1) -> List[float]:
        """Return a statistic of all epochs; NaN where there is none."""
        return [factor * epoch.get(stat, math.nan) for epoch in self.epochs]


def short_names(exps: Sequence[Path]) -> List[str]:
    """Name experiments after their folders, without the words at the end of all."""
    words = [exp.resolve().name.removeprefix("asr_").split("_") for exp in exps]
    while len(exps) > 1 and all(len(w) > 1 and w[-1] == words[0][-1] for w in words):
        words = [w[:-1] for w in words]
    names = ["_".join(w) for w in words]
    return names if len(set(names)) == len(names) else [str(exp) for exp in exps]


def read_arm(exp: Path, name: str) -> Arm:
    """Read an experiment; see `make_report`."""
    for file in ("config.yaml", "train.log"):
        if not (exp / file).is_file():
            raise ReportError(
                f"{exp}: no {file} in it, expected the experiment folder of a "
                "training, such as exp/asr_train_asr_raw_en_bpe100"
            )
    config = read_config(exp / "config.yaml")
    folder = recipe_folder(exp, config)
    texts = [path for path, key, _ in data_files(config, "valid") if key == "text"]
    data_dir = folder / (Path(texts[0]).parent.parent if texts else "dump/raw")
    problems = []
    try:
        epochs = read_epochs(exp)
    except ReportError:
        epochs = []
        problems.append(f"{name}: no epoch is finished.")
    arm = Arm(name, exp, config, epochs, read_decodings(exp, data_dir))
    arm.problems = problems
    for path, _, data_type in data_files(config, "train"):
        if data_type == "mvq_ark":
            try:
                arm.teacher_data.append(
                    read_teacher_data(folder / path, folder, config)
                )
            except (OSError, ValueError) as error:
                arm.problems.append(f"{name}: {one_line(error)}.")
    return arm


def read_teacher_data(scp: Path, folder: Path, config: Dict[str, Any]) -> TeacherData:
    """Read the metadata of stored data, and find the quantizer.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is damaged.
    """
    metadata = read_metadata(scp)
    num_bytes = sum(ark.stat().st_size for ark in ark_paths(scp, folder))
    data = TeacherData(scp, metadata, num_bytes)
    if isinstance(metadata, IndexMetadata):
        data.quantizer = find_quantizer(metadata, scp, folder, config)
    return data
