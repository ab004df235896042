"""Quantizers of k2-fsa's multi_quantization: first indexes from a linear classifier.

Their codebooks were trained together with the classifier and the search below, and
`encode` gives the indexes of that library. All other quantizers use the beam search of
`Quantizer`.

A pass of the search is a tournament: each codebook offers its best entries, then
neighbouring codebooks pair their offers and keep the best pairs, until one index vector
is left. It is stronger than changing one codebook at a time, but slower, and can make
indexes worse.

Source: Guo et al. 2022 (arXiv:2211.00508); the steps follow the published description
of `Quantizer._refine_indexes`. Differs: inner products of changes come from the Gram
table, so no vector of the embedding dimension is formed.
"""

from typing import Any, Dict, Optional

import torch

from espnet_mvq.quantization.gram import GramTables
from espnet_mvq.quantization.quantizer import Quantizer, float32_tensor
from espnet_mvq.quantization.search import SearchEffort


class ClassifierQuantizer(Quantizer):
    """Quantizer whose search starts from a linear classifier of indexes.

    Of the options of `encode` only `refine_passes` matters, unless `initial_indexes`
    are given: these are refined as in `Quantizer`.

    Args:
        codebooks: Entries, float, (N, K, D); N is a power of two.
        mean, scale, provenance: See `Quantizer`.
        classifier_weight: Weight of the classifier, float, (N * K, D).
        classifier_bias: Its bias, float, (N * K,).

    Raises:
        ValueError: If a shape or value is out of range, or float32 does not hold it.
    """

    def __init__(
        self,
        codebooks: torch.Tensor,
        mean: Optional[torch.Tensor] = None,
        scale: Optional[torch.Tensor] = None,
        provenance: Optional[Dict[str, Any]] = None,
        *,
        classifier_weight: Optional[torch.Tensor] = None,
        classifier_bias: Optional[torch.Tensor] = None,
    ):
        super().__init__(codebooks, mean, scale, provenance)
        if classifier_weight is None or classifier_bias is None:
            raise ValueError(
                "classifier: got one of weight and bias, expected both or none of them"
            )
        if self.num_codebooks & (self.num_codebooks - 1):
            raise ValueError(
                f"classifier: got {self.num_codebooks} codebooks, expected a power of "
                "two: the search that starts from a classifier has no others"
            )
        size = self.num_codebooks * self.codebook_size
        for name, value, shape in (
            ("classifier_weight", classifier_weight, (size, self.dim)),
            ("classifier_bias", classifier_bias, (size,)),
        ):
            self.register_buffer(name, float32_tensor(name, value, shape))

    def _search_bytes(self, effort: SearchEffort) -> int:
        # The last merge has 32 choices squared, each of N/2 by N/2 inner products.
        return super()._search_bytes(effort) + 12 * 32**2 * self.num_codebooks**2 // 4

    def _search(
        self, x: torch.Tensor, effort: SearchEffort, initial: Optional[torch.Tensor]
    ) -> torch.Tensor:
        if initial is not None:
            return super()._search(x, effort, initial)
        tables = self._gram_tables()
        logits = x @ self.classifier_weight.T + self.classifier_bias
        indexes = logits.reshape(-1, *self.codebooks.shape[:2]).argmax(dim=2)
        unary = tables.unary_costs(x)
        for _ in range(effort.refine_passes):
            indexes = tournament_pass(tables, unary, indexes)
        return indexes


def tournament_pass(
    tables: GramTables, unary: torch.Tensor, indexes: torch.Tensor
) -> torch.Tensor:
    """Run one pass of the tournament.

    Args:
        tables: Gram tables; the number of codebooks N is a power of two.
        unary: From `GramTables.unary_costs`, float, (B, N, K).
        indexes: Indexes to start from, int64, (B, N).

    Returns:
        Codebook indexes, int64, (B, N).
    """
    num_frames, num_codebooks, codebook_size = unary.shape
    current = indexes + tables.offsets  # rows of the entries chosen now, (B, N)
    cost = _single_changes(tables, unary, indexes)  # (B, groups, choices)
    # Rows that each choice puts in place of the current ones: (B, groups, choices, L)
    rows = torch.arange(num_codebooks * codebook_size, device=unary.device)
    rows = rows.reshape(1, num_codebooks, codebook_size, 1)
    rows = rows.expand(num_frames, -1, -1, -1)
    while True:
        groups, choices, length = rows.shape[1:]
        kept = _num_kept(codebook_size, length) if groups > 1 else 1
        if choices > kept:
            cost, best = cost.sort(dim=2)
            cost, best = cost[:, :, :kept], best[:, :, :kept, None]
            rows = rows.gather(2, best.expand(-1, -1, -1, length))
        if groups == 1:
            return rows.reshape(num_frames, num_codebooks) - tables.offsets
        cost, rows = _merge(tables.cross, current, cost, rows)


def _single_changes(
    tables: GramTables, unary: torch.Tensor, indexes: torch.Tensor
) -> torch.Tensor:
    """Change of the cost by each entry on its own, (B, N, K)."""
    costs = []
    for n in range(tables.num_codebooks):
        cost = tables.conditional_costs(unary, indexes, n)
        costs.append(cost - cost.gather(1, indexes[:, n : n + 1]))
    return torch.stack(costs, dim=1)


def _num_kept(codebook_size: int, length: int) -> int:
    """Number of choices that a group of `length` codebooks keeps."""
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
