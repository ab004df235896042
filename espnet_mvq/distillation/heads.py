"""Prediction heads: from student frames to logits of codebook indexes.

A head returns its trainable tensors by `weights`, and `logits` is a pure function of
them, so that the loss can take gradients chunk by chunk.
"""

from typing import Dict, Optional, Tuple, Type

import torch
import torch.nn.functional as F

from espnet_mvq.distillation.alignment import IGNORE


class Head(torch.nn.Module):
    """Base class of heads.

    Args:
        num_targets: Indexes M to predict per student frame: slots x codebooks.
        codebook_size: Values K an index can take.
    """

    def __init__(self, num_targets: int, codebook_size: int):
        super().__init__()
        self.num_targets = num_targets
        self.codebook_size = codebook_size

    def weights(self) -> Tuple[torch.Tensor, ...]:
        """Return all trainable tensors, in the order in which `logits` takes them.

        Read from the attributes, as a replica of torch's DataParallel has no
        `parameters()`.
        """
        raise NotImplementedError

    def logits(
        self,
        frames: torch.Tensor,
        targets: Optional[torch.Tensor],
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        """Compute logits with the given weights; shapes as for `forward`."""
        raise NotImplementedError

    def forward(
        self, frames: torch.Tensor, targets: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Compute logits.

        Args:
            frames: Student frames, float, (F, C).
            targets: Codebook indexes, int64, (F, M), `IGNORE` where there is none.
                Only a head that predicts indexes from other indexes needs them.

        Returns:
            Logits, (F, M, K).
        """
        return self.logits(frames, targets, *self.weights())


class IndependentHead(Head):
    """Predicts every index of a frame on its own, all by one projection.

    Args:
        input_size: Channels C of the student layer.
        num_targets: Indexes M to predict per student frame: slots x codebooks.
        codebook_size: Values K an index can take.

    Source: the plain cross-entropy head of Guo et al. 2022 (`is_joint=False`); one
        projection in place of one per codebook, and no unused parameters.
    """

    def __init__(self, input_size: int, num_targets: int, codebook_size: int):
        super().__init__(num_targets, codebook_size)
        size = num_targets * codebook_size
        # Logits of unit variance for inputs of unit variance
        self.weight = _normal(size, input_size)
        self.bias = torch.nn.Parameter(torch.zeros(size))

    def weights(self) -> Tuple[torch.Tensor, ...]:
        """Return (M * K, C) and (M * K,)."""
        return self.weight, self.bias

    def logits(
        self,
        frames: torch.Tensor,
        targets: Optional[torch.Tensor],
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        """Compute logits with the given weights; the targets are not used."""
        logits = F.linear(frames, *weights)
        return logits.reshape(-1, self.num_targets, self.codebook_size)


class JointHead(Head):
    """Predicts each index of a frame from the frame and from the indexes before it.

    With z a frame, i_l its indexes (those of slot 0 first, then those of slot 1 ...):

        logits_j = A_j z + a_j + B_j relu(L z + b + sum_{l<j} s E_l[i_l])

    The true indexes are given in training (teacher forcing); a missing one contributes
    nothing. s = sqrt(H / M) / 2.

    Args:
        input_size: Channels C of the student layer.
        num_targets: Indexes M to predict per student frame: slots x codebooks.
        codebook_size: Values K an index can take.
        hidden_size: Units H of the hidden layer.

    Source: the joint codebook loss of Guo et al. 2022 (arXiv:2211.00508), in
        multi_quantization `JointCodebookLoss(is_joint=True)`: the same logits from
        the same weights. Differs: M = 1 is allowed, and missing indexes add
        nothing to the context, while in multi_quantization they count as index 0.
    """

    def __init__(
        self,
        input_size: int,
        num_targets: int,
        codebook_size: int,
        hidden_size: int = 512,
    ):
        super().__init__(num_targets, codebook_size)
        size = num_targets * codebook_size
        self.weight = _normal(size, input_size)  # A
        self.bias = torch.nn.Parameter(torch.zeros(size))  # a
        self.hidden = torch.nn.Linear(input_size, hidden_size)  # L, b
        self.hidden_weight = _normal(num_targets, codebook_size, hidden_size)  # B
        # E, one row per value of every index but the last. With a single index there
        # is nothing before it: then no parameter, as an unused one would stop DDP.
        rows = (num_targets - 1) * codebook_size
        self.context = _normal(rows, hidden_size) if rows else None

    def weights(self) -> Tuple[torch.Tensor, ...]:
        """Return A (M K, C), a (M K,), L (H, C), b (H,), B (M, K, H), E (M K - K, H).

        Without E if M is 1.
        """
        weights = (
            self.weight,
            self.bias,
            self.hidden.weight,
            self.hidden.bias,
            self.hidden_weight,
        )
        return weights if self.context is None else (*weights, self.context)

    def logits(
        self,
        frames: torch.Tensor,
        targets: Optional[torch.Tensor],
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        """Compute logits with the given weights.

        Raises:
            ValueError: If there are no targets.
        """
        if targets is None:
            raise ValueError(
                "targets: got None, expected the codebook indexes, as this head "
                "predicts each one from those before it"
            )
        weight, bias, hidden_weight_in, hidden_bias, hidden_weight, *context = weights
        hidden = F.linear(frames, hidden_weight_in, hidden_bias).unsqueeze(1)
        if context:
            before = targets[:, :-1]
            offsets = torch.arange(before.shape[1], device=before.device)
            rows = before.clamp(min=0) + offsets * self.codebook_size
            size = (hidden.shape[2] / self.num_targets) ** 0.5 / 2
            share = (before != IGNORE).unsqueeze(2) * size
            added = F.embedding(rows, context[0]) * share
            # Place j of the sum holds the frame and all indexes before j.
            hidden = torch.cat([hidden, added.to(hidden.dtype)], dim=1).cumsum(1)
        # (M, F, H) @ (M, H, K) -> (M, F, K)
        joint = hidden.relu().transpose(0, 1) @ hidden_weight.transpose(1, 2)
        logits = F.linear(frames, weight, bias)
        logits = logits.reshape(-1, self.num_targets, self.codebook_size)
        return logits + joint.transpose(0, 1)


def _normal(*shape: int) -> torch.nn.Parameter:
    """Draw weights that give outputs of unit variance for inputs of unit variance."""
    return torch.nn.Parameter(torch.randn(shape) * shape[-1] ** -0.5)


HEADS: Dict[str, Type[Head]] = {"independent": IndependentHead, "joint": JointHead}
