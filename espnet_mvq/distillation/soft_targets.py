"""Soft targets and scaled entries from a quantizer's codebooks.

Only the indexes of a frame are stored, not its embedding. The codebooks show which
other entries are nearly as good: replacing entry i of codebook n by entry k moves the
decoded embedding by c_nk - c_ni, whatever the other codebooks' entries are. The
squared distances

    d_n(i, k) = ||c_nk - c_ni||^2 = <c_nk, c_nk> + <c_ni, c_ni> - 2 <c_nk, c_ni>

follow from the inner products of the entries of one codebook: a diagonal block of
the Gram table. All of this is in the quantizer's normalised space.
"""

import torch


def soft_target_table(
    codebooks: torch.Tensor, temperature: float = 0.1
) -> torch.Tensor:
    """Compute a target distribution for each value a stored index can have.

    Row i of codebook n is softmax_k(-d_n(i, k) / (temperature * mean_n)), where mean_n
    is the mean of d_n over all pairs of different entries, so that the temperature does
    not depend on the size of the entries. Towards 0 the rows become the stored index
    alone. With 8 codebooks of a layer of Whisper the stored index keeps 0.99 of the
    probability at 0.05, 0.81 at 0.1 and 0.26 at 0.2.

    Args:
        codebooks: Entries, float, (N, K, D): `codebooks` of a `Quantizer`.
        temperature: Relative to the mean squared distance; more than 0.

    Returns:
        Probabilities, (N, K, K): [n, i] is the target of stored index i. In float32
        N K K x 4 bytes: 4 MB for 16 codebooks of 256.

    Raises:
        ValueError: If the temperature is not positive and finite.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature}, expected more than 0")
    # Distances do not change if all entries are moved; small numbers lose less.
    entries = _centred(codebooks)
    gram = entries @ entries.transpose(1, 2)
    norms = gram.diagonal(dim1=1, dim2=2)
    distances = (norms.unsqueeze(1) + norms.unsqueeze(2) - 2 * gram).clamp(min=0)
    # Rounding must not move an entry away from itself.
    distances.diagonal(dim1=1, dim2=2).zero_()
    size = codebooks.shape[1]
    mean = distances.sum(dim=(1, 2), keepdim=True) / max(1, size * (size - 1))
    tiny = torch.finfo(mean.dtype).tiny  # all entries equal: equal probabilities
    return torch.softmax(-distances / (temperature * mean).clamp(min=tiny), dim=2)


def unit_variance_codebooks(codebooks: torch.Tensor) -> torch.Tensor:
    """Scale codebooks so that decoded embeddings have a total variance of about 1.

    A squared error measured with them is relative to the variance of embeddings. Each
    codebook's mean is removed; it cancels out between an expected and a stored entry.
    The variance is the sum over codebooks of the variance of their entries, which
    assumes equally frequent entries and independent codebooks: with 8 codebooks of a
    layer of Whisper it was 0.6 of the variance of decoded embeddings.

    Args:
        codebooks: Entries, float, (N, K, D): `codebooks` of a `Quantizer`.

    Returns:
        Entries, float, (N, K, D).

    Raises:
        ValueError: If the entries of no codebook vary.
    """
    entries = _centred(codebooks)
    variance = entries.square().sum(dim=2).mean(dim=1).sum()
    if not variance > 0:
        raise ValueError(
            f"codebooks: embeddings have variance {float(variance)}, expected some "
            "that vary"
        )
    return entries / variance.sqrt()


def _centred(codebooks: torch.Tensor) -> torch.Tensor:
    """Remove the mean of each codebook (N, K, D)."""
    return codebooks - codebooks.mean(dim=1, keepdim=True)
