"""The quantizer's file: safetensors with a description as metadata."""

from pathlib import Path
from typing import Dict, Tuple, Union

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from espnet_mvq.files.whole_file import write_bytes

FILE_FORMAT = "espnet_mvq.quantizer"
FILE_VERSION = "1"
_REQUIRED = {"codebooks", "mean", "scale"}
_OPTIONAL = {"classifier_weight", "classifier_bias"}


class DamagedQuantizerError(ValueError):
    """The quantizer's file is truncated or was changed."""


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
) -> Tuple[Dict[str, torch.Tensor], Dict[str, str]]:
    """Read the tensors and the description of a quantizer.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedQuantizerError: If it is truncated.
        ValueError: If the file is no quantizer, or of another version.
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
        _REQUIRED <= names <= _REQUIRED | _OPTIONAL
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
    return tensors, metadata
