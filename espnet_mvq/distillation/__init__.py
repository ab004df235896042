"""Distillation: frame alignment, prediction heads and losses, in pure torch."""

from espnet_mvq.distillation.alignment import IGNORE, FrameAligner, FrameGrid
from espnet_mvq.distillation.heads import HEADS, Head, IndependentHead, JointHead
from espnet_mvq.distillation.losses import CodebookLossOutput, codebook_loss
from espnet_mvq.distillation.schedules import WeightSchedule
from espnet_mvq.distillation.soft_targets import (
    soft_target_table,
    unit_variance_codebooks,
)

__all__ = [
    "HEADS",
    "IGNORE",
    "CodebookLossOutput",
    "FrameAligner",
    "FrameGrid",
    "Head",
    "IndependentHead",
    "JointHead",
    "WeightSchedule",
    "codebook_loss",
    "soft_target_table",
    "unit_variance_codebooks",
]
