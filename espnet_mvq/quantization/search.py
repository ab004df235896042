"""Search for codebook indexes, in plain torch: for GPUs, and the reference elsewhere.

A beam search over the codebooks gives first indexes. Refinement then changes one
codebook at a time, and two at a time where that does not help any more. Perturbation
starts refinement again from changed indexes and keeps what turns out better. No step
returns worse indexes than it was given.

`compiled_search` does the same, frame by frame, on CPUs.
"""

from dataclasses import dataclass
from typing import Optional

import torch

from espnet_mvq.quantization.frames import check_number
from espnet_mvq.quantization.gram import GramTables


@dataclass(frozen=True)
class SearchEffort:
    """How hard to search.

    Attributes:
        beam_size: Partial choices kept per frame; 1 is the greedy residual search.
        refine_passes: Most passes of refinement; a frame stops early when a pass
            changes nothing.
        pair_candidates: Entries of a codebook that are tried together with the best
            answer of another codebook; 0: only one codebook changes at a time.
        perturbation_rounds: Times that refinement starts again from changed indexes.
    """

    beam_size: int = 8
    refine_passes: int = 4
    pair_candidates: int = 1
    perturbation_rounds: int = 0

    def __post_init__(self):
        for name, least in (
            ("beam_size", 1),
            ("refine_passes", 0),
            ("pair_candidates", 0),
            ("perturbation_rounds", 0),
        ):
            check_number(name, getattr(self, name), least)


def default_pair_candidates(num_codebooks: int) -> int:
    """Return how many pair candidates are worth their time, see `SearchEffort`.

    Pairs take time in proportion to N^2: with 8 codebooks 1 % less error for a third
    of the speed, with 16 the same for half of it.
    """
    return 1 if num_codebooks <= 8 else 0


def search(
    tables: GramTables,
    unary: torch.Tensor,
    effort: SearchEffort,
    initial: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Find codebook indexes.

    Args:
        tables: Gram tables of the codebooks.
        unary: From `GramTables.unary_costs`, float, (B, N, K).
        effort: How hard to search.
        initial: Indexes to start from in place of a beam search, int64, (B, N).

    Returns:
        Codebook indexes, int64, (B, N).
    """
    if initial is None:
        indexes = beam_search(tables, unary, effort.beam_size)
    else:
        indexes = initial
    indexes = refine(
        tables, unary, indexes, effort.refine_passes, effort.pair_candidates
    )
    return perturb(tables, unary, indexes, effort)


def beam_search(
    tables: GramTables, unary: torch.Tensor, beam_size: int
) -> torch.Tensor:
    """Choose one codebook after the other, keeping the best partial choices.

    Args:
        tables: Gram tables of the codebooks.
        unary: From `GramTables.unary_costs`, float, (B, N, K).
        beam_size: Partial choices kept per frame; 1 is the greedy residual search.

    Returns:
        Codebook indexes, int64, (B, N).
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
    # With one codebook the beam is still there; its first element is the best.
    return indexes[:, 0]


def refine(
    tables: GramTables,
    unary: torch.Tensor,
    indexes: torch.Tensor,
    num_passes: int,
    pair_candidates: int = 0,
) -> torch.Tensor:
    """Improve indexes by changing one codebook, or two at once, others fixed.

    A pass tries one codebook after the other (ICM). Where that changes nothing, pairs
    are tried; a frame is left alone when a whole pass has changed nothing in it.

    Args:
        tables: Gram tables of the codebooks.
        unary: From `GramTables.unary_costs`, float, (B, N, K).
        indexes: Indexes to start from, int64, (B, N).
        num_passes: Most passes.
        pair_candidates: See `SearchEffort`.

    Returns:
        Codebook indexes, int64, (B, N); nowhere worse than the given ones.
    """
    indexes = indexes.clone()
    active = torch.arange(len(indexes), device=indexes.device)
    for _ in range(num_passes):
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
    """Give each codebook in turn its best entry; return which frames changed, (B,)."""
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
    """Give each codebook in turn another entry, if a second codebook's answer pays.

    Args:
        tables: Gram tables of the codebooks.
        unary: (B, N, K).
        indexes: int64, (B, N); changed in place.
        candidates: Entries tried per codebook.

    Returns:
        Which frames changed, bool, (B,).
    """
    num_codebooks, codebook_size = tables.num_codebooks, tables.codebook_size
    blocks = tables.cross.reshape(-1, codebook_size)
    everywhere = torch.arange(len(indexes), device=indexes.device)
    changed = torch.zeros_like(everywhere, dtype=torch.bool)
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
        moved = everywhere[gain < -tables.tolerance]
        indexes[moved] = choice[moved]
        changed[moved] = True
        for m in range(num_codebooks):
            costs[moved, m] = tables.conditional_costs(unary[moved], choice[moved], m)
    return changed


def perturb(
    tables: GramTables, unary: torch.Tensor, indexes: torch.Tensor, effort: SearchEffort
) -> torch.Tensor:
    """Change some codebooks at random, refine, keep what is better; again and again.

    Without refinement nothing is changed.

    All frames get the same random changes, so what is found for a frame does not
    depend on the frames around it.

    Args:
        tables: Gram tables of the codebooks.
        unary: From `GramTables.unary_costs`, float, (B, N, K).
        indexes: Indexes to start from, int64, (B, N).
        effort: Its `perturbation_rounds` and `refine_passes` count here.

    Returns:
        Codebook indexes, int64, (B, N); nowhere worse than the given ones.

    Source: the iterated local search of LSQ (Martinez et al. 2016).
    """
    rounds = effort.perturbation_rounds if effort.refine_passes > 0 else 0
    if rounds == 0 or tables.num_codebooks == 1:
        return indexes
    indexes = indexes.clone()
    cost = tables.total_cost(unary, indexes)
    for change in perturbations(rounds, *unary.shape[1:]):
        trial = indexes.clone()
        for n, entry in change.tolist():
            trial[:, n] = entry
        trial = refine(tables, unary, trial, effort.refine_passes)
        trial_cost = tables.total_cost(unary, trial)
        better = trial_cost < cost - tables.tolerance
        indexes[better] = trial[better]
        cost = torch.where(better, trial_cost, cost)
    return indexes


def perturbations(rounds: int, num_codebooks: int, codebook_size: int) -> torch.Tensor:
    """Draw which codebooks change, and to which entries, in each round.

    Half of the codebooks change: fewer are put back by refinement, more are as good as
    a start from nowhere (measured with 8 codebooks).

    Args:
        rounds: Rounds R.
        num_codebooks: Number of codebooks N.
        codebook_size: Entries K of each codebook.

    Returns:
        Pairs of codebook and entry, int64, (R, max(1, N // 2), 2); always the same.
    """
    generator = torch.Generator().manual_seed(0)
    count = max(1, num_codebooks // 2)
    drawn = []
    for _ in range(rounds):
        codebooks = torch.randperm(num_codebooks, generator=generator)[:count]
        entries = torch.randint(codebook_size, (count,), generator=generator)
        drawn.append(torch.stack([codebooks, entries], dim=1))
    return torch.stack(drawn) if drawn else torch.empty(0, count, 2, dtype=torch.int64)
