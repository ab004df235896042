"""Losses between student frames and teacher embeddings: classic embedding KD."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional

import torch
import torch.nn.functional as F

# Smallest variance of a channel, relative to the mean over channels
_VARIANCE_FLOOR = 1e-4


class ChannelNormaliser(torch.nn.Module):
    """Normalises each channel of the teacher to mean 0 and variance 1.

    A few channels of a big model often hold most of its variance, and would dominate an
    l2 loss. Mean and variance are those of all training frames so far (those of the
    first process, whose buffers DDP copies to the others). No pass over the corpus is
    needed, and stored, decoded and computed embeddings are treated alike.

    Args:
        dim: Channels D.

    Source: channel normalisation of teachers as in SPEAR (arXiv:2510.25955); the
        estimate during training is ours.
    """

    def __init__(self, dim: int):
        super().__init__()
        # Floats: ESPnet averages checkpoints, and leaves integers as they are.
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def _apply(self, *args: Any, **kwargs: Any) -> "ChannelNormaliser":
        """Move the buffers but keep their type: bfloat16 counts to 256 only."""
        kept = dict(self._buffers)
        super()._apply(*args, **kwargs)
        for name, value in self._buffers.items():
            self._buffers[name] = kept[name].to(value.device)
        return self

    @torch.no_grad()
    def update(self, embeddings: torch.Tensor) -> None:
        """Add frames to mean and variance.

        Args:
            embeddings: Float, (F, D).
        """
        number = len(embeddings)
        if number == 0:
            return
        embeddings = embeddings.float()
        mean = embeddings.mean(0)
        variance = embeddings.var(0, correction=0)
        total = self.count + number
        share = number / total
        step = mean - self.mean
        # Chan et al. 1979: mean and variance of two sets together
        between = share * (1 - share) * step.square()
        self.variance.copy_((1 - share) * self.variance + share * variance + between)
        self.mean.add_(share * step)
        self.count.copy_(total)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Normalise embeddings, float, (F, D), by mean and variance so far."""
        floor = _VARIANCE_FLOOR * self.variance.mean()
        deviation = self.variance.clamp(min=floor).sqrt().clamp(min=1e-12)
        return (embeddings.float() - self.mean) / deviation


def l1(predicted: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference over channels: (F, D), (F, D) -> (F,)."""
    return (predicted - embeddings).abs().mean(1)


def l2(predicted: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over channels: (F, D), (F, D) -> (F,)."""
    return (predicted - embeddings).square().mean(1)


def cosine(predicted: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of the angle: (F, D), (F, D) -> (F,)."""
    return 1 - F.cosine_similarity(predicted, embeddings, dim=1)


EMBEDDING_LOSSES: Dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": l1,
    "l2": l2,
    "cosine": cosine,
}


@dataclass
class EmbeddingLossOutput:
    """Sums over the teacher frames of a batch; scalars.

    Attributes:
        loss: The weighted loss; carries the gradient.
        squared_error: Mean squared difference over channels; no gradient. With
            normalised embeddings each frame counts about 1 if nothing is learned.
        similarity: Cosine of prediction and embedding; no gradient.
        num_embeddings: Teacher frames.
    """

    loss: torch.Tensor
    squared_error: torch.Tensor
    similarity: torch.Tensor
    num_embeddings: int


def embedding_loss(
    kind: str,
    predicted: torch.Tensor,
    embeddings: torch.Tensor,
    weights: Optional[torch.Tensor] = None,
) -> EmbeddingLossOutput:
    """Sum the distance of predictions to embeddings.

    Args:
        kind: A name of `EMBEDDING_LOSSES`.
        predicted: Float, (F, D); half precision is converted to float32.
        embeddings: Targets, float, (F, D).
        weights: Weight of each frame, float, (F,). Default: 1.

    Returns:
        The sums; all zero, with zero gradients, if there are no frames.

    Source: l1 and l2 are the baselines of Guo et al. 2022 (arXiv:2211.00508); scale
        and normalisation are ours.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        predicted, embeddings = predicted.float(), embeddings.float()
        losses = EMBEDDING_LOSSES[kind](predicted, embeddings)
        with torch.no_grad():
            squared_error = l2(predicted, embeddings).sum()
            similarity = (1 - cosine(predicted, embeddings)).sum()
        weighted = losses if weights is None else losses * weights
        return EmbeddingLossOutput(
            loss=weighted.sum(),
            squared_error=squared_error,
            similarity=similarity,
            num_embeddings=len(predicted),
        )
