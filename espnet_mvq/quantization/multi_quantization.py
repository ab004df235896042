"""Reading quantizers of k2-fsa's multi_quantization (icefall's MVQ recipes, SPEAR)."""

from pathlib import Path
from typing import Any, Dict, Mapping, Union

import torch

_NAMES = (
    "centers",
    "centers_scale",
    "logits_scale",
    "to_logits.weight",
    "to_logits.bias",
)
_SCALE_SPEED = 10  # that library's factor on its log-domain scales
_STD_FLOOR = 1e-5  # what SPEAR adds to standard deviations


def convert_multi_quantization(
    source: Union[str, Path, Mapping[str, Any]],
) -> Dict[str, torch.Tensor]:
    """Convert a checkpoint to the arguments of our `Quantizer`.

    Args:
        source: Checkpoint file or state dict; or SPEAR's form
            {"quantizer": state dict, "mean": (D,), "std": (D,)}.

    Returns:
        codebooks (N, K, D), classifier_weight (N*K, D), classifier_bias (N*K,) and,
        for SPEAR's form, mean and scale (D,).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a checkpoint.
    """
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
            raise ValueError(
                f"multi_quantization checkpoint {name}: not loadable ({error})"
            ) from error
    state = source.get("quantizer", source) if isinstance(source, Mapping) else {}
    missing = [key for key in _NAMES if key not in state]
    if missing:
        raise ValueError(
            f"multi_quantization checkpoint {name}: got no {', '.join(missing)}; "
            "expected the state dict of a multi_quantization.Quantizer"
        )
    converted = {
        "codebooks": state["centers"] * (_SCALE_SPEED * state["centers_scale"]).exp(),
        "classifier_weight": state["to_logits.weight"]
        * (_SCALE_SPEED * state["logits_scale"]).exp(),
        "classifier_bias": state["to_logits.bias"],
    }
    if source.get("mean") is not None and source.get("std") is not None:
        converted["mean"] = source["mean"].flatten()
        converted["scale"] = source["std"].flatten() + _STD_FLOOR
    return {key: value.detach().float() for key, value in converted.items()}
