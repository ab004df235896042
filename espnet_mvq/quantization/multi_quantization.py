"""Exchange with k2-fsa's multi_quantization (icefall's MVQ recipes, SPEAR).

Read their quantizers, and make checkpoints of ours that their library loads.
"""

from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Union

import torch

from espnet_mvq.quantization.quantizer_tensors import check_tensors

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
        ValueError: If it is not such a checkpoint, or holds NaN, infinity or values
            that float32 does not hold; names file and tensor.
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
            # The first line alone: the others advise to run what the file says
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"multi_quantization checkpoint {name}: not loadable "
                f"({type(error).__name__}: {reason[:200]}); expected a file of tensors "
                "that torch.save wrote, copy it again"
            ) from error
    try:
        return _convert(source)
    except ValueError as error:
        raise ValueError(f"multi_quantization checkpoint {name}: {error}") from error


def _convert(source: Any) -> Dict[str, torch.Tensor]:
    """Convert a state dict, alone or in SPEAR's form."""
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
    return check_tensors(**converted)


def make_multi_quantization(
    codebooks: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    classifier_weight: Optional[torch.Tensor] = None,
    classifier_bias: Optional[torch.Tensor] = None,
    identity: str = "0" * 8,
) -> Dict[str, Any]:
    """Make a checkpoint that multi_quantization loads.

    That library starts its search from a linear classifier; where there is none, one
    is derived from the codebooks (see `linear_discriminant`). It knows no mean either:
    the mean moves into the first codebook. Scales other than 1 need SPEAR's form.

    Args:
        codebooks: Entries in the normalised space, (N, K, D).
        mean: Subtracted from each channel, (D,).
        scale: Divides each channel, (D,).
        classifier_weight: Of the first indexes, (N * K, D).
        classifier_bias: Likewise, (N * K,).
        identity: 8 ASCII characters, their quantizer's id.

    Returns:
        The state dict of a `multi_quantization.Quantizer(D, K, N)`; with scales, or a
        mean and a classifier, {"quantizer": state dict, "mean", "std"}.

    Raises:
        ValueError: If N or K is no power of two, as that library wants them.
    """
    num_codebooks, codebook_size, dim = codebooks.shape
    for name, value in (
        ("num_codebooks", num_codebooks),
        ("codebook_size", codebook_size),
    ):
        if value & (value - 1):
            raise ValueError(
                f"to_multi_quantization: got {name} {value}, expected a power of two; "
                "multi_quantization has no others"
            )
    derived = classifier_weight is None or classifier_bias is None
    if derived:
        classifier_weight, classifier_bias = linear_discriminant(codebooks)
    is_scaled = bool((scale != 1).any())
    is_moved = bool((mean != 0).any())
    centers = codebooks.clone()
    if is_moved and not is_scaled and derived:
        centers[0] += mean
        classifier_bias = classifier_bias - classifier_weight @ mean
    state = {
        "centers": centers,
        "centers_scale": torch.zeros(()),
        "logits_scale": torch.zeros(()),
        "id_buf": torch.tensor(list(identity[:8].encode("ascii")), dtype=torch.uint8),
        "to_logits.weight": classifier_weight.clone(),
        "to_logits.bias": classifier_bias.clone(),
    }
    if is_scaled or (is_moved and not derived):
        return {"quantizer": state, "mean": mean, "std": scale - _STD_FLOOR}
    return state


def linear_discriminant(codebooks: torch.Tensor):
    """Derive a linear classifier of indexes from the codebooks alone.

    Seen from one codebook, the entries of all others are noise with the covariance
    that these entries have. A linear discriminant analysis with this noise is the best
    linear guess of an index, as far as codebooks are independent and entries equally
    frequent.

    Args:
        codebooks: Entries, float, (N, K, D).

    Returns:
        Weight (N * K, D) and bias (N * K,) of the logits.
    """
    centred = (codebooks - codebooks.mean(1, keepdim=True)).double()
    num_codebooks, codebook_size, dim = centred.shape
    means = codebooks.double().mean(1)
    total_mean = means.sum(0)
    total = torch.einsum("nkd,nke->de", centred, centred) / codebook_size
    # What quantization leaves over is unknown; a tenth of the variance stands for it.
    floor = 0.1 * total.diagonal().mean() * torch.eye(dim, dtype=total.dtype)
    weights, biases = [], []
    for n in range(num_codebooks):
        noise = total - centred[n].T @ centred[n] / codebook_size + floor.to(total)
        weight = torch.linalg.solve(noise, codebooks[n].double().T).T
        shift = total_mean - means[n]
        quadratic = (weight * codebooks[n].double()).sum(1) / 2
        weights.append(weight)
        biases.append(-weight @ shift - quadratic)
    return torch.cat(weights).float(), torch.cat(biases).float()
