"""Distillation: frame alignment, prediction heads and losses, in pure torch."""

from espnet_mvq.distillation.alignment import IGNORE, FrameAligner, FrameGrid
from espnet_mvq.distillation.heads import IndependentHead
from espnet_mvq.distillation.losses import CodebookLossOutput, codebook_loss

__all__ = [
    "IGNORE",
    "CodebookLossOutput",
    "FrameAligner",
    "FrameGrid",
    "IndependentHead",
    "codebook_loss",
]
