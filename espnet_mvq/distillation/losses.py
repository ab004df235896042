"""Losses between student frames and codebook indexes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from espnet_mvq.distillation.alignment import IGNORE

# Student frames whose logits are held at a time: at 32 targets of 256 values in
# float32 they take 32 MB. Their logits are computed again in the backward pass.
_CHUNK_FRAMES = 1024


@dataclass
class CodebookLossOutput:
    """Sums over the valid targets of a batch.

    Attributes:
        loss: Cross entropy in nats, summed over targets; carries the gradient.
        num_correct: Targets whose logit is the highest.
        num_targets: Valid targets.
        num_frames: Student frames with at least one valid target.
    """

    loss: torch.Tensor
    num_correct: torch.Tensor
    num_targets: torch.Tensor
    num_frames: torch.Tensor


def codebook_loss(
    head: torch.nn.Module, frames: torch.Tensor, targets: torch.Tensor
) -> CodebookLossOutput:
    """Cross entropy of predicting codebook indexes, in bounded memory.

    Args:
        head: Maps (F, C) to logits (F, M, K).
        frames: Student frames, float, (B, T, C).
        targets: Codebook indexes, int64, (B, T, M), `IGNORE` where there is none.

    Returns:
        The sums; all zero, with zero gradients, if no target is valid.
    """
    valid = targets != IGNORE
    chosen = valid.any(dim=2)
    frames, targets = frames[chosen], targets[chosen]
    loss = frames.new_zeros((), dtype=torch.float32)
    num_correct = targets.new_zeros(())
    for part, part_targets in zip(
        frames.split(_CHUNK_FRAMES), targets.split(_CHUNK_FRAMES)
    ):
        if torch.is_grad_enabled():
            part_loss, part_correct = checkpoint(
                _chunk_loss, head, part, part_targets, use_reentrant=False
            )
        else:
            part_loss, part_correct = _chunk_loss(head, part, part_targets)
        loss = loss + part_loss
        num_correct = num_correct + part_correct
    return CodebookLossOutput(loss, num_correct, valid.sum(), chosen.sum())


def _chunk_loss(head: torch.nn.Module, frames: torch.Tensor, targets: torch.Tensor):
    """Return summed cross entropy and number of hits of frames (F, C)."""
    logits = head(frames).flatten(0, 1)
    targets = targets.flatten()
    # In float32 under mixed precision too: half precision loses small differences.
    loss = F.cross_entropy(
        logits.float(), targets, ignore_index=IGNORE, reduction="sum"
    )
    num_correct = (logits.detach().argmax(1) == targets).sum()
    return loss, num_correct
