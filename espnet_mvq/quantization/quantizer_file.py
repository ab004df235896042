"""The file of a quantizer: safetensors that say what they are."""

from pathlib import Path
from typing import Dict, Tuple, Union

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

FILE_FORMAT = "espnet_mvq.quantizer"
FILE_VERSION = "1"
REQUIRED = {"codebooks", "mean", "scale"}
OPTIONAL = {"classifier_weight", "classifier_bias"}


def write_quantizer_file(
    path: Union[str, Path],
    tensors: Dict[str, torch.Tensor],
    description: Dict[str, str],
) -> None:
    """Write tensors and description; an existing file is replaced as a whole."""
    path = Path(path)
    metadata = {"format": FILE_FORMAT, "version": FILE_VERSION, **description}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    # Renamed when whole: a reader never sees half a file.
    temporary = path.with_name(path.name + ".tmp")
    safetensors.torch.save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)


def read_quantizer_file(
    path: Union[str, Path],
) -> Tuple[Dict[str, torch.Tensor], Dict[str, str]]:
    """Read tensors and description.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no quantizer, of another version or not whole.
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
        raise ValueError(
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
    return tensors, metadata
