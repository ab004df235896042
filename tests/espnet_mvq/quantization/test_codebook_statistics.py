"""Use and overlap of codebooks, against known answers."""

import math

import pytest
import torch

from espnet_mvq.quantization.codebook_statistics import (
    codebook_correlation,
    codebook_variance_share,
    index_counts,
    index_usage,
)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_usage_of_known_counts(dtype):
    indexes = torch.tensor([[0, 3], [0, 3], [1, 3], [2, 3]]).to(dtype)
    assert index_counts(indexes, 4).tolist() == [[2, 1, 1, 0], [0, 0, 0, 4]]
    usage = index_usage(indexes, 4)
    assert usage.entropy_bits.tolist() == pytest.approx([1.5, 0])
    assert usage.perplexity.tolist() == pytest.approx([2**1.5, 1])
    assert usage.dead_entries.tolist() == [1, 3]


def test_even_use_has_all_bits():
    usage = index_usage(torch.arange(512).remainder(256)[:, None], 256)
    assert usage.entropy_bits.item() == pytest.approx(8)
    assert usage.perplexity.item() == pytest.approx(256)
    assert usage.dead_entries.item() == 0


def plain_correlation(codebooks):
    """Form the covariances (D, D), one pair after the other."""
    covariances = [torch.cov(entries.double().T, correction=0) for entries in codebooks]
    count = len(codebooks)
    values = torch.zeros(count, count, dtype=torch.float64)
    for i, a in enumerate(covariances):
        for j, b in enumerate(covariances):
            norm = math.sqrt((a @ a).trace() * (b @ b).trace())
            values[i, j] = (a @ b).trace() / norm
    return values


@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 4, 16), (1, 2, 3)])
def test_correlation_equals_that_of_covariances(shape):
    codebooks = torch.randn(shape) * torch.arange(1, shape[2] + 1) + 3
    found = codebook_correlation(codebooks)
    torch.testing.assert_close(found, plain_correlation(codebooks))


def test_correlation_of_equal_and_of_orthogonal_codebooks():
    left = torch.cat([torch.randn(8, 3), torch.zeros(8, 3)], dim=1)
    right = torch.cat([torch.zeros(8, 3), torch.randn(8, 3)], dim=1)
    # Neither order, nor sign, nor size, nor mean of the entries counts.
    codebooks = torch.stack([left, right, -2 * left.flip(0) + 1])
    expected = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.float64)
    found = codebook_correlation(codebooks)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_codebook_of_equal_entries_has_no_correlation():
    codebooks = torch.stack([torch.randn(4, 3), torch.ones(4, 3)])
    found = codebook_correlation(codebooks)
    assert found[0, 0] == pytest.approx(1)
    assert found[1].isnan().all() and found[0, 1].isnan()


def test_variance_share():
    entries = torch.randn(8, 3)
    codebooks = torch.stack([entries, 2 * entries + 5, torch.ones(8, 3)])
    found = codebook_variance_share(codebooks).tolist()
    assert found == pytest.approx([0.2, 0.8, 0], abs=1e-6)
