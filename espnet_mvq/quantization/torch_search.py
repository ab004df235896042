"""Search for codebook indexes in plain torch; see `search`.

It serves GPUs, and is the reference of the compiled search.
"""

from typing import Optional

import torch

from espnet_mvq.quantization.gram import GramTables


def search(
    tables: GramTables,
    unary: torch.Tensor,
    initial: Optional[torch.Tensor],
    beam_size: int,
    refine_passes: int,
    pair_candidates: int,
    changes: torch.Tensor,
) -> torch.Tensor:
    """Find codebook indexes.

    Args:
        tables: Gram tables of the codebooks.
        unary: From `GramTables.unary_costs`, float, (B, N, K).
        initial: Indexes to start from instead of a beam search, int64, (B, N).
        beam_size: See `Quantizer.encode`.
        refine_passes: Likewise.
        pair_candidates: Likewise.
        changes: From `search.perturbations`, int64, (R, P, 2).

    Returns:
        Codebook indexes, int64, (B, N).
    """
    indexes = initial
    if indexes is None:
        indexes = beam_search(tables, unary, beam_size)
    indexes = refine(tables, unary, indexes, refine_passes, pair_candidates)
    return perturb(tables, unary, indexes, refine_passes, changes)


def beam_search(
    tables: GramTables, unary: torch.Tensor, beam_size: int
) -> torch.Tensor:
    """Choose one codebook after the other and keep the best partial choices.

    Args and result are those of `search`.
    """
    num_frames, num_codebooks, codebook_size = unary.shape
    width = min(beam_size, codebook_size)
    cost, first = unary[:, 0].topk(width, largest=False)
    indexes = first.unsqueeze(2)  # (B, width, 1)
    for n in range(1, num_codebooks):
        rows = (indexes + tables.offsets[:n]).reshape(-1, n)
        total = tables.cross_costs(rows, n).reshape(num_frames, width, codebook_size)
        total += unary[:, n].unsqueeze(1)
        total += cost.unsqueeze(2)
        last = n == num_codebooks - 1
        keep = 1 if last else min(beam_size, width * codebook_size)
        cost, best = total.reshape(num_frames, -1).topk(keep, largest=False)
        parent = torch.div(best, codebook_size, rounding_mode="floor")
        indexes = torch.cat(
            [
                indexes.gather(1, parent.unsqueeze(2).expand(-1, -1, n)),
                (best % codebook_size).unsqueeze(2),
            ],
            dim=2,
        )
        width = keep
    # With one codebook the beam was never cut; its first element is the best.
    return indexes[:, 0]


def refine(
    tables: GramTables,
    unary: torch.Tensor,
    indexes: torch.Tensor,
    refine_passes: int,
    pair_candidates: int = 0,
) -> torch.Tensor:
    """Improve indexes by changing one codebook, or two, while the others stay.

    A pass tries one codebook after the other (iterated conditional modes), then pairs
    in frames where that changed nothing. A frame is done when a pass changes nothing.
    Args and result are those of `search`; no frame gets worse.
    """
    indexes = indexes.clone()
    active = torch.arange(len(indexes), device=indexes.device)
    for _ in range(refine_passes):
        part, part_unary = indexes[active], unary[active]
        changed = _change_singles(tables, part_unary, part)
        if pair_candidates > 0 and tables.num_codebooks > 1:
            stuck = (~changed).nonzero().squeeze(1)
            stuck_part = part[stuck]
            changed[stuck] = _change_pairs(
                tables, part_unary[stuck], stuck_part, pair_candidates
            )
            part[stuck] = stuck_part
        indexes[active] = part
        active = active[changed]
        if len(active) == 0:
            break
    return indexes


def _change_singles(
    tables: GramTables, unary: torch.Tensor, indexes: torch.Tensor
) -> torch.Tensor:
    """Give each codebook in turn its best entry; return the changed frames, (B,)."""
    changed = torch.zeros(len(indexes), dtype=torch.bool, device=indexes.device)
    for n in range(tables.num_codebooks):
        cost = tables.conditional_costs(unary, indexes, n)
        lowest, best = cost.min(dim=1)
        old = indexes[:, n]
        now = cost.gather(1, old.unsqueeze(1)).squeeze(1)
        better = lowest < now - tables.tolerance
        indexes[:, n] = torch.where(better, best, old)
        changed |= better
    return changed


def _change_pairs(
    tables: GramTables, unary: torch.Tensor, indexes: torch.Tensor, candidates: int
) -> torch.Tensor:
    """Change pairs of codebooks in place: each in turn with the one that answers best.

    Return the mask of changed frames, bool, (B,).
    """
    num_codebooks, codebook_size = tables.num_codebooks, tables.codebook_size
    blocks = tables.cross.reshape(-1, codebook_size)
    all_rows = torch.arange(len(indexes), device=indexes.device)
    changed = torch.zeros_like(all_rows, dtype=torch.bool)
    costs = torch.stack(
        [tables.conditional_costs(unary, indexes, n) for n in range(num_codebooks)], 1
    )
    for n in range(num_codebooks):
        old = indexes[:, n]
        alone = costs[:, n] - costs[:, n].gather(1, old.unsqueeze(1))
        alone.scatter_(1, old.unsqueeze(1), float("inf"))
        alone, entries = alone.topk(min(candidates, codebook_size - 1), largest=False)
        gain = torch.full_like(alone[:, 0], -tables.tolerance)
        choice = indexes.clone()
        for c in range(entries.shape[1]):
            new = entries[:, c]
            for m in range(num_codebooks):
                if m == n:
                    continue
                answer = costs[:, m].clone()
                answer += blocks[(new + n * codebook_size) * num_codebooks + m]
                answer -= blocks[(old + n * codebook_size) * num_codebooks + m]
                lowest, best = answer.min(dim=1)
                now = answer.gather(1, indexes[:, m : m + 1]).squeeze(1)
                total = alone[:, c] + lowest - now
                better = total < gain
                gain = torch.where(better, total, gain)
                pair = indexes.clone()
                pair[:, n], pair[:, m] = new, best
                choice = torch.where(better.unsqueeze(1), pair, choice)
        moved = all_rows[gain < -tables.tolerance]
        indexes[moved] = choice[moved]
        changed[moved] = True
        for m in range(num_codebooks):
            costs[moved, m] = tables.conditional_costs(unary[moved], choice[moved], m)
    return changed


def perturb(
    tables: GramTables,
    unary: torch.Tensor,
    indexes: torch.Tensor,
    refine_passes: int,
    changes: torch.Tensor,
) -> torch.Tensor:
    """Change some codebooks at random, refine, and keep improvements; repeatedly.

    Without refinement nothing is changed. Args and result are those of `search`; no
    frame gets worse.

    Source: the iterated local search of LSQ (Martinez et al. 2016).
    """
    if len(changes) == 0 or refine_passes == 0 or tables.num_codebooks == 1:
        return indexes
    indexes = indexes.clone()
    cost = tables.total_cost(unary, indexes)
    for change in changes.tolist():
        trial = indexes.clone()
        for n, entry in change:
            trial[:, n] = entry
        trial = refine(tables, unary, trial, refine_passes)
        trial_cost = tables.total_cost(unary, trial)
        better = trial_cost < cost - tables.tolerance
        indexes[better] = trial[better]
        cost = torch.where(better, trial_cost, cost)
    return indexes
