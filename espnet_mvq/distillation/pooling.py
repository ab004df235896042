"""One vector for an utterance."""

from typing import Tuple

import torch


def mean_over_time(
    frames: torch.Tensor, lengths: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Make an utterance one frame: the mean of its frames.

    Args:
        frames: Float, (B, T, C), anything beyond their lengths.
        lengths: Frames of each utterance, int64, (B,).

    Returns:
        Means, float, (B, 1, C), zero for an utterance without frames; and their
        lengths, int64, (B,), 1 or 0.

    Source: what one index per audio is predicted from, after DeCoR (Jiang et al. 2023,
        arXiv:2305.18441); that it is the mean is ours.
    """
    steps = torch.arange(frames.shape[1], device=frames.device)
    padding = steps >= lengths.unsqueeze(1)
    # Not by a product: padding may hold NaN.
    total = frames.masked_fill(padding.unsqueeze(2), 0).sum(1, keepdim=True)
    count = lengths.clamp(min=1).reshape(-1, 1, 1)
    return total / count, lengths.clamp(max=1)
