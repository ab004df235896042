"""Search for codebook indexes in the Gram domain.

The squared error of approximating a frame x by a sum of codebook entries is

    ||x - sum_n c_n[i_n]||^2 = ||x||^2 + sum_n (||c_n[i_n]||^2 - 2 <x, c_n[i_n]>)
                                       + 2 sum_{n<m} <c_n[i_n], c_m[i_m]>

so one product with the codebooks and one table of inner products between entries
are all a search needs: after that nothing depends on the embedding dimension D.
In this module "cost" is the error without the constant ||x||^2.
"""

import torch
import torch.nn.functional as F


class GramTables:
    """Inner products between all codebook entries, laid out for the searches.

    Args:
        codebooks: Codebook entries, float, (N, K, D).
    """

    def __init__(self, codebooks: torch.Tensor):
        num_codebooks, codebook_size, dim = codebooks.shape
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.entries = codebooks.reshape(num_codebooks * codebook_size, dim)
        gram = self.entries @ self.entries.T
        self.norms = gram.diagonal().reshape(num_codebooks, codebook_size).clone()
        # blocks[n][r] holds the inner products of entry r (of any codebook) with the
        # K entries of codebook n: one contiguous row per look-up.
        self.blocks = (
            gram.reshape(-1, num_codebooks, codebook_size).transpose(0, 1).contiguous()
        )
        # Row number of entry 0 of each codebook in `entries` and `blocks[n]`.
        self.offsets = torch.arange(num_codebooks, device=codebooks.device)
        self.offsets = self.offsets * codebook_size

    def unary_costs(self, x: torch.Tensor) -> torch.Tensor:
        """Cost of each entry on its own.

        Args:
            x: Frames in the quantizer's space, float, (B, D).

        Returns:
            Costs, float, (B, N, K): ||c||^2 - 2 <x, c>.
        """
        products = x @ self.entries.T
        shape = (len(x), self.num_codebooks, self.codebook_size)
        return torch.sub(self.norms, products.reshape(shape), alpha=2)

    def cross_costs(self, indexes: torch.Tensor, n: int) -> torch.Tensor:
        """Interaction of codebook n's entries with the entries already chosen.

        Args:
            indexes: Row numbers in `entries`, int64, (B, M), M >= 1.
            n: The codebook, counted from 0.

        Returns:
            Costs, float, (B, K): 2 * sum over the M rows of <row, c_n[k]>.
        """
        return F.embedding_bag(indexes, self.blocks[n], mode="sum").mul_(2)

    def gram(self) -> torch.Tensor:
        """Return the inner products of all entries, float, (N * K, N * K)."""
        size = self.num_codebooks * self.codebook_size
        return self.blocks.transpose(0, 1).reshape(size, size)

    def total_cost(self, unary: torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
        """Cost of whole index vectors.

        Args:
            unary: From `unary_costs`, float, (B, N, K).
            indexes: int64, (B, N).

        Returns:
            Costs, float, (B,).
        """
        cost = unary.gather(2, indexes.unsqueeze(2)).squeeze(2).sum(1)
        rows = indexes + self.offsets
        for n in range(1, self.num_codebooks):
            cross = self.cross_costs(rows[:, :n], n)
            cost = cost + cross.gather(1, indexes[:, n : n + 1]).squeeze(1)
        return cost


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
    tables: GramTables, unary: torch.Tensor, indexes: torch.Tensor, num_passes: int
) -> torch.Tensor:
    """Improve indexes by changing one codebook at a time (ICM), others fixed.

    An index changes only where that lowers the cost, so no frame ever gets worse; a
    frame is left alone as soon as a whole pass has changed nothing in it.

    Args:
        tables: Gram tables of the codebooks.
        unary: From `GramTables.unary_costs`, float, (B, N, K).
        indexes: Indexes to start from, int64, (B, N).
        num_passes: Most passes over the codebooks.

    Returns:
        Codebook indexes, int64, (B, N).
    """
    num_codebooks = tables.num_codebooks
    if num_codebooks == 1:
        # One codebook: the best entry is known without any search.
        return unary[:, 0].argmin(dim=1, keepdim=True) if num_passes else indexes
    indexes = indexes.clone()
    active = torch.arange(len(indexes), device=indexes.device)
    part, part_unary = indexes.clone(), unary
    for _ in range(num_passes):
        rows = part + tables.offsets
        changed = torch.zeros(len(part), dtype=torch.bool, device=part.device)
        for n in range(num_codebooks):
            others = torch.cat([rows[:, :n], rows[:, n + 1 :]], dim=1)
            cost = tables.cross_costs(others, n).add_(part_unary[:, n])
            lowest, best = cost.min(dim=1)
            old = part[:, n]
            better = lowest < cost.gather(1, old.unsqueeze(1)).squeeze(1)
            part[:, n] = torch.where(better, best, old)
            rows[:, n] = part[:, n] + tables.offsets[n]
            changed |= better
        indexes[active] = part
        active = active[changed]
        if len(active) == 0:
            break
        part, part_unary = part[changed], part_unary[changed]
    return indexes
