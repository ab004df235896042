"""The tensors that make a quantizer: their types, shapes and values."""

from typing import Any, Dict, Optional

import torch

from espnet_mvq.quantization.frames import as_tensor, check_codebook_size


def check_tensors(
    codebooks: Any,
    mean: Any = None,
    scale: Any = None,
    classifier_weight: Any = None,
    classifier_bias: Any = None,
) -> Dict[str, Optional[torch.Tensor]]:
    """Return the tensors of a quantizer as float32, or refuse them.

    Args:
        codebooks: See `Quantizer`; this and all others: tensor or numpy array.
        mean: Likewise.
        scale: Likewise.
        classifier_weight: Likewise.
        classifier_bias: Likewise.

    Returns:
        By name, contiguous; None where there is no classifier.

    Raises:
        ValueError: If one has another shape, holds NaN, infinity or values that float32
            does not hold; names it.
    """
    codebooks = _float32("codebooks", codebooks)
    if codebooks.dim() != 3 or 0 in codebooks.shape:
        raise ValueError(
            f"codebooks: got shape {tuple(codebooks.shape)}, expected (number of "
            "codebooks, codebook size, dimension), none of them 0"
        )
    num_codebooks, codebook_size, dim = codebooks.shape
    check_codebook_size(codebook_size)
    size = num_codebooks * codebook_size
    tensors: Dict[str, Optional[torch.Tensor]] = {"codebooks": codebooks}
    for name, value, shape in (
        ("mean", codebooks.new_zeros(dim) if mean is None else mean, (dim,)),
        ("scale", codebooks.new_ones(dim) if scale is None else scale, (dim,)),
        ("classifier_weight", classifier_weight, (size, dim)),
        ("classifier_bias", classifier_bias, (size,)),
    ):
        tensors[name] = None
        if value is not None:
            tensors[name] = value = _float32(name, value)
            if value.shape != shape:
                raise ValueError(
                    f"{name}: got shape {tuple(value.shape)}, expected {shape} as the "
                    "codebooks have"
                )
    for name, value in tensors.items():
        if name == "scale" and not (value.isfinite() & (value > 0)).all():
            raise ValueError(
                "scale: got zero, negative or non-finite values in float32, expected "
                "positive ones"
            )
        if value is not None and not value.isfinite().all():
            raise ValueError(
                f"{name}: got NaN or infinity in float32, expected finite values"
            )
    # Costs of a search: squares of sums of an entry from each codebook
    costs = 4 * num_codebooks**2 * codebooks.square().sum(2)
    if not costs.isfinite().all():
        raise ValueError(
            f"codebooks: got values up to {float(codebooks.abs().max()):g}, expected "
            "smaller ones: float32 does not hold their squares; scale the embeddings"
        )
    if (tensors["classifier_weight"] is None) != (tensors["classifier_bias"] is None):
        raise ValueError(
            "classifier: got one of weight and bias, expected both or none of them"
        )
    if classifier_weight is not None and num_codebooks & (num_codebooks - 1):
        raise ValueError(
            f"classifier: got {num_codebooks} codebooks, expected a power of two: the "
            "search that starts from a classifier has no others"
        )
    return tensors


def _float32(name: str, value: Any) -> torch.Tensor:
    """Return a tensor or array as a contiguous float32 tensor without a gradient."""
    value = as_tensor(name, value)
    if value.is_complex():
        raise ValueError(f"{name}: got {value.dtype}, expected real numbers")
    return value.detach().float().contiguous()
