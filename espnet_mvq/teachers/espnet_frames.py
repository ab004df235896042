"""What of `distillation.encoder_frames` ESPnet teachers need; needs no ESPnet."""

import torch

from espnet_mvq.distillation.encoder_frames import (
    find_blocks,
    first_tensor,
    frame_grid,
)

__all__ = ["find_blocks", "first_tensor", "frame_grid", "min_samples"]


def min_samples(parts: torch.nn.ModuleDict, offset_samples: float) -> int:
    """Return how many samples give one frame: centred on it, or the STFT's padding."""
    stft = getattr(parts["frontend"], "stft", None) if "frontend" in parts else None
    return max(int(2 * offset_samples) + 1, getattr(stft, "n_fft", 0) // 2 + 1)
