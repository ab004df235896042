"""The paper's way to train a quantizer: gradient descent, with our code search.

Losses, optimiser and schedule follow Guo et al. 2022 (arXiv:2211.00508), as published
in multi_quantization 0.1.1: a linear classifier learns to guess the refined indexes,
the codebooks learn to reconstruct, 2N codebooks of 16 entries first, whose products
then start N codebooks of 256 entries. Differs: refinement is ours (single and pair
changes in the Gram domain, as many passes), since theirs takes hours on a CPU. It is
here to compare this way of training with `QuantizerTrainer`.
"""

import logging
import math
import random

import torch

from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.gram import GramTables
from espnet_mvq.quantization.search import SearchEffort, find_indexes

SCALE_SPEED = 10  # how much faster the log-domain scales learn than the weights
BATCH_FRAMES = 512
ENTROPY_WEIGHT = 0.01


class GradientQuantizer(torch.nn.Module):
    """Codebooks and classifier that learn by gradient descent.

    Args:
        weight: First entries, and classifier, (N, K, D).
        bias: Of the classifier, (N, K).
        centres: First entries where they differ from the classifier, (N, K, D).
        scales: Log scales of entries and of logits, (2,).
    """

    def __init__(self, weight, bias, centres=None, scales=None):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())
        self.bias = torch.nn.Parameter(bias.clone())
        self.centres = torch.nn.Parameter((weight if centres is None else centres) + 0)
        self.scales = torch.nn.Parameter(torch.zeros(2) if scales is None else scales)

    def entries(self):
        """Return the codebooks, (N, K, D)."""
        return self.centres * (SCALE_SPEED * self.scales[0]).exp()

    def loss(self, x):
        """Return the training loss of frames (B, D)."""
        num_codebooks, codebook_size, dim = self.centres.shape
        scaled = x * (SCALE_SPEED * self.scales[1]).exp()
        logits = scaled @ self.weight.reshape(-1, dim).T + self.bias.flatten()
        logits = logits.reshape(-1, num_codebooks, codebook_size)
        entries = self.entries()
        with torch.no_grad():
            tables = GramTables(entries)
            effort = SearchEffort(1, random.choice((1, 2)), 2, 0)
            unary = tables.unary_costs(x)
            indexes = find_indexes(tables, unary, effort, logits.argmax(2))
            mean = entries.mean(1).sum(0)
        rows = indexes + tables.offsets
        decoded = torch.nn.functional.embedding_bag(
            rows, entries.reshape(-1, dim), mode="sum"
        )
        error = (decoded - x).square().sum() / (x - mean).square().sum()
        log_prob = logits.log_softmax(2)
        guess = -log_prob.gather(2, indexes.unsqueeze(2)).mean()
        usage = log_prob.exp().mean(0)
        entropy = -(usage * (usage + 1e-20).log()).sum(1).mean()
        missing = (math.log(codebook_size) - entropy) / math.log(codebook_size)
        return error + guess + ENTROPY_WEIGHT * missing

    def product(self):
        """Return the quantizer of half as many codebooks that does the same."""

        def pairs(values):
            first, second = values.detach()[0::2], values.detach()[1::2]
            return (first[:, :, None] + second[:, None]).flatten(1, 2)

        return GradientQuantizer(
            pairs(self.weight),
            pairs(self.bias),
            pairs(self.centres),
            self.scales.detach().clone(),
        )


def train(x, num_codebooks, steps, learning_rate=0.005, log_every=1000):
    """Train with half of the steps in each phase.

    Args:
        x: Training frames, float, (F, D).
        num_codebooks: Number of codebooks N of 256 entries.
        steps: Steps of both phases together; the published default is 20 000.
        learning_rate: Of the first phase; the second has half of it.
        log_every: Steps between log lines.

    Returns:
        The codebooks as a `Quantizer`, on frames whose mean is removed.
    """
    torch.manual_seed(0)
    random.seed(0)
    mean = x.mean(0)
    layer = torch.nn.Linear(x.shape[1], 2 * num_codebooks * 16)
    model = GradientQuantizer(
        layer.weight.detach().reshape(2 * num_codebooks, 16, -1),
        layer.bias.detach().reshape(2 * num_codebooks, 16),
    )
    for phase in (1, 2):
        if phase == 2:
            model, learning_rate = model.product(), learning_rate / 2
        optimizer = torch.optim.Adam(
            model.parameters(),
            lr=learning_rate,
            betas=(0.9, 0.98),
            eps=1e-9,
            weight_decay=1e-6,
        )
        scheduler = torch.optim.lr_scheduler.StepLR(
            optimizer, max(1, steps // 8), gamma=0.5
        )
        for step in range(1, steps // 2 + 1):
            loss = model.loss(x[torch.randint(len(x), (BATCH_FRAMES,))] - mean)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            if step % log_every == 0:
                logging.info(f"phase {phase}, step {step}: loss {loss.item():.4f}")
    return Quantizer(model.entries().detach(), mean)
