"""How predictable codebook indexes are: a linear classifier from the frame itself.

A student predicts indexes from features that hold less than the frame. Indexes which
even the frame does not give away linearly will be hard to learn.
"""

import math
from dataclasses import dataclass
from typing import Tuple

import torch

from espnet_mvq.quantization.codebook_statistics import index_counts

_CHUNK_FRAMES = 8192  # frames that are held in double precision at once
_CONSTANT = 1e-12  # a channel with less of the largest channel's variance is constant


@dataclass(frozen=True)
class ProbeScores:
    """How well a linear classifier predicts indexes of frames it has not seen.

    Attributes:
        accuracy: Fraction of right answers for each codebook, (N,).
        cross_entropy_nats: Mean cross entropy in nats, (N,).
        entropy_nats: Entropy of the indexes, (N,): knowing their frequencies alone
            gives this cross entropy.
        chance_nats: ln K, the cross entropy of knowing nothing.
        split: How training and test frames were parted.
        num_train_frames: Frames trained on.
        num_test_frames: Frames the scores are of.
    """

    accuracy: torch.Tensor
    cross_entropy_nats: torch.Tensor
    entropy_nats: torch.Tensor
    chance_nats: float
    split: str
    num_train_frames: int
    num_test_frames: int


def linear_probe(
    train: Tuple[torch.Tensor, torch.Tensor],
    test: Tuple[torch.Tensor, torch.Tensor],
    codebook_size: int,
    *,
    num_steps: int = 160,
    batch_size: int = 256,
    learning_rate: float = 0.005,
    split: str = "",
    seed: int = 0,
) -> ProbeScores:
    """Predict the indexes of a frame from the frame, by softmax regression.

    It starts from the frequencies of the indexes and takes a fixed number of steps of
    Adam, their size falling to 0. So short a training also keeps it from learning few
    frames by heart.

    Args:
        train: Frames, float, (F, D), and their codebook indexes, (F, N).
        test: The same of the frames to score.
        codebook_size: Entries K of each codebook.
        num_steps: Steps.
        batch_size: Frames of a step, at most.
        learning_rate: Of the first step.
        split: How frames were parted, for the report.
        seed: Seed of the order of the frames.

    Returns:
        Scores of the test frames.
    """
    (x, indexes), (test_x, test_indexes) = train, test
    mean, variance, constant = channel_statistics(x)
    mean, scale = mean.float(), torch.where(constant, 1.0, variance.sqrt()).float()

    def loss_and_hits(frames, wanted):
        logits = ((frames.float() - mean) / scale) @ weight + bias
        logits = logits.reshape(-1, codebook_size)
        wanted = wanted.reshape(-1).long()
        loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        shape = (-1, indexes.shape[1])
        return loss.reshape(shape), (logits.argmax(1) == wanted).reshape(shape)

    # Half a frame more for each entry: none is impossible
    frequencies = index_counts(indexes, codebook_size) + 0.5
    bias = (frequencies / frequencies.sum(1, keepdim=True)).log().float().reshape(-1)
    weight = torch.zeros(x.shape[1], len(bias), device=x.device)
    optimizer = torch.optim.Adam([weight.requires_grad_(), bias.requires_grad_()])
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad():
        for step in range(num_steps):
            if len(order) < min(batch_size, len(x)):
                order = torch.randperm(len(x), generator=generator)
            rows, order = order[:batch_size], order[batch_size:]
            loss, _ = loss_and_hits(x[rows], indexes[rows])
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / num_steps)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    with torch.no_grad():
        batches = zip(test_x.split(batch_size), test_indexes.split(batch_size))
        scores = [loss_and_hits(*batch) for batch in batches]
    frequencies = index_counts(test_indexes, codebook_size) / len(test_x)
    return ProbeScores(
        torch.cat([hits for _, hits in scores]).double().mean(0).cpu(),
        torch.cat([loss for loss, _ in scores]).double().mean(0).cpu(),
        torch.special.entr(frequencies).sum(1).cpu(),
        math.log(codebook_size),
        split,
        len(x),
        len(test_x),
    )


def channel_statistics(
    x: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what is needed to standardise channels, in bounded memory.

    Args:
        x: Frames, float, (F, D), F >= 1.

    Returns:
        Mean, float64, variance (divided by F), float64, and which channels are
        constant, bool; all (D,).
    """
    mean = x.mean(0, dtype=torch.float64)
    variance = torch.zeros_like(mean)
    for part in x.split(_CHUNK_FRAMES):
        variance += (part - mean).square().sum(0)
    variance /= len(x)
    return mean, variance, variance <= _CONSTANT * variance.max()
