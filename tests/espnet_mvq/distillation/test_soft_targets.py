"""Tables computed from codebooks against entries taken two at a time."""

import pytest
import torch

from espnet_mvq.distillation import soft_target_table, unit_variance_codebooks
from espnet_mvq.quantization import Quantizer

NUM_CODEBOOKS, SIZE, DIM = 3, 6, 4


@pytest.fixture
def codebooks():
    scales = torch.tensor([10.0, 1.0, 0.1]).reshape(-1, 1, 1)
    return 5 + scales * torch.randn(NUM_CODEBOOKS, SIZE, DIM)


def distances_of(codebooks):
    """Squared distances of decoded embeddings when one index is replaced, (N, K, K)."""
    quantizer = Quantizer(codebooks.float())
    base = torch.randint(0, SIZE, (NUM_CODEBOOKS,))
    distances = torch.zeros(NUM_CODEBOOKS, SIZE, SIZE)
    for n in range(NUM_CODEBOOKS):
        indexes = base.repeat(SIZE, 1)
        indexes[:, n] = torch.arange(SIZE)
        decoded = quantizer.decode(indexes)
        distances[n] = torch.cdist(decoded, decoded).square()
    return distances


@pytest.mark.parametrize("temperature", [0.05, 0.3, 2.0])
def test_table_equals_softmax_of_distances(codebooks, temperature):
    distances = distances_of(codebooks)
    table = soft_target_table(codebooks, temperature)
    for n in range(NUM_CODEBOOKS):
        pairs = [distances[n, i, k] for i in range(SIZE) for k in range(SIZE) if i != k]
        mean = sum(pairs) / len(pairs)
        expected = torch.softmax(-distances[n] / (temperature * mean), dim=1)
        torch.testing.assert_close(table[n], expected, rtol=1e-3, atol=1e-5)


def test_stored_index_is_the_likeliest_and_cold_tables_are_hard(codebooks):
    table = soft_target_table(codebooks, 0.5)
    torch.testing.assert_close(table.sum(2), torch.ones(NUM_CODEBOOKS, SIZE))
    assert torch.equal(table.argmax(2), torch.arange(SIZE).expand(NUM_CODEBOOKS, -1))
    eye = torch.eye(SIZE).expand(NUM_CODEBOOKS, -1, -1)
    torch.testing.assert_close(soft_target_table(codebooks, 1e-6), eye)


def test_table_depends_neither_on_place_nor_on_size_of_entries(codebooks):
    table = soft_target_table(codebooks)
    other = soft_target_table(3 * codebooks - 7)
    torch.testing.assert_close(other, table, rtol=1e-3, atol=1e-5)


def test_equal_entries_share_the_probability(codebooks):
    codebooks[0] = 1.0
    codebooks[1, 0] = codebooks[1, 1]
    table = soft_target_table(codebooks, 0.2)
    torch.testing.assert_close(table[0], torch.full((SIZE, SIZE), 1 / SIZE))
    torch.testing.assert_close(table[1, :, 0], table[1, :, 1])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_temperature_is_refused(codebooks, temperature):
    with pytest.raises(ValueError, match="temperature: got"):
        soft_target_table(codebooks, temperature)


def test_scaled_codebooks_have_unit_variance_over_all_combinations_of_entries(
    codebooks,
):
    scaled = unit_variance_codebooks(codebooks)
    every = torch.cartesian_prod(*[torch.arange(SIZE)] * NUM_CODEBOOKS)
    decoded = Quantizer(scaled).decode(every)
    torch.testing.assert_close(decoded.var(0, correction=0).sum(), torch.ones(()))


def test_embeddings_that_do_not_vary_are_refused():
    with pytest.raises(ValueError, match="variance 0.0"):
        unit_variance_codebooks(torch.ones(2, 4, 3))
