"""K-means and residual k-means: the starting point of quantizer training."""

import torch

# Frames whose distances to all centres are held at a time: 8192 x 256 floats = 8 MB.
_CHUNK_FRAMES = 8192


def nearest(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Find the nearest centre of each frame.

    Args:
        x: Frames, float, (F, D).
        centres: Centres, float, (K, D).

    Returns:
        Indexes of the nearest centres, int64, (F,).
    """
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
    """Train codebooks one after the other, each on what the ones before left over.

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
