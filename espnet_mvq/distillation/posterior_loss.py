"""Posterior KD: divergence of a student's CTC output from that of a teacher.

A teacher's distribution over V tokens is stored in a sparse form: the k most likely
tokens of a frame are classes of their own, and all others share one, the rest.
"""

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import torch

# Steps of a stored log-probability in a nat: 16 bits then reach down to 32 nats, and
# every probability has a relative error of at most 2.5e-4. Logarithms in float16 would
# have up to 16 times that.
_STEPS = 2048
_NEVER = 2**16 - 1  # stands for probability 0
# Logit of a class that is not there; finite, as 0 times infinity is NaN
_NO_LOGIT = -1e30


def sparse_posteriors(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return the distributions of frames in the form in which they are stored.

    Args:
        logits: Logits or log-probabilities, float, (T, V).
        top_k: Tokens k that become classes of their own, 1 to V.

    Returns:
        The tokens, the most likely one first, and the log-probabilities of these and of
        the rest in steps of -1/2048 nat, int32, (T, 2 k + 1); all fit into uint16 if V
        does.
    """
    log_probs = logits.float().log_softmax(1)
    largest, tokens = log_probs.topk(top_k, dim=1)
    rest = log_probs.scatter(1, tokens, -math.inf).logsumexp(1, keepdim=True)
    steps = (-_STEPS * torch.cat([largest, rest], dim=1)).clamp(max=_NEVER).round()
    return torch.cat([tokens, steps.long()], dim=1).int()


def read_sparse(values: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return the distributions that `sparse_posteriors` has put into its form.

    Args:
        values: int64, (..., 2 k + 1).

    Returns:
        Tokens, int64, (..., k), and log-probabilities of these and of the rest, float,
        (..., k + 1).
    """
    top_k = values.shape[-1] // 2
    tokens, steps = values[..., :top_k], values[..., top_k:]
    return tokens, (steps / -_STEPS).masked_fill(steps == _NEVER, -math.inf)


@dataclass
class PosteriorLossOutput:
    """Sums over the teacher frames of a batch; scalars.

    Attributes:
        loss: The weighted loss; carries the gradient.
        divergence: The loss without weights; no gradient.
        num_agreeing: Frames with the same most likely token in teacher and student.
        num_frames: Teacher frames.
    """

    loss: torch.Tensor
    divergence: torch.Tensor
    num_agreeing: torch.Tensor
    num_frames: int


def posterior_loss(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    log_probs: torch.Tensor,
    temperature: float = 1.0,
    weights: Optional[torch.Tensor] = None,
) -> PosteriorLossOutput:
    """Sum the Kullback-Leibler divergence of the student from the teacher.

    The sum over frames of

        tau^2 sum_c p_c log(p_c / q_c)

    over k + 1 classes c, the teacher's k most likely tokens and the rest, where p is
    the teacher's distribution over them and q the student's, each to the power of
    1/tau and normalised. With k = V it is the divergence of the whole distributions; at
    temperature tau 1 it is never more than that. At a higher one the rest is softened
    as the one class that it is, as its tokens are not known one by one.

    Args:
        logits: Of the student, float, (F, V), V at least as many as the teacher's
            tokens; half precision is converted to float32.
        tokens: The teacher's most likely tokens, int64, (F, k), none twice in a frame.
        log_probs: Log-probabilities of these and of the rest, float, (F, k + 1).
        temperature: Temperature tau, more than 0.
        weights: Weight of each frame, float, (F,). Default: 1.

    Returns:
        The sums; all zero, with zero gradients, if there are no frames.

    Source: Hinton et al. 2015 (arXiv:1503.02531); as the KD loss of AdaKD in Ganguly et
        al. 2024 (arXiv:2405.08019), on frames of CTC. The sparse form is ours.
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        rest = logits.scatter(1, tokens, _NO_LOGIT).logsumexp(1, keepdim=True)
        classes = torch.cat([logits.gather(1, tokens), rest], dim=1)
        student = (classes / temperature).log_softmax(1)
        teacher = (log_probs.float() / temperature).softmax(1)
        terms = torch.special.xlogy(teacher, teacher) - teacher * student
        losses = temperature**2 * terms.sum(1)
        weighted = losses if weights is None else losses * weights
        return PosteriorLossOutput(
            loss=weighted.sum(),
            divergence=losses.detach().sum(),
            num_agreeing=(logits.argmax(1) == tokens[:, 0]).sum(),
            num_frames=len(logits),
        )
