"""Losses between student frames and codebook indexes."""

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from espnet_mvq.distillation.alignment import IGNORE
from espnet_mvq.distillation.heads import Head

# Student frames per chunk. At 32 targets of 256 values the logits of a chunk take 8 MB
# in float32. Smaller chunks are slower: small products, more sums of the weights'
# gradients. Larger ones are hardly faster.
_CHUNK_FRAMES = 256
# Gradients are computed of this fraction of the loss and scaled back in float32. It is
# a power of two: exact in float32 and bfloat16. In float16 the sum over a chunk could
# overflow without it; a GradScaler's factor is applied too late to prevent that.
_FRACTION = 2**-6


@dataclass
class CodebookLossOutput:
    """Sums over the valid targets of a batch; scalars unless a shape is given.

    Attributes:
        loss: The weighted loss; carries the gradient. Without options it is the cross
            entropy in nats, summed over targets.
        num_correct: Targets whose logit is the highest.
        num_targets: Valid targets.
        num_frames: Student frames with at least one valid target.
        cross_entropy: Cross entropy in nats of the stored indexes, independent of the
            options; no gradient.
        correct_by_target: As `num_correct`, of each of the M targets of a frame, (M,).
        count_by_target: As `num_targets`, of each of them, (M,).
    """

    loss: torch.Tensor
    num_correct: torch.Tensor
    num_targets: torch.Tensor
    num_frames: torch.Tensor
    cross_entropy: torch.Tensor
    correct_by_target: torch.Tensor
    count_by_target: torch.Tensor


def codebook_loss(
    head: Head,
    frames: torch.Tensor,
    targets: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    soft_targets: Optional[torch.Tensor] = None,
    codebooks: Optional[torch.Tensor] = None,
    embedding_weight: float = 0.0,
    frame_weights: Optional[torch.Tensor] = None,
) -> CodebookLossOutput:
    """Cross entropy of predicting codebook indexes, in bounded memory.

    The sum over the valid targets of

        -sum_k q_k log p_k,   q = (1 - label_smoothing) t + label_smoothing / K

    where p is the softmax of the head's logits and t is 1 at the stored index i, or
    row i of the target's table in `soft_targets`. With `embedding_weight` w, moreover,
    w N e for each teacher frame, where

        e = || sum_n sum_k p_nk c_nk - sum_n c_n[i_n] ||^2

    is the squared error of the expected embedding, relative to the variance of
    embeddings if the codebooks are scaled accordingly. The factor N makes the mean of
    the loss per target the mean cross entropy plus w times the mean of e.

    The loss is a sum over frames, so its gradients are computed together with it, chunk
    by chunk; the backward pass only scales them. No logits are stored or computed
    twice. Frames without a target are left out first, so their values do not matter. In
    mixed precision the head runs in the lower precision, the rest in float32. There are
    no second derivatives.

    Args:
        head: Gives logits (F, M, K) for frames (F, C) and targets (F, M).
        frames: Student frames, float, (B, T, C).
        targets: Codebook indexes, int64, (B, T, M), M = slots x N, `IGNORE` where
            there is none.
        label_smoothing: Share of the target spread evenly over all values, 0 to 1.
        soft_targets: Target distributions of the N codebooks for each stored index,
            float, (N, K, K), from `soft_target_table`. Default: the stored index only.
        codebooks: Scaled entries, float, (N, K, D), from `unit_variance_codebooks`;
            `embedding_weight` needs them.
        embedding_weight: Weight w of the error in the space of embeddings, at least 0.
        frame_weights: Weight of each frame in the loss, float, (B, T), but not in the
            statistics. Default: 1.

    Returns:
        The sums; all zero, with zero gradients, if no target is valid.

    Raises:
        ValueError: If a shape or option is out of range.

    Source: cross entropy on indexes from Guo et al. 2022 (arXiv:2211.00508), which in
        multi_quantization `JointCodebookLoss` computes the logits twice. Soft targets
        and the error in the space of embeddings are ours.
    """
    options = _Options(label_smoothing, soft_targets, codebooks, embedding_weight)
    options.check(head, targets)
    valid = targets != IGNORE
    chosen = valid.any(dim=2)
    weights = None
    if frame_weights is not None:
        weights = frame_weights.detach()[chosen]
    loss, correct, cross_entropy = _ChunkedLoss.apply(
        head,
        options,
        torch.is_grad_enabled(),
        targets[chosen],
        weights,
        frames[chosen],
        *head.weights(),
    )
    return CodebookLossOutput(
        loss=loss,
        num_correct=correct.sum(),
        num_targets=valid.sum(),
        num_frames=chosen.sum(),
        cross_entropy=cross_entropy,
        correct_by_target=correct,
        count_by_target=valid.sum((0, 1)),
    )


@dataclass(frozen=True)
class _Options:
    """The options of `codebook_loss`."""

    label_smoothing: float
    soft_targets: Optional[torch.Tensor]
    codebooks: Optional[torch.Tensor]
    embedding_weight: float

    def check(self, head: Head, targets: torch.Tensor) -> None:
        """Raise ValueError if an option or shape is out of range."""
        num_targets, codebook_size = head.num_targets, head.codebook_size
        if targets.dim() != 3 or targets.shape[2] != num_targets:
            raise ValueError(
                f"targets: got shape {tuple(targets.shape)}, expected (batch, frames, "
                f"{num_targets}) as the head predicts"
            )
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(
                f"label_smoothing: got {self.label_smoothing}, expected 0 to 1"
            )
        if not self.embedding_weight >= 0:
            raise ValueError(
                f"embedding_weight: got {self.embedding_weight}, expected at least 0"
            )
        if self.embedding_weight > 0 and self.codebooks is None:
            raise ValueError(
                f"embedding_weight: got {self.embedding_weight} without codebooks, "
                "expected those of the quantizer"
            )
        for name, table, size in (
            ("soft_targets", self.soft_targets, "K, K"),
            ("codebooks", self.codebooks, "K, D"),
        ):
            if table is None:
                continue
            shape = table.shape
            fits = table.dim() == 3 and shape[1] == codebook_size and shape[0] > 0
            if name == "soft_targets":
                fits = fits and shape[1] == shape[2]
            if not fits or num_targets % shape[0]:
                raise ValueError(
                    f"{name}: got shape {tuple(shape)}, expected (N, {size}) where K "
                    f"is {codebook_size} and N divides the head's {num_targets} targets"
                )


class _ChunkedLoss(torch.autograd.Function):
    """Sums of a loss over chunks of frames, with gradients from the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        head: Head,
        options: _Options,
        with_gradient: bool,
        targets: torch.Tensor,
        frame_weights: Optional[torch.Tensor],
        frames: torch.Tensor,
        *weights: torch.Tensor,
    ) -> Tuple[torch.Tensor, ...]:
        """Compute the sums and keep the gradients.

        Args:
            ctx: Of autograd.
            head: Its `logits` are called with copies of its weights, so that nothing
                is added to the gradients of the weights and none of their hooks run.
            options: Of the loss.
            with_gradient: Whether to take gradients at all.
            targets: int64, (F, M).
            frame_weights: Of each frame in the loss, float, (F,); None: 1.
            frames: Float, (F, C).
            *weights: Of the head.

        Returns:
            The sums of `_chunk_sums`.
        """
        needed = [with_gradient and need for need in ctx.needs_input_grad[5:]]
        # The same copies for all chunks, so that autocast converts them once.
        copies = [
            weight.detach().requires_grad_(need)
            for weight, need in zip(weights, needed[1:])
        ]
        # Those of the weights are sums over chunks: in float32 in any case.
        gradients = [torch.empty_like(frames) if needed[0] else None] + [
            torch.zeros_like(weight, dtype=torch.float32) if need else None
            for weight, need in zip(weights, needed[1:])
        ]
        totals = None
        for start in range(0, max(1, len(frames)), _CHUNK_FRAMES):
            part = slice(start, start + _CHUNK_FRAMES)
            chunk = frames[part].detach().requires_grad_(needed[0])
            counts = None if frame_weights is None else frame_weights[part]
            sums, parts = _differentiate(
                head, options, targets[part], counts, chunk, copies
            )
            totals = totals or [torch.zeros_like(value) for value in sums]
            for total, value in zip(totals, sums):
                total += value
            if needed[0]:
                gradients[0][part] = parts[0]
            for total, gradient in zip(gradients[1:], parts[1:]):
                if total is not None:
                    total += gradient
            del parts  # frees them before the next chunk's are computed
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [value.dtype for value in (frames, *weights)]
        ctx.mark_non_differentiable(*totals[1:])
        return tuple(totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *sums: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        """Scale the gradients that were kept."""
        # In float32, as the factor may be beyond what float16 can hold.
        factor = sums[0] / _FRACTION
        gradients = [
            None if kept is None else (kept.to(factor.dtype) * factor).to(dtype)
            for kept, dtype in zip(ctx.saved_tensors, ctx.dtypes)
        ]
        return (None, None, None, None, None, *gradients)


def _differentiate(
    head: Head,
    options: _Options,
    targets: torch.Tensor,
    frame_weights: Optional[torch.Tensor],
    frames: torch.Tensor,
    weights: Sequence[torch.Tensor],
) -> Tuple[List[torch.Tensor], List[Optional[torch.Tensor]]]:
    """Compute the sums over a chunk of frames and the gradients of the loss.

    Args:
        head: Its `logits` are called.
        options: Of the loss.
        targets: int64, (F, M).
        frame_weights: Of each frame in the loss, float, (F,); None: 1.
        frames: Float, (F, C).
        weights: Of the head.

    Returns:
        The sums of `_chunk_sums`, and the gradients of `_FRACTION` of the loss with
        respect to frames and weights, None for those that do not require any.
    """
    inputs = [frames, *weights]
    wanted = [value for value in inputs if value.requires_grad]
    gradients = iter(())
    with torch.set_grad_enabled(len(wanted) > 0):
        logits = head.logits(frames, targets, *weights)
        # The gradients too belong outside of autocast, as in any backward pass.
        with torch.autocast(frames.device.type, enabled=False):
            sums = _chunk_sums(logits, targets, frame_weights, options)
            if wanted:
                fraction = torch.full_like(sums[0], _FRACTION)
                gradients = iter(torch.autograd.grad(sums[0], wanted, fraction))
    return [value.detach() for value in sums], [
        next(gradients) if value.requires_grad else None for value in inputs
    ]


def _chunk_sums(
    logits: torch.Tensor,
    targets: torch.Tensor,
    frame_weights: Optional[torch.Tensor],
    options: _Options,
) -> Tuple[torch.Tensor, ...]:
    """Compute the sums over the frames of a chunk.

    Args:
        logits: Float, (F, M, K).
        targets: int64, (F, M).
        frame_weights: Of each frame in the loss, float, (F,); None: 1.
        options: Of the loss.

    Returns:
        Loss, correct targets (M,) and cross entropy.
    """
    # In float32 under mixed precision too: half precision loses small differences.
    log_probs = logits.flatten(0, 1).float().log_softmax(1)
    flat = targets.flatten()
    # Loss of each target, (F * M,); zero for `IGNORE`
    losses = F.nll_loss(log_probs, flat, ignore_index=IGNORE, reduction="none")
    cross_entropy = losses.sum()
    correct = (logits.detach().argmax(2) == targets).sum(0)
    if options.soft_targets is not None:
        losses = _soft_cross_entropy(log_probs, targets, options.soft_targets)
    if options.label_smoothing > 0:
        even = log_probs.mean(1) * (flat != IGNORE)
        losses = (1 - options.label_smoothing) * losses - options.label_smoothing * even
    loss = _weighted_sum(losses, frame_weights)
    if options.embedding_weight > 0:
        errors = _embedding_errors(log_probs, targets, options.codebooks)
        weighted = _weighted_sum(errors, frame_weights)
        loss = loss + options.embedding_weight * len(options.codebooks) * weighted
    return loss, correct, cross_entropy


def _weighted_sum(
    values: torch.Tensor, frame_weights: Optional[torch.Tensor]
) -> torch.Tensor:
    """Sum values of frames, several of each, (F * X,), by weights (F,) if any."""
    if frame_weights is None:
        return values.sum()
    num_frames = len(frame_weights)
    per_frame = values.reshape(num_frames, len(values) // max(1, num_frames)).sum(1)
    return (per_frame * frame_weights).sum()


def _soft_cross_entropy(
    log_probs: torch.Tensor, targets: torch.Tensor, table: torch.Tensor
) -> torch.Tensor:
    """Compute the cross entropy of soft targets, of each (F * M,).

    Args:
        log_probs: Float32, (F * M, K).
        targets: int64, (F, M).
        table: Target distributions, float, (N, K, K).
    """
    num_codebooks, size, _ = table.shape
    codebook = torch.arange(targets.shape[1], device=targets.device) % num_codebooks
    rows = (targets.clamp(min=0) + codebook * size).flatten()
    distributions = F.embedding(rows, table.reshape(-1, size).to(log_probs.dtype))
    return -(distributions * log_probs).sum(1) * (targets.flatten() != IGNORE)


def _embedding_errors(
    log_probs: torch.Tensor, targets: torch.Tensor, codebooks: torch.Tensor
) -> torch.Tensor:
    """Compute the squared error of each expected embedding, (F * M / N,).

    Args:
        log_probs: Float32, (F * M, K).
        targets: int64, (F, M).
        codebooks: Float, (N, K, D).
    """
    num_codebooks, size, dim = codebooks.shape
    flat = targets.reshape(-1, 1)
    # Expected minus stored entry, as weights of all entries. One product with all
    # codebooks then gives the error of an embedding: nothing of size (F, M, D).
    stored = torch.zeros_like(log_probs).scatter_(1, flat.clamp(min=0), 1)
    difference = (log_probs.exp() - stored) * (flat != IGNORE)
    difference = difference.reshape(-1, num_codebooks * size)
    entries = codebooks.reshape(-1, dim).to(log_probs.dtype)
    return (difference @ entries).square().sum(1)
