"""Weights of a head that reads codebook indexes off the embeddings themselves."""

from typing import Tuple

import torch


def classifier_of_codebooks(
    codebooks: torch.Tensor,
    mean: torch.Tensor,
    scale: torch.Tensor,
    relative_error: float,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return the linear classifier of each index that codebooks stand for.

    Of a normalised embedding z = (x - mean) / scale, all but entry k of codebook n is
    taken for Gaussian noise: what the other codebooks add, of mean m_n and covariance
    S_n over their entries, which are taken for equally frequent; and what all of them
    leave over, alike in every channel. Then the log odds of the entries are linear:

        logits_nk = c_nk' S_n^-1 (z - m_n - c_nk / 2)

    With one codebook the largest logit is that of the nearest entry.

    Args:
        codebooks: Of z, float, (N, K, D).
        mean: Of the embeddings, (D,).
        scale: Of the embeddings, (D,).
        relative_error: Share of the embeddings' variance that the codebooks leave
            over; taken as 0.01 to 0.99.

    Returns:
        Weights (N * K, D) and biases (N * K,) for embeddings x.

    Source: ours; linear discriminant analysis.
    """
    codebooks = codebooks.double()
    num_entries, dim = codebooks.shape[1:]
    centres = codebooks.mean(1)
    deviations = codebooks - centres.unsqueeze(1)
    covariances = deviations.transpose(1, 2) @ deviations / num_entries  # (N, D, D)
    total = covariances.sum(0)
    share = min(max(relative_error, 0.01), 0.99)
    left_over = total.trace() / dim * share / (1 - share)
    noise = total - covariances + left_over * torch.eye(dim).to(total)
    weight = torch.linalg.solve(noise, codebooks.transpose(1, 2)).transpose(1, 2)
    others = (centres.sum(0) - centres).unsqueeze(1)  # m_n
    bias = -(weight * (others + codebooks / 2)).sum(2)
    weight = weight / scale.double()
    bias = bias - weight @ mean.double()
    return weight.flatten(0, 1).float(), bias.flatten().float()
