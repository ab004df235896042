"""Codebooks fitted to frames: residual k-means, and the closed-form refit."""

import torch

# Frames whose distances to all centres are held at a time: 8192 x 256 floats = 8 MB.
_CHUNK_FRAMES = 8192


def nearest(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Find the nearest centre (K, D) of each frame (F, D): int64, (F,)."""
    half_norms = centres.square().sum(1) / 2
    with torch.autocast(x.device.type, enabled=False):
        return torch.cat(
            [
                torch.addmm(half_norms, part, centres.T, alpha=-1).argmin(1)
                for part in x.split(_CHUNK_FRAMES)
            ]
        )


def kmeans(
    x: torch.Tensor, num_centres: int, num_iterations: int, generator: torch.Generator
) -> torch.Tensor:
    """Lloyd's algorithm from random frames; empty clusters restart on random frames.

    Args:
        x: Frames, float, (F, D), F >= num_centres.
        num_centres: Number of centres K.
        num_iterations: Assignment and update rounds.
        generator: Source of randomness, on the CPU.

    Returns:
        Centres, float, (K, D).
    """

    def random_frames(count: int) -> torch.Tensor:
        order = torch.randperm(len(x), generator=generator)[:count]
        return x[order.to(x.device)]

    centres = random_frames(num_centres).clone()
    for _ in range(num_iterations):
        assignment = nearest(x, centres)
        counts = torch.bincount(assignment, minlength=num_centres)
        sums = torch.zeros_like(centres).index_add_(0, assignment, x)
        centres = sums / counts.clamp(min=1).unsqueeze(1)
        empty = counts == 0
        num_empty = int(empty.sum())
        if num_empty:
            centres[empty] = random_frames(num_empty)
    return centres


def residual_kmeans(
    x: torch.Tensor,
    num_codebooks: int,
    codebook_size: int,
    num_iterations: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Train codebooks one after the other, each on the residual of those before.

    Args:
        x: Frames, float, (F, D), F >= codebook_size.
        num_codebooks: Number of codebooks N.
        codebook_size: Entries K of each codebook.
        num_iterations: K-means rounds for each codebook.
        generator: Source of randomness, on the CPU.

    Returns:
        Codebooks, float, (N, K, D).
    """
    residual = x.clone()
    codebooks = []
    for _ in range(num_codebooks):
        centres = kmeans(residual, codebook_size, num_iterations, generator)
        residual -= centres[nearest(residual, centres)]
        codebooks.append(centres)
    return torch.stack(codebooks)


def refit_codebooks(
    x: torch.Tensor, indexes: torch.Tensor, codebook_size: int, ridge: float
) -> torch.Tensor:
    """Solve for the codebooks that reconstruct frames best from given indexes.

    With Z (F, N*K) the matrix of ones at the chosen entries, the codebooks are the
    ridge solution of Z C = X. Z is never built: Z'Z counts pairs of indexes, Z'X sums
    frames. The ridge makes the solution unique (a constant can move between codebooks)
    and keeps entries that no frame uses at zero.

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
