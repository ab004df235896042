"""The search of k2-fsa's multi_quantization, in the Gram domain.

A pass is a tournament: each codebook offers its best entries, then neighbouring
codebooks pair their offers, keep the best pairs, and so on until one index vector is
left. Stronger than changing one codebook at a time, but not monotone and slower. It is
here to give the indexes that library gives from the same codebooks.

Source: Guo et al. 2022 (arXiv:2211.00508); the steps follow the published description
of `Quantizer._refine_indexes`. Differs: inner products of changes come from the Gram
table, so no vector of the embedding dimension is formed.
"""

import torch

from espnet_mvq.quantization.gram import GramTables


def refine_by_tournament(
    tables: GramTables, unary: torch.Tensor, indexes: torch.Tensor, num_passes: int
) -> torch.Tensor:
    """Run passes of the tournament.

    Args:
        tables: Gram tables; the number of codebooks is a power of two.
        unary: From `GramTables.unary_costs`, float, (B, N, K).
        indexes: Indexes to start from, int64, (B, N).
        num_passes: Passes.

    Returns:
        Codebook indexes, int64, (B, N).
    """
    for _ in range(num_passes):
        indexes = _one_pass(tables, unary, indexes)
    return indexes


def tournament_bytes(num_codebooks: int) -> int:
    """Estimate what the tables of one frame take, in bytes.

    The last merge has 32 choices squared, each of N/2 by N/2 inner products.
    """
    return 12 * 32**2 * num_codebooks**2 // 4


def _one_pass(
    tables: GramTables, unary: torch.Tensor, indexes: torch.Tensor
) -> torch.Tensor:
    num_frames, num_codebooks, codebook_size = unary.shape
    current = indexes + tables.offsets  # rows of the entries chosen now, (B, N)
    cost = _single_changes(tables, unary, indexes)  # (B, groups, choices)
    # Rows each choice would put in place of the current ones: (B, groups, choices, L)
    rows = torch.arange(num_codebooks * codebook_size, device=unary.device)
    rows = rows.reshape(1, num_codebooks, codebook_size, 1)
    rows = rows.expand(num_frames, -1, -1, -1)
    length = 1
    while rows.shape[1] > 1 or rows.shape[2] > 1:
        kept = _num_kept(codebook_size, length)
        if rows.shape[2] > kept or rows.shape[1] == 1:
            kept = 1 if rows.shape[1] == 1 else kept
            cost, best = cost.sort(dim=2)
            cost, best = cost[:, :, :kept], best[:, :, :kept, None]
            rows = rows.gather(2, best.expand(-1, -1, -1, length))
            continue
        cost, rows = _merge(tables.cross, current, cost, rows)
        length *= 2
    return rows.reshape(num_frames, num_codebooks) - tables.offsets


def _single_changes(
    tables: GramTables, unary: torch.Tensor, indexes: torch.Tensor
) -> torch.Tensor:
    """Return how much each entry would change the cost, alone: (B, N, K)."""
    costs = []
    for n in range(tables.num_codebooks):
        cost = tables.conditional_costs(unary, indexes, n)
        costs.append(cost - cost.gather(1, indexes[:, n : n + 1]))
    return torch.stack(costs, dim=1)


def _num_kept(codebook_size: int, length: int) -> int:
    """Return how many choices a group of `length` codebooks keeps."""
    kept = 8 if codebook_size <= 16 else 16
    while length >= 4:
        kept, length = 2 * kept, length // 4
    return min(kept, 128)


def _merge(
    cross: torch.Tensor, current: torch.Tensor, cost: torch.Tensor, rows: torch.Tensor
):
    """Pair the choices of neighbouring groups: half the groups, choices squared.

    Args:
        cross: Doubled inner products of all entries, (N * K, N * K).
        current: Rows chosen now, int64, (B, N).
        cost: Cost change of each choice, (B, groups, choices).
        rows: Rows of each choice, int64, (B, groups, choices, L).

    Returns:
        Cost change and rows of the pairs.
    """
    num_frames, groups, choices, length = rows.shape
    now = current.reshape(num_frames, groups, 1, length)
    even, odd = rows[:, 0::2], rows[:, 1::2]
    even_now, odd_now = now[:, 0::2], now[:, 1::2]

    # 2 <change of a, change of b> summed over the codebooks of both groups
    def inner(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return cross[left[:, :, :, None, :, None], right[:, :, None, :, None, :]].sum(
            dim=(4, 5)
        )

    product = inner(even, odd) - inner(even, odd_now) - inner(even_now, odd)
    product = product + inner(even_now, odd_now)
    cost = cost[:, 0::2, :, None] + cost[:, 1::2, None, :] + product
    shape = (num_frames, groups // 2, choices, choices, length)
    pairs = torch.cat(
        [even[:, :, :, None].expand(shape), odd[:, :, None, :].expand(shape)], dim=4
    )
    flat = (num_frames, groups // 2, choices * choices)
    return cost.reshape(flat), pairs.reshape(*flat, 2 * length)
