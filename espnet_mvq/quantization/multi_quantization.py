"""Checkpoints of k2-fsa's multi_quantization (icefall's MVQ recipes, SPEAR).

Read their quantizers, and write checkpoints of ours that their library loads.
"""

import io
from pathlib import Path
from typing import Any, Dict, Mapping, Union

import torch

from espnet_mvq.files.whole_file import write_bytes
from espnet_mvq.quantization.classifier_quantizer import ClassifierQuantizer
from espnet_mvq.quantization.linear_discriminant import linear_discriminant
from espnet_mvq.quantization.quantizer import Quantizer

_NAMES = (
    "centers",
    "centers_scale",
    "logits_scale",
    "to_logits.weight",
    "to_logits.bias",
)
_SCALE_SPEED = 10  # that library's factor on its log-domain scales
_STD_FLOOR = 1e-5  # added by SPEAR to standard deviations
# Assumed relative error, for the classifier: a tenth of the variance of the entries
_ASSUMED_ERROR = 1 / 11


def read_checkpoint(
    source: Union[str, Path, Mapping[str, Any]],
) -> ClassifierQuantizer:
    """Read a checkpoint; see `Quantizer.from_multi_quantization`."""
    name = "state dict"
    if isinstance(source, (str, Path)):
        name = str(source)
        if not Path(source).is_file():
            raise FileNotFoundError(
                f"multi_quantization checkpoint {name}: no such file"
            )
        try:
            source = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling raises by kind of damage
            # Only the first line: the others advise to execute the file's content
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"multi_quantization checkpoint {name}: not loadable "
                f"({type(error).__name__}: {reason[:200]}); expected a file of tensors "
                "that torch.save wrote, copy it again"
            ) from error
    try:
        return ClassifierQuantizer(
            **_convert(source), provenance={"made_by": "multi_quantization"}
        )
    except ValueError as error:
        raise ValueError(f"multi_quantization checkpoint {name}: {error}") from error


def _convert(source: Any) -> Dict[str, torch.Tensor]:
    """Convert a checkpoint to the arguments of `ClassifierQuantizer`.

    Args:
        source: State dict; or SPEAR's form {"quantizer": state dict, "mean": (D,),
            "std": (D,)}.
    """
    state = source.get("quantizer", source) if isinstance(source, Mapping) else {}
    state = state if isinstance(state, Mapping) else {}
    missing = [key for key in _NAMES if key not in state]
    if missing:
        raise ValueError(
            f"got no {', '.join(missing)}; expected the state dict of a "
            "multi_quantization.Quantizer"
        )
    parts = {key: state[key] for key in _NAMES}
    normalisation = {key: source.get(key) for key in ("mean", "std")}
    given = {key: value for key, value in normalisation.items() if value is not None}
    if len(given) == 1:
        raise ValueError(
            f"got {', '.join(given)} alone, expected mean and std, or none"
        )
    parts.update(given)
    for key, value in parts.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            got = getattr(value, "dtype", type(value).__name__)
            raise ValueError(f"{key}: got {got}, expected a float tensor")
        if not value.float().isfinite().all():
            raise ValueError(
                f"{key}: got NaN or infinity in float32, expected finite values"
            )
        if key.endswith("_scale") and value.numel() != 1:
            raise ValueError(f"{key}: got {value.numel()} values, expected one")
    converted = {
        "codebooks": parts["centers"] * (_SCALE_SPEED * parts["centers_scale"]).exp(),
        "classifier_weight": parts["to_logits.weight"]
        * (_SCALE_SPEED * parts["logits_scale"]).exp(),
        "classifier_bias": parts["to_logits.bias"],
    }
    if given:
        converted["mean"] = parts["mean"].flatten()
        converted["scale"] = parts["std"].flatten() + _STD_FLOOR
    return converted


def write_checkpoint(quantizer: Quantizer, path: Union[str, Path]) -> None:
    """Write a checkpoint; see `Quantizer.to_multi_quantization`."""
    checkpoint = io.BytesIO()
    torch.save(_make_checkpoint(quantizer), checkpoint)
    write_bytes(path, checkpoint.getvalue())


def _make_checkpoint(quantizer: Quantizer) -> Dict[str, Any]:
    """Make a checkpoint that multi_quantization loads, in either form.

    That library needs a classifier, and has no mean and no scale. A quantizer without
    a classifier gets that of `linear_discriminant`, and its mean is added to the first
    codebook. A scale, or a mean beside a classifier, needs SPEAR's form.
    """
    for name in ("num_codebooks", "codebook_size"):
        value = getattr(quantizer, name)
        if value & (value - 1):
            raise ValueError(
                f"to_multi_quantization: got {name} {value}, expected a power of two; "
                "multi_quantization has no others"
            )
    mean, scale = quantizer.mean, quantizer.scale
    is_scaled, has_mean = bool((scale != 1).any()), bool((mean != 0).any())
    centers = quantizer.codebooks.clone()
    has_classifier = isinstance(quantizer, ClassifierQuantizer)
    if has_classifier:
        weight = quantizer.classifier_weight.clone()
        bias = quantizer.classifier_bias.clone()
    else:
        weight, bias = linear_discriminant(centers, _ASSUMED_ERROR)
        if has_mean and not is_scaled:
            centers[0] += mean
            bias -= weight @ mean
    state = {
        "centers": centers,
        "centers_scale": torch.zeros(()),
        "logits_scale": torch.zeros(()),
        "id_buf": torch.tensor(list(quantizer.id[:8].encode()), dtype=torch.uint8),
        "to_logits.weight": weight,
        "to_logits.bias": bias,
    }
    if is_scaled or (has_mean and has_classifier):
        return {"quantizer": state, "mean": mean, "std": scale - _STD_FLOOR}
    return state
