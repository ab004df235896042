"""Code search against exhaustive search and against plain loops."""

import itertools

import pytest
import torch

from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.gram import GramTables
from espnet_mvq.quantization.search import perturbations
from espnet_mvq.quantization.torch_search import perturb, refine

SIZES = [(1, 4), (2, 4), (3, 3), (4, 2)]  # number of codebooks, codebook size


def random_case(num_codebooks, codebook_size, num_frames=20, dim=8):
    codebooks = torch.randn(num_codebooks, codebook_size, dim)
    return codebooks, torch.randn(num_frames, dim)


def squared_error(codebooks, x, indexes):
    """Return ||x - sum of the chosen entries||^2 in double precision, (F,)."""
    total = torch.zeros_like(x, dtype=torch.float64)
    for frame, row in enumerate(indexes.tolist()):
        for n, index in enumerate(row):
            total[frame] += codebooks[n, index]
    return (x - total).square().sum(1)


def exhaustive_search(codebooks, x):
    """Try all K^N index vectors on each frame."""
    num_codebooks, codebook_size, _ = codebooks.shape
    every = itertools.product(range(codebook_size), repeat=num_codebooks)
    every = torch.tensor(list(every))
    best = []
    for frame in x:
        errors = squared_error(codebooks, frame.expand(len(every), -1), every)
        best.append(every[errors.argmin()])
    return torch.stack(best)


def greedy_search(codebooks, x):
    """Take from each codebook in turn the entry nearest to what is left over."""
    indexes = []
    residual = x.clone()
    for entries in codebooks:
        distance = torch.cdist(residual, entries)
        indexes.append(distance.argmin(1))
        residual = residual - entries[indexes[-1]]
    return torch.stack(indexes, dim=1)


@pytest.mark.parametrize("num_codebooks, codebook_size", SIZES)
def test_wide_beam_finds_the_best_of_all_indexes(num_codebooks, codebook_size):
    codebooks, x = random_case(num_codebooks, codebook_size)
    quantizer = Quantizer(codebooks)
    beam_size = codebook_size**num_codebooks
    result = quantizer.encode(x, beam_size=beam_size, refine_passes=0)
    assert torch.equal(result.long(), exhaustive_search(codebooks, x))


@pytest.mark.parametrize("num_codebooks, codebook_size", SIZES)
def test_cost_is_the_error_but_for_the_norm(num_codebooks, codebook_size):
    codebooks, x = random_case(num_codebooks, codebook_size)
    indexes = torch.randint(0, codebook_size, (len(x), num_codebooks))
    tables = GramTables(codebooks)
    cost = tables.total_cost(tables.unary_costs(x), indexes)
    error = cost + x.square().sum(1)
    torch.testing.assert_close(
        error.double(), squared_error(codebooks, x, indexes), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("num_codebooks, codebook_size", SIZES)
def test_beam_of_one_is_residual_greedy(num_codebooks, codebook_size):
    codebooks, x = random_case(num_codebooks, codebook_size)
    result = Quantizer(codebooks).encode(x, beam_size=1, refine_passes=0)
    assert torch.equal(result.long(), greedy_search(codebooks, x))


def test_wider_beam_is_better_on_average():
    codebooks, x = random_case(4, 8, num_frames=200)
    results = [Quantizer(codebooks).encode(x, beam_size=size) for size in (1, 4, 16)]
    errors = [squared_error(codebooks, x, indexes).mean() for indexes in results]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("num_codebooks, codebook_size", SIZES)
def test_refinement_never_makes_a_frame_worse(num_codebooks, codebook_size):
    codebooks, x = random_case(num_codebooks, codebook_size, num_frames=50)
    initial = torch.randint(0, codebook_size, (50, num_codebooks))
    before = squared_error(codebooks, x, initial)
    for passes in (1, 2, 5):
        refined = Quantizer(codebooks).encode(
            x, refine_passes=passes, initial_indexes=initial
        )
        after = squared_error(codebooks, x, refined)
        assert (after <= before + 1e-5).all()
        assert after.sum() < before.sum()


def test_no_refinement_passes_keep_the_initial_indexes():
    codebooks, x = random_case(3, 4)
    initial = torch.randint(0, 4, (len(x), 3))
    kept = Quantizer(codebooks).encode(x, refine_passes=0, initial_indexes=initial)
    assert torch.equal(kept.long(), initial)


@pytest.mark.parametrize("pair_candidates", [0, 3])
def test_refinement_ends_where_no_change_helps(pair_candidates):
    codebooks, x = random_case(3, 4)
    quantizer = Quantizer(codebooks)
    initial = torch.randint(0, 4, (len(x), 3))
    options = {"refine_passes": 100, "pair_candidates": pair_candidates}
    fixed = quantizer.encode(x, initial_indexes=initial, **options)
    again = quantizer.encode(x, initial_indexes=fixed, **options)
    assert torch.equal(fixed, again)
    error = squared_error(codebooks, x, fixed)
    for n, index in itertools.product(range(3), range(4)):
        changed = fixed.clone()
        changed[:, n] = index
        # With all 3 other entries as candidates no pair of changes helps either
        for m, other in itertools.product(range(3), range(4)):
            if m != n and pair_candidates:
                changed[:, m] = other
            assert (squared_error(codebooks, x, changed) >= error - 1e-5).all()
            changed[:, m] = index if m == n else fixed[:, m]


def test_pairs_are_changed_where_no_single_change_helps():
    """A pair of changes that only pays together."""
    codebooks = torch.tensor([[[0.0], [5.0]], [[0.0], [-4.9]]])
    tables, x = GramTables(codebooks), torch.tensor([[0.1], [0.0]])
    unary = tables.unary_costs(x)
    start = torch.zeros(2, 2, dtype=torch.long)
    assert refine(tables, unary, start, 5).tolist() == [[0, 0], [0, 0]]
    assert refine(tables, unary, start, 5, 1).tolist() == [[1, 1], [0, 0]]


def test_perturbation_finds_better_indexes_and_loses_nothing():
    codebooks, x = random_case(4, 16, num_frames=300)
    tables = GramTables(codebooks)
    unary = tables.unary_costs(x)
    start = refine(tables, unary, torch.zeros(300, 4, dtype=torch.long), 9)
    result = perturb(tables, unary, start, 4, perturbations(8, 4, 16))
    before = squared_error(codebooks, x, start)
    after = squared_error(codebooks, x, result)
    assert (after <= before + 1e-5).all() and after.sum() < 0.98 * before.sum()


def test_perturbations_do_not_depend_on_the_other_frames():
    codebooks, x = random_case(4, 16, num_frames=30)
    quantizer = Quantizer(codebooks)
    together = quantizer.encode(x, perturbation_rounds=4)
    alone = [quantizer.encode(frame, perturbation_rounds=4) for frame in x]
    assert torch.equal(together, torch.stack(alone))


def test_refinement_changes_nothing_where_entries_are_equally_good():
    codebooks, x = random_case(2, 4)
    quantizer = Quantizer(torch.cat([codebooks, codebooks], dim=1))
    fixed = Quantizer(codebooks).encode(x, refine_passes=100)
    result = quantizer.encode(x, refine_passes=1, initial_indexes=fixed + 4)
    assert torch.equal(result, fixed + 4)


def test_refinement_leaves_its_input_alone():
    codebooks, x = random_case(2, 4)
    tables = GramTables(codebooks)
    initial = torch.zeros(len(x), 2, dtype=torch.int64)
    refine(tables, tables.unary_costs(x), initial, 3)
    assert initial.sum() == 0
