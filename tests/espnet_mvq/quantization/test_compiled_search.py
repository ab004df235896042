"""The compiled search against the same search in torch."""

import pytest
import torch
from builders import run_python

from espnet_mvq.quantization import Quantizer, compiled_search, search, torch_search
from espnet_mvq.quantization.gram import GramTables
from espnet_mvq.quantization.search import perturbations

# beam size, refine passes, pair candidates, perturbation rounds
EFFORTS = [
    (1, 0, 0, 0),
    (5, 0, 0, 0),
    (300, 0, 0, 0),
    (1, 3, 0, 0),
    (4, 9, 2, 0),
    (2, 9, 50, 0),
    (4, 5, 1, 6),
    (4, 0, 0, 6),
]
SIZES = [(1, 20), (2, 33), (5, 7), (8, 64)]  # number of codebooks, codebook size


def random_tables(num_codebooks, codebook_size, num_frames=60, dim=12):
    """Return Gram tables of unequal codebooks, and costs of random frames."""
    codebooks = torch.randn(num_codebooks, codebook_size, dim)
    codebooks /= torch.arange(1, num_codebooks + 1).reshape(-1, 1, 1)
    tables = GramTables(codebooks)
    return tables, tables.unary_costs(torch.randn(num_frames, dim))


def run(implementation, tables, unary, effort, initial=None):
    changes = perturbations(effort[3], *unary.shape[1:])
    return implementation.search(tables, unary, initial, *effort[:3], changes)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("num_codebooks, codebook_size", SIZES)
def test_indexes_are_those_of_torch(num_codebooks, codebook_size, effort):
    tables, unary = random_tables(num_codebooks, codebook_size)
    expected = run(torch_search, tables, unary, effort)
    result = run(compiled_search, tables, unary, effort)
    assert result.dtype == torch.int64
    # Rounding may decide ties otherwise, and a tie may lead elsewhere.
    assert (result == expected).float().mean() > 0.99
    torch.testing.assert_close(
        tables.total_cost(unary, result).mean(),
        tables.total_cost(unary, expected).mean(),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("effort", EFFORTS)
def test_given_indexes_lead_where_torch_goes_and_are_left_alone(effort):
    tables, unary = random_tables(4, 16)
    start = torch.randint(0, 16, (len(unary), 4))
    kept = start.clone()
    expected = run(torch_search, tables, unary, effort, start)
    result = run(compiled_search, tables, unary, effort, start)
    assert torch.equal(start, kept)
    assert (result == expected).float().mean() > 0.99
    assert (
        tables.total_cost(unary, result) <= tables.total_cost(unary, start) + 1e-4
    ).all()


def test_result_does_not_depend_on_the_number_of_threads():
    tables, unary = random_tables(4, 32, num_frames=700)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(compiled_search, tables, unary, (8, 4, 1, 0)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_no_frames_give_no_indexes():
    tables, unary = random_tables(3, 8, num_frames=0)
    assert run(compiled_search, tables, unary, (8, 4, 1, 0)).shape == (0, 3)


def test_quantizer_works_without_the_compiled_search(monkeypatch):
    quantizer, x = Quantizer(torch.randn(4, 32, 8)), torch.randn(100, 8)
    expected = quantizer.encode(x)
    monkeypatch.setattr(search, "compiled_search", None)
    assert (quantizer.encode(x) == expected).float().mean() > 0.99


def test_quantizer_is_importable_without_numba():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch; from espnet_mvq.quantization import Quantizer\n"
        "print(Quantizer(torch.randn(2, 4, 8)).encode(torch.randn(3, 8)).shape)"
    )
    done = run_python("-c", code)
    assert "torch.Size([3, 2])" in done.stdout, done.stderr
