"""The data of a teacher that a training read: index files, quantizers, their size."""

import json
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

from espnet_mvq.files.experiment import read_config
from espnet_mvq.files.scp import read_scp
from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.quality_text import REPORT_FORMAT, REPORT_VERSION


def data_files(config: Dict[str, Any], name: str) -> List[List[str]]:
    """Return the data of a training or validation, as [path, name, type] each.

    Args:
        config: Content of config.yaml.
        name: "train" or "valid".
    """
    return config.get(f"{name}_data_path_and_name_and_type") or []


def recipe_folder(exp: Path, config: Dict[str, Any]) -> Path:
    """Return the folder to which the paths of a training are relative.

    It is the working folder or one above the experiment. If none of them has the
    training data, it is the working folder.
    """
    for path, *_ in data_files(config, "train"):
        for folder in (Path(), *exp.resolve().parents):
            if (folder / path).exists():
                return folder
    return Path()


def ark_paths(scp: Path, folder: Path) -> List[Path]:
    """Return the arks of an scp, each once; relative paths start at `folder`."""
    arks = {place.rpartition(":")[0] for place in read_scp(scp).values()}
    return [folder / ark for ark in sorted(arks)]


def target_bytes(exp: Path) -> int:
    """Return the size of a training's additional data, in bytes on disk.

    Indexes, embeddings, teacher losses, lists of utterances and quantizers.

    Raises:
        OSError: If one of the files is missing.
    """
    config = read_config(exp / "config.yaml")
    folder = recipe_folder(exp, config)
    files = set()
    for path, _, data_type in data_files(config, "train"):
        if data_type.startswith("mvq_"):
            files.add(folder / path)
        if data_type == "mvq_ark":
            files.update(ark_paths(folder / path, folder))
    files.update(folder / path for path in quantizers_of(config))
    return sum(file.stat().st_size for file in files)


def quantizers_of(config: Dict[str, Any]) -> List[str]:
    """Return the quantizer files that the options of a training name."""
    options = (config.get("model_conf") or {}).get("mvq_conf") or {}
    targets = (options, *(options.get("targets") or {}).values())
    return [target["quantizer"] for target in targets if target.get("quantizer")]


def find_quantizer(
    metadata: IndexMetadata, scp: Path, folder: Path, config: Dict[str, Any]
) -> Optional[Path]:
    """Find the quantizer of codebook indexes.

    The options of the training may name it; mvq.sh keeps it above the folders of the
    arks, or notes its place there in made_of.txt.

    Args:
        metadata: Metadata of the indexes.
        scp: Their scp.
        folder: See `recipe_folder`.
        config: Content of config.yaml.

    Returns:
        The quantizer's file; None if none of these places has the quantizer with the id
        of the metadata.
    """
    places = [folder / path for path in quantizers_of(config)]
    for ark in ark_paths(scp, folder)[:1]:
        mvq_dir = ark.parent.parent
        places.append(mvq_dir / "quantizer.safetensors")
        made_of = mvq_dir / "made_of.txt"
        for line in made_of.read_text().splitlines() if made_of.is_file() else ():
            key, _, value = line.partition("=")
            if key == "quantizer":
                places.append(folder / value)
    for place in places:
        try:
            if place.is_file() and Quantizer.load(place).id == metadata.quantizer_id:
                return place
        except ValueError as error:
            logging.warning(f"not used as the quantizer of {scp}: {error}")
    return None


def read_quality(path: Path) -> Dict[str, Any]:
    """Read a quantizer_report.json.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no report of this version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.get("format"), content.get("version")
    except (ValueError, AttributeError) as error:
        found = error
    if found != (REPORT_FORMAT, REPORT_VERSION):
        raise ValueError(
            f"{path}: got {found}, expected a report of "
            "python3 -m espnet_mvq.bin.inspect_quantizer; run it again"
        )
    return content
