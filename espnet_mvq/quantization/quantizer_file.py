"""The file of a quantizer: safetensors that say what they are."""

import json
from pathlib import Path
from typing import Any, Dict, Tuple, Union

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from espnet_mvq.files.whole_file import write_bytes
from espnet_mvq.quantization.quantizer_tensors import check_tensors

FILE_FORMAT = "espnet_mvq.quantizer"
FILE_VERSION = "1"
REQUIRED = {"codebooks", "mean", "scale"}
OPTIONAL = {"classifier_weight", "classifier_bias"}


class DamagedQuantizerError(ValueError):
    """A quantizer's file is not whole, or not as it was saved."""


def write_quantizer_file(
    path: Union[str, Path],
    tensors: Dict[str, torch.Tensor],
    description: Dict[str, str],
) -> None:
    """Write tensors and description; an existing file is replaced as a whole.

    Raises:
        OSError: If it cannot be written; an existing file stays as it is.
    """
    metadata = {"format": FILE_FORMAT, "version": FILE_VERSION, **description}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    write_bytes(path, safetensors.torch.save(tensors, metadata))


def read_quantizer_file(
    path: Union[str, Path],
) -> Tuple[Dict[str, torch.Tensor], Dict[str, str], Dict[str, Any]]:
    """Read tensors, description and, of the latter, the provenance.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedQuantizerError: If it is not whole.
        ValueError: If the file is no quantizer, of another version, or its tensors or
            provenance make none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"quantizer {path}: no such file; train one with "
            "python3 -m espnet_mvq.bin.train_quantizer"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise DamagedQuantizerError(
            f"quantizer {path}: not a whole safetensors file ({error}); train it "
            "again or copy it again"
        ) from error
    names = set(tensors)
    if metadata.get("format") != FILE_FORMAT or not (
        REQUIRED <= names <= REQUIRED | OPTIONAL
    ):
        raise ValueError(
            f"quantizer {path}: a safetensors file, but no quantizer of espnet_mvq: "
            f"got format {metadata.get('format')!r} with tensors {sorted(names)}, "
            f"expected format {FILE_FORMAT!r}"
        )
    if metadata.get("version") != FILE_VERSION:
        raise ValueError(
            f"quantizer {path}: got version {metadata.get('version')!r}, expected "
            f"{FILE_VERSION!r}; install a newer espnet_mvq"
        )
    try:
        checked = check_tensors(**tensors)
        provenance = json.loads(metadata.get("provenance", "{}"))
        if not isinstance(provenance, dict):
            raise ValueError(f"got provenance {provenance!r}, expected a json object")
    except ValueError as error:
        raise ValueError(
            f"quantizer {path}: {error}; train it again or copy it again"
        ) from error
    tensors = {name: value for name, value in checked.items() if value is not None}
    return tensors, metadata, provenance
