"""Distillation: frame alignment, prediction heads and losses, in pure torch."""

from espnet_mvq.distillation.alignment import (
    IGNORE,
    FrameAligner,
    FrameGrid,
    mean_over_time,
)
from espnet_mvq.distillation.embedding_loss import (
    EMBEDDING_LOSSES,
    ChannelNormaliser,
    embedding_loss,
)
from espnet_mvq.distillation.heads import HEADS, Head, IndependentHead, JointHead
from espnet_mvq.distillation.losses import CodebookLossOutput, codebook_loss
from espnet_mvq.distillation.masking import Mask
from espnet_mvq.distillation.posterior_loss import (
    posterior_loss,
    read_sparse,
    sparse_posteriors,
)
from espnet_mvq.distillation.schedules import WeightSchedule
from espnet_mvq.distillation.soft_targets import (
    soft_target_table,
    unit_variance_codebooks,
)
from espnet_mvq.distillation.weighting import Weighting, build_weighting

__all__ = [
    "EMBEDDING_LOSSES",
    "HEADS",
    "IGNORE",
    "ChannelNormaliser",
    "CodebookLossOutput",
    "FrameAligner",
    "FrameGrid",
    "Head",
    "IndependentHead",
    "JointHead",
    "Mask",
    "WeightSchedule",
    "Weighting",
    "build_weighting",
    "codebook_loss",
    "embedding_loss",
    "mean_over_time",
    "posterior_loss",
    "read_sparse",
    "soft_target_table",
    "sparse_posteriors",
    "unit_variance_codebooks",
]
