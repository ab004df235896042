"""Linear classifiers of codebook indexes, derived from the codebooks."""

import pytest
import torch

from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.linear_discriminant import linear_discriminant

N, K, D = 3, 4, 6


@pytest.fixture
def codebooks():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([4.0, 2.0, 1.0]).reshape(3, 1, 1)
    return sizes * torch.randn(N, K, D, generator=generator)


def logits_of(codebooks, frames, mean, scale, error):
    weight, bias = linear_discriminant(codebooks, error, mean, scale)
    return (frames @ weight.T + bias).reshape(len(frames), *codebooks.shape[:2])


def test_log_odds_are_those_of_the_gaussians(codebooks):
    """Slow: densities of each entry, written with torch's own Gaussian."""
    mean, scale, error = torch.randn(D), torch.rand(D) + 0.5, 0.2
    frames = torch.randn(5, D)
    logits = logits_of(codebooks, frames, mean, scale, error)
    covariances = [torch.cov(book.T, correction=0) for book in codebooks]
    total = sum(covariances)
    left_over = 0.25 * total.trace() / D * torch.eye(D)  # 0.2 of all, against 0.8
    for n, book in enumerate(codebooks):
        others = [m for m in range(N) if m != n]
        noise = sum(covariances[m] for m in others) + left_over
        around = sum(codebooks[m].mean(0) for m in others)
        densities = [
            torch.distributions.MultivariateNormal(entry + around, noise)
            for entry in book
        ]
        z = (frames - mean) / scale
        expected = torch.stack([d.log_prob(z) for d in densities], dim=1)
        torch.testing.assert_close(
            logits[:, n].log_softmax(1),
            expected.log_softmax(1),
            rtol=1e-3,
            atol=1e-3,
        )


def test_one_codebook_is_read_off_exactly():
    generator = torch.Generator().manual_seed(1)
    frames = 3 + 5 * torch.randn(50, D, generator=generator)
    mean, scale = frames.mean(0), frames.std(0)
    quantizer = Quantizer(torch.randn(1, 16, D, generator=generator), mean, scale)
    logits = logits_of(quantizer.codebooks, frames, mean, scale, 0.4)
    assert torch.equal(logits.argmax(2), quantizer.encode(frames).long())


@pytest.mark.parametrize("error", [0.0, 1.0])
def test_any_error_gives_finite_weights(codebooks, error):
    for weights in linear_discriminant(codebooks[:1], error):
        assert weights.isfinite().all()
