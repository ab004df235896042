"""A linear classifier of codebook indexes, derived from the codebooks alone."""

from typing import Optional, Tuple

import torch


def linear_discriminant(
    codebooks: torch.Tensor,
    relative_error: float,
    mean: Optional[torch.Tensor] = None,
    scale: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Derive linear classifiers that read codebook indexes off embeddings.

    A normalised embedding z = (x - mean) / scale is modelled as entry k of codebook n
    plus Gaussian noise of mean m_n and covariance S_n. The noise is the sum of the
    other codebooks, whose entries are assumed to be equally frequent, and of the
    quantizer's error, alike in every channel. Then the log odds of the entries are
    linear:

        logits_nk = c_nk' S_n^-1 (z - m_n - c_nk / 2)

    With one codebook the largest logit is that of the nearest entry.

    Args:
        codebooks: Entries, in the space of z, float, (N, K, D). They are centred in
            their own precision; all else is in float64.
        relative_error: Relative reconstruction error of the quantizer; clipped to 0.01
            to 0.99.
        mean: Mean of the embeddings, (D,). Default: zeros.
        scale: Scale of the embeddings, (D,). Default: ones.

    Returns:
        Weights, float32, (N * K, D), and biases, float32, (N * K,), for embeddings x.

    Source: ours; linear discriminant analysis.
    """
    centred = (codebooks - codebooks.mean(1, keepdim=True)).double()
    codebooks = codebooks.double()
    centres = codebooks.mean(1)
    num_entries, dim = codebooks.shape[1:]
    covariances = centred.transpose(1, 2) @ centred / num_entries  # (N, D, D)
    total = covariances.sum(0)
    share = min(max(relative_error, 0.01), 0.99)
    error = total.trace() / dim * share / (1 - share)
    noise = total - covariances + error * torch.eye(dim).to(total)
    weight = torch.linalg.solve(noise, codebooks.transpose(1, 2)).transpose(1, 2)
    others = (centres.sum(0) - centres).unsqueeze(1)  # m_n
    bias = -(weight * (others + codebooks / 2)).sum(2)
    if scale is not None:
        weight = weight / scale.double()
    if mean is not None:
        bias = bias - weight @ mean.double()
    return weight.flatten(0, 1).float(), bias.flatten().float()
