"""Search for codebook indexes, compiled for CPUs; see `search`.

The steps and, up to float ties, the results are those of `torch_search`, one frame
after the other: the tables of a frame stay in the processor's cache, and each frame
stops as soon as it is done. Entries are named by row numbers of the Gram table (see
`gram.GramTables`).
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Optional

import numba
import numpy as np
import torch

from espnet_mvq.quantization.gram import GramTables

# Costs are finite (frames are checked), so minima and sums may be reordered.
_FAST_MATH = {"reassoc", "contract", "nnan", "nsz"}
_BLOCK = 32  # entries whose minimum is compared before the entries themselves


def _compile(function: Callable) -> Callable:
    """Compile a function at its first call; cache the result on disk if possible."""
    options = {"nogil": True, "fastmath": _FAST_MATH}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package nor the user's cache is writable
        return numba.njit(**options)(function)


def search(
    tables: GramTables,
    unary: torch.Tensor,
    initial: Optional[torch.Tensor],
    beam_size: int,
    refine_passes: int,
    pair_candidates: int,
    changes: torch.Tensor,
) -> torch.Tensor:
    """Find codebook indexes with as many threads as torch uses.

    Args and result are those of `torch_search.search`, all on the CPU.
    """
    num_frames, num_codebooks, codebook_size = unary.shape
    if initial is None:
        indexes = torch.empty(num_frames, num_codebooks, dtype=torch.int64)
    else:
        indexes = initial.clone()
    costs, result = unary.numpy(), indexes.numpy()  # they share the tensors' memory
    cross, changes = tables.cross.numpy(), changes.numpy()
    threads = max(1, min(torch.get_num_threads(), num_frames // 64))

    def run(part: slice) -> None:
        _search_frames(
            costs[part],
            cross,
            result[part],
            initial is None,
            min(beam_size, codebook_size**num_codebooks),
            refine_passes,
            min(pair_candidates, codebook_size - 1),
            changes,
            np.float32(tables.tolerance),
        )

    borders = [num_frames * t // threads for t in range(threads + 1)]
    parts = [slice(*pair) for pair in zip(borders, borders[1:])]
    if threads == 1:
        run(parts[0])
    else:
        # Not numba's threads: they do not survive the fork of a data loader.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, parts))
    return indexes


@_compile
def _search_frames(
    unary,  # float32 (B, N, K)
    cross,  # float32 (N * K, N * K)
    indexes,  # int64 (B, N): the result, and the start unless `by_beam`
    by_beam,
    beam_size,
    num_passes,
    pair_candidates,
    changes,  # int64 (R, P, 2): codebooks and entries of each perturbation
    tolerance,
):
    num_frames, num_codebooks, codebook_size = unary.shape
    costs = np.empty((num_codebooks, codebook_size), np.float32)
    trial_costs = np.empty_like(costs)
    trial = np.empty(num_codebooks, np.int64)
    sums = np.empty_like(costs)
    beams = np.empty((2, beam_size, num_codebooks), np.int64)
    beam_costs = np.empty((2, beam_size), np.float32)
    kept = np.empty((beam_size, 2), np.int64)
    best_costs = np.empty(max(1, pair_candidates), np.float32)
    best = np.empty((max(1, pair_candidates), 2), np.int64)
    for f in range(num_frames):
        now = indexes[f]
        if by_beam:
            _beam_search(unary[f], cross, beams, beam_costs, kept, sums, now, beam_size)
        if num_passes == 0:
            continue
        _conditional_costs(unary[f], cross, now, costs)
        _refine(
            cross, costs, now, num_passes, pair_candidates, tolerance, best_costs, best
        )
        if num_codebooks == 1:
            continue
        for r in range(changes.shape[0]):
            trial[:] = now
            trial_costs[:] = costs
            gain = np.float32(0)
            for p in range(changes.shape[1]):
                n, entry = changes[r, p]
                gain += _change(cross, trial_costs, trial, n, entry)
            gain += _refine(
                cross, trial_costs, trial, num_passes, 0, tolerance, best_costs, best
            )
            if gain < -tolerance:
                now[:] = trial
                costs[:] = trial_costs


@_compile
def _insert(value, first, second, values, pairs, count, limit):
    """Insert a pair into a list sorted by value of at most `limit`; return its length.

    The value must be small enough for the list.
    """
    if count < limit:
        count += 1
    place = count - 1
    while place > 0 and values[place - 1] > value:
        values[place] = values[place - 1]
        pairs[place, 0] = pairs[place - 1, 0]
        pairs[place, 1] = pairs[place - 1, 1]
        place -= 1
    values[place] = value
    pairs[place, 0] = first
    pairs[place, 1] = second
    return count


@_compile
def _insert_all(costs, base, parent, values, pairs, count, limit):
    """Insert (parent, k) for each of base + costs (K,) small enough for the list."""
    size = costs.shape[0]
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        lowest = costs[start]
        for k in range(start + 1, end):
            lowest = min(lowest, costs[k])
        if count == limit and base + lowest >= values[limit - 1]:
            continue
        for k in range(start, end):
            value = base + costs[k]
            if count < limit or value < values[count - 1]:
                count = _insert(value, parent, k, values, pairs, count, limit)
    return count


@_compile
def _beam_search(unary, cross, beams, beam_costs, kept, sums, indexes, beam_size):
    """Beam search of one frame; see `torch_search.beam_search`.

    Partial choices with a common beginning are neighbours ("tree order"), so the sums
    of common beginnings, sums[m] for codebooks 0 to m, are computed once.
    """
    num_codebooks, codebook_size = unary.shape
    limit = beam_size if num_codebooks > 1 else 1
    count = _insert_all(unary[0], np.float32(0), 0, beam_costs[0], kept, 0, limit)
    for w in range(count):
        beams[0, w, 0] = kept[w, 1]
    for n in range(1, num_codebooks):
        beam, values = beams[(n - 1) % 2], beam_costs[(n - 1) % 2]
        next_beam, next_values = beams[n % 2], beam_costs[n % 2]
        limit = beam_size if n < num_codebooks - 1 else 1
        next_count = 0
        for w in range(count):
            shared = 0
            while w > 0 and shared < n and beam[w, shared] == beam[w - 1, shared]:
                shared += 1
            for m in range(shared, n):
                row = cross[beam[w, m] + m * codebook_size]
                block = row[n * codebook_size : (n + 1) * codebook_size]
                before = unary[n] if m == 0 else sums[m - 1]
                for k in range(codebook_size):
                    sums[m, k] = before[k] + block[k]
            next_count = _insert_all(
                sums[n - 1], values[w], w, next_values, kept, next_count, limit
            )
        # Back into tree order; the old values are no longer needed and hold a copy.
        values[:next_count] = next_values[:next_count]
        place = 0
        for parent in range(count):
            for w in range(next_count):
                if kept[w, 0] == parent:
                    next_beam[place, :n] = beam[parent, :n]
                    next_beam[place, n] = kept[w, 1]
                    next_values[place] = values[w]
                    place += 1
        count = next_count
    indexes[:] = beams[(num_codebooks - 1) % 2, 0]


@_compile
def _conditional_costs(unary, cross, indexes, costs):
    """Fill costs (N, K) with the cost of each entry while other codebooks stay."""
    num_codebooks, codebook_size = unary.shape
    costs[:] = unary
    for m in range(num_codebooks):
        row = cross[indexes[m] + m * codebook_size]
        for n in range(num_codebooks):
            if n != m:
                block = row[n * codebook_size : (n + 1) * codebook_size]
                for k in range(codebook_size):
                    costs[n, k] += block[k]


@_compile
def _change(cross, costs, indexes, m, entry):
    """Give codebook m another entry; return the rise of the cost."""
    num_codebooks, codebook_size = costs.shape
    rise = costs[m, entry] - costs[m, indexes[m]]
    old = cross[indexes[m] + m * codebook_size]
    new = cross[entry + m * codebook_size]
    for n in range(num_codebooks):
        if n != m:
            for k in range(codebook_size):
                j = n * codebook_size + k
                costs[n, k] += new[j] - old[j]
    indexes[m] = entry
    return rise


@_compile
def _lowest(values):
    """Index of the lowest value."""
    lowest = values[0]
    for k in range(1, values.shape[0]):
        lowest = min(lowest, values[k])
    for k in range(values.shape[0]):
        if values[k] == lowest:
            return k
    return 0


@_compile
def _refine(
    cross, costs, indexes, num_passes, pair_candidates, tolerance, best_costs, best
):
    """Refine one frame (see `torch_search.refine`); return the rise of its cost."""
    num_codebooks = costs.shape[0]
    rise = np.float32(0)
    for _ in range(num_passes):
        changed = False
        for n in range(num_codebooks):
            k = _lowest(costs[n])
            if costs[n, k] < costs[n, indexes[n]] - tolerance:
                rise += _change(cross, costs, indexes, n, k)
                changed = True
        if not changed and pair_candidates > 0 and num_codebooks > 1:
            for n in range(num_codebooks):
                gain = _change_pair(
                    cross,
                    costs,
                    indexes,
                    n,
                    pair_candidates,
                    tolerance,
                    best_costs,
                    best,
                )
                if gain < 0:
                    rise += gain
                    changed = True
        if not changed:
            break
    return rise


@_compile
def _change_pair(
    cross, costs, indexes, n, pair_candidates, tolerance, best_costs, best
):
    """Change codebook n and the one that answers best, if the cost falls.

    Return the rise of the cost, 0 or negative.
    """
    num_codebooks, codebook_size = costs.shape
    now = indexes[n]
    # The current entry is no candidate: hide it while the list is made.
    cost_now = costs[n, now]
    costs[n, now] = np.inf
    count = _insert_all(
        costs[n], np.float32(0), n, best_costs, best, 0, pair_candidates
    )
    costs[n, now] = cost_now
    old = cross[now + n * codebook_size]
    rise = -tolerance
    first, second = -1, -1
    for c in range(count):
        entry = best[c, 1]
        new = cross[entry + n * codebook_size]
        alone = best_costs[c] - cost_now
        for m in range(num_codebooks):
            if m == n:
                continue
            start = m * codebook_size
            new_block, old_block = new[start : start + codebook_size], old[start:]
            cost = costs[m]
            lowest = cost[0] + (new_block[0] - old_block[0])
            for k in range(1, codebook_size):
                lowest = min(lowest, cost[k] + (new_block[k] - old_block[k]))
            k = indexes[m]
            pair_rise = alone + (lowest - (cost[k] + (new_block[k] - old_block[k])))
            if pair_rise < rise:
                rise = pair_rise
                first, second = entry, m
    if first < 0:
        return np.float32(0)
    _change(cross, costs, indexes, n, first)
    # Codebook n has its new entry now, so this is the answer chosen above.
    _change(cross, costs, indexes, second, _lowest(costs[second]))
    return rise
