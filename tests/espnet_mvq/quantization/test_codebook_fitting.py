"""K-means and the closed-form codebook update against slow references."""

import pytest
import torch

from espnet_mvq.quantization import codebook_fitting as module
from espnet_mvq.quantization.codebook_fitting import (
    kmeans,
    nearest,
    refit_codebooks,
    residual_kmeans,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def indicator_matrix(indexes, codebook_size):
    """Build Z, (F, N*K), whose ones mark the chosen entries."""
    num_frames, num_codebooks = indexes.shape
    z = torch.zeros(num_frames, num_codebooks * codebook_size, dtype=torch.float64)
    for frame, row in enumerate(indexes.tolist()):
        for n, index in enumerate(row):
            z[frame, n * codebook_size + index] = 1
    return z


def test_nearest_equals_the_smallest_distance(monkeypatch):
    x, centres = torch.randn(20, 8), torch.randn(4, 8)
    expected = torch.cdist(x, centres).argmin(1)
    assert torch.equal(nearest(x, centres), expected)
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 3)
    assert torch.equal(nearest(x, centres), expected)


def test_kmeans_finds_separated_clusters():
    truth = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    x = (truth.repeat(20, 1) + 0.1 * torch.randn(60, 2))[torch.randperm(60)]
    result = [
        kmeans(x, 3, 10, generator(seed))[:, None].sub(truth).norm(dim=2).min(0).values
        for seed in range(10)
    ]
    # Lloyd's rounds may end with two centres in one cluster, but not for most seeds
    assert sum(bool((distance < 1).all()) for distance in result) >= 3


def test_kmeans_centres_are_means_of_their_frames():
    x = torch.randn(50, 4)
    centres = kmeans(x, 4, 30, generator())
    assignment = nearest(x, centres)
    for k in range(4):
        torch.testing.assert_close(centres[k], x[assignment == k].mean(0))


def test_kmeans_without_rounds_takes_frames():
    x = torch.randn(20, 4)
    centres = kmeans(x, 4, 0, generator())
    assert all(bool((x == centre).all(1).any()) for centre in centres)


def test_kmeans_fills_empty_clusters_from_the_frames():
    """Two distinct frames leave at least two of four clusters empty each round."""
    x = torch.tensor([[0.0, 1.0], [5.0, 5.0]]).repeat(10, 1)
    centres = kmeans(x, 4, 5, generator())
    assert centres.isfinite().all()
    assert {tuple(c) for c in centres.tolist()} <= {(0.0, 1.0), (5.0, 5.0)}


def test_residual_kmeans_error_falls_with_each_codebook():
    x = torch.randn(200, 8)
    before = x.clone()
    codebooks = residual_kmeans(x, 4, 8, 5, generator())
    assert torch.equal(x, before), "the frames were changed"
    assert codebooks.shape == (4, 8, 8)
    errors, residual = [x.square().sum()], x
    for entries in codebooks:
        residual = residual - entries[nearest(residual, entries)]
        errors.append(residual.square().sum())
    assert all(later < 0.95 * earlier for earlier, later in zip(errors, errors[1:]))


def test_residual_kmeans_is_that_of_its_seed():
    x = torch.randn(50, 8)
    first, again, other = (residual_kmeans(x, 2, 4, 3, generator(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("num_codebooks, codebook_size", [(1, 4), (2, 4), (4, 3)])
@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_refit_equals_ridge_regression(num_codebooks, codebook_size, ridge):
    x = torch.randn(60, 8)
    indexes = torch.randint(0, codebook_size, (60, num_codebooks))
    z = indicator_matrix(indexes, codebook_size)
    # Ridge regression is least squares with rows sqrt(ridge) * I below Z
    rows = torch.cat([z, ridge**0.5 * torch.eye(z.shape[1], dtype=z.dtype)])
    goal = torch.cat([x.double(), torch.zeros(z.shape[1], 8, dtype=z.dtype)])
    expected = torch.linalg.lstsq(rows, goal).solution.float()
    result = refit_codebooks(x, indexes, codebook_size, ridge)
    assert result.dtype == x.dtype
    torch.testing.assert_close(
        result, expected.reshape(num_codebooks, codebook_size, 8), rtol=1e-4, atol=1e-5
    )


def test_entries_that_no_frame_uses_are_zero():
    x = torch.randn(20, 8)
    indexes = torch.randint(0, 3, (20, 2))
    result = refit_codebooks(x, indexes, 4, ridge=1.0)
    assert torch.equal(result[:, 3], torch.zeros(2, 8))


def test_refit_recovers_codebooks_from_exact_sums():
    codebooks = torch.randn(2, 4, 8)
    indexes = torch.randint(0, 4, (200, 2))
    x = codebooks[0, indexes[:, 0]] + codebooks[1, indexes[:, 1]]
    result = refit_codebooks(x, indexes, 4, ridge=1e-6)
    again = result[0, indexes[:, 0]] + result[1, indexes[:, 1]]
    torch.testing.assert_close(again, x, rtol=1e-3, atol=1e-3)
