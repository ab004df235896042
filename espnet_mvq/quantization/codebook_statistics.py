"""How well codebooks are used, and how much they overlap."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class IndexUsage:
    """How the entries of each codebook are used.

    Attributes:
        entropy_bits: Entropy of the index distribution, float64, (N,); log2 K at most.
        perplexity: 2 to the entropy: as many entries, equally used, (N,).
        dead_entries: Entries that no frame uses, int64, (N,).
    """

    entropy_bits: torch.Tensor
    perplexity: torch.Tensor
    dead_entries: torch.Tensor


def index_counts(indexes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Count how often each entry is used.

    Args:
        indexes: Codebook indexes, any integer type, (F, N).
        codebook_size: Entries K of each codebook.

    Returns:
        Counts, float64, (N, K).
    """
    columns = indexes.long().unbind(1)
    counts = [torch.bincount(column, minlength=codebook_size) for column in columns]
    return torch.stack(counts).double()


def index_usage(indexes: torch.Tensor, codebook_size: int) -> IndexUsage:
    """Measure how evenly the entries are used.

    Args:
        indexes: Codebook indexes, any integer type, (F, N), F >= 1.
        codebook_size: Entries K of each codebook.

    Returns:
        Entropy, perplexity and number of dead entries of each codebook.
    """
    counts = index_counts(indexes, codebook_size)
    entropy = torch.special.entr(counts / len(indexes)).sum(1) / math.log(2)
    return IndexUsage(entropy, 2**entropy, (counts == 0).sum(1))


def codebook_variance_share(codebooks: torch.Tensor) -> torch.Tensor:
    """Compare the spread of the codebooks' entries, all entries counting alike.

    Args:
        codebooks: Entries, float, (N, K, D).

    Returns:
        Variance of each codebook's entries over the sum of all codebooks', float64,
        (N,); 0 where nothing varies.
    """
    variance = _centred(codebooks).square().sum((1, 2))
    return (variance / variance.sum().clamp_min(1e-300)).cpu()


def codebook_correlation(codebooks: torch.Tensor) -> torch.Tensor:
    """Compare the directions in which codebooks can move the reconstruction.

    With S_i the covariance (D, D) of the entries of codebook i, all counting alike,
    the correlation is tr(S_i S_j) / sqrt(tr(S_i^2) tr(S_j^2)): 1 for codebooks that
    spread alike, 0 for codebooks in orthogonal subspaces. tr(S_i S_j) is the sum of
    the squared inner products of their entries, over K^2, so no S is formed.

    Args:
        codebooks: Entries, float, (N, K, D).

    Returns:
        Correlations, float64, (N, N); NaN for a codebook whose entries are all equal.
    """
    num_codebooks, codebook_size, dim = codebooks.shape
    entries = _centred(codebooks)
    flat = entries.reshape(-1, dim)
    traces = torch.stack(
        [
            (own @ flat.T)
            .square()
            .reshape(codebook_size, num_codebooks, codebook_size)
            .sum((0, 2))
            for own in entries
        ]
    )
    norms = traces.diagonal().sqrt()
    return (traces / norms.outer(norms)).cpu()


def _centred(codebooks: torch.Tensor) -> torch.Tensor:
    """Subtract the mean entry of each codebook, in double precision, (N, K, D)."""
    entries = codebooks.double()
    return entries - entries.mean(1, keepdim=True)
