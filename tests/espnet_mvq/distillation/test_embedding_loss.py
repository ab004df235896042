"""Losses between predictions and embeddings, and the channels' normalisation."""

import pytest
import torch

from espnet_mvq.distillation import (
    EMBEDDING_LOSSES,
    ChannelNormaliser,
    embedding_loss,
)

FORMULAS = {
    "l1": lambda p, e: sum(abs(a - b) for a, b in zip(p, e)) / len(p),
    "l2": lambda p, e: sum((a - b) ** 2 for a, b in zip(p, e)) / len(p),
    "cosine": lambda p, e: 1 - (p @ e) / ((p @ p) ** 0.5 * (e @ e) ** 0.5),
}


@pytest.mark.parametrize("kind", EMBEDDING_LOSSES)
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.0, 2.5])])
def test_sums_are_those_of_the_formulas(kind, weights):
    predicted = torch.randn(3, 4, requires_grad=True)
    embeddings = torch.randn(3, 4)
    output = embedding_loss(kind, predicted, embeddings, weights)
    share = torch.ones(3) if weights is None else weights
    expected = sum(
        w * FORMULAS[kind](p, e) for w, p, e in zip(share, predicted, embeddings)
    )
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(output.loss, predicted, retain_graph=True),
        torch.autograd.grad(expected, predicted),
    )
    pairs = list(zip(predicted, embeddings))
    error = sum(FORMULAS["l2"](p, e) for p, e in pairs)
    similarity = sum(1 - FORMULAS["cosine"](p, e) for p, e in pairs)
    torch.testing.assert_close(output.squared_error, error.detach())
    torch.testing.assert_close(output.similarity, similarity.detach())
    assert output.num_embeddings == 3


@pytest.mark.parametrize("kind", EMBEDDING_LOSSES)
def test_no_frames(kind):
    predicted = torch.randn(0, 4, requires_grad=True)
    output = embedding_loss(kind, predicted, torch.randn(0, 4))
    assert float(output.loss) == 0 and output.num_embeddings == 0
    output.loss.backward()


@pytest.mark.parametrize("kind", EMBEDDING_LOSSES)
def test_half_precision_is_summed_in_float32(kind):
    predicted, embeddings = torch.randn(2, 3000, 4)
    with torch.autocast("cpu", torch.bfloat16):
        output = embedding_loss(kind, predicted.bfloat16(), embeddings)
    assert output.loss.dtype == torch.float32
    expected = embedding_loss(kind, predicted, embeddings)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.01, atol=0)


def test_normaliser_has_mean_and_variance_of_all_frames():
    frames = 3 + torch.tensor([0.1, 1, 50]) * torch.randn(1000, 3)
    normaliser = ChannelNormaliser(3)
    for part in frames.split([1, 399, 0, 600]):
        normaliser.update(part)
    assert float(normaliser.count) == 1000
    torch.testing.assert_close(normaliser.mean, frames.mean(0))
    torch.testing.assert_close(normaliser.variance, frames.var(0, correction=0))


def test_normalised_channels_count_alike():
    frames = 3 + torch.tensor([1, 20, 50]) * torch.randn(1000, 3)
    normaliser = ChannelNormaliser(3)
    normaliser.update(frames)
    normalised = normaliser(frames)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.var(0, correction=0), torch.ones(3))


def test_channel_that_never_varies():
    normaliser = ChannelNormaliser(2)
    normaliser.update(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    assert normaliser(torch.tensor([[1.0, 1.0]])).tolist() == [[0.0, 0.0]]
    assert normaliser(torch.tensor([[1.1, 1.0]])).isfinite().all()


def test_normaliser_goes_with_the_checkpoint_as_floats():
    state = ChannelNormaliser(2).state_dict()
    assert set(state) == {"count", "mean", "variance"}
    assert all(value.is_floating_point() for value in state.values())
