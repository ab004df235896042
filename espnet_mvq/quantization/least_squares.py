"""Closed-form codebook update: the best entries for given indexes."""

import torch


def refit_codebooks(
    x: torch.Tensor, indexes: torch.Tensor, codebook_size: int, ridge: float
) -> torch.Tensor:
    """Solve for the codebooks that reconstruct frames best from their indexes.

    With Z the (F, N*K) matrix that marks the chosen entries by ones, the codebooks are
    the ridge solution of Z C = X. Z is never built: Z'Z are counts of pairs of
    indexes, Z'X are sums of frames. The ridge makes the solution unique (a constant
    can move between codebooks) and keeps entries that no frame uses at zero.

    Args:
        x: Frames, float, (F, D).
        indexes: Codebook indexes, int64, (F, N).
        codebook_size: Entries K of each codebook.
        ridge: Regulariser, in frames: an entry used by that many frames is halved.

    Returns:
        Codebooks, float, (N, K, D), of x's type.

    Source: the codebook update of additive quantization (Babenko and Lempitsky 2014).
    """
    num_codebooks = indexes.shape[1]
    size = num_codebooks * codebook_size
    counts = x.new_zeros(num_codebooks, codebook_size, num_codebooks, codebook_size)
    for n in range(num_codebooks):
        for m in range(n, num_codebooks):
            pairs = torch.bincount(
                indexes[:, n] * codebook_size + indexes[:, m],
                minlength=codebook_size**2,
            ).reshape(codebook_size, codebook_size)
            counts[n, :, m] = pairs.to(x.dtype)
            counts[m, :, n] = pairs.T.to(x.dtype)
    sums = x.new_zeros(num_codebooks, codebook_size, x.shape[1])
    for n in range(num_codebooks):
        sums[n].index_add_(0, indexes[:, n], x)
    # Double precision: the counts matrix is singular but for the ridge.
    normal = counts.reshape(size, size).double()
    normal.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(normal)
    solution = torch.cholesky_solve(sums.reshape(size, -1).double(), factor)
    return solution.to(x.dtype).reshape(num_codebooks, codebook_size, -1)
