"""Gram tables: inner products between codebook entries, the input of a search.

The squared error of approximating a frame x by a sum of codebook entries is

    ||x - sum_n c_n[i_n]||^2 = ||x||^2 + sum_n (||c_n[i_n]||^2 - 2 <x, c_n[i_n]>)
                                       + 2 sum_{n<m} <c_n[i_n], c_m[i_m]>

so a search needs one product of x with the codebooks and one table of inner products
between entries; nothing after that depends on the embedding dimension D. Everywhere in
this package the "cost" of indexes is the error without the constant ||x||^2.
"""

import torch
import torch.nn.functional as F

# A change must lower the cost by more than this fraction of the largest entry's norm:
# smaller changes are rounding errors, and a search that follows them may not end.
_TOLERANCE = 1e-6
_LARGEST_COST = 1e38  # a third of float32's largest number


class GramTables:
    """Inner products between all codebook entries, laid out for the searches.

    Attributes:
        cross: 2 <entry r, entry s>, float, (N * K, N * K); entry k of codebook n has
            row number n * K + k.
        norms: ||entry||^2, float, (N * K,).
        offsets: Row number of entry 0 of each codebook, int64, (N,).
        tolerance: Smallest change of a cost that counts.
        largest_value: Bound on the values of a frame; float32 holds the costs below it.

    Args:
        codebooks: Codebook entries, float32, (N, K, D).

    Raises:
        ValueError: If they are of another type.
    """

    def __init__(self, codebooks: torch.Tensor):
        if codebooks.dtype != torch.float32:
            raise ValueError(
                f"codebooks: got {codebooks.dtype}, expected torch.float32: leave the "
                "quantizer out when a model is converted, and load it again"
            )
        num_codebooks, codebook_size, dim = codebooks.shape
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.entries = codebooks.reshape(num_codebooks * codebook_size, dim)
        self.cross = (self.entries @ self.entries.T).mul_(2)
        self.norms = self.cross.diagonal() / 2
        self.offsets = torch.arange(num_codebooks, device=codebooks.device)
        self.offsets = self.offsets * codebook_size
        self.tolerance = _TOLERANCE * float(self.norms.max())
        largest_sum = float(self.entries.abs().sum(1).max())
        self.largest_value = _LARGEST_COST / max(1.0, 4 * num_codebooks * largest_sum)

    def unary_costs(self, x: torch.Tensor) -> torch.Tensor:
        """Cost of each entry on its own, ||c||^2 - 2 <x, c>: float, (B, N, K).

        The frames x, float, (B, D), are in the quantizer's normalised space.
        """
        costs = torch.addmm(self.norms, x, self.entries.T, alpha=-2)
        return costs.reshape(len(x), self.num_codebooks, self.codebook_size)

    def cross_costs(self, rows: torch.Tensor, n: int) -> torch.Tensor:
        """Interaction of codebook n's entries with entries already chosen.

        Args:
            rows: Row numbers of M chosen entries, int64, (B, M), M >= 1.
            n: The codebook, counted from 0.

        Returns:
            Costs, float, (B, K): the sum over the M rows of 2 <row, c_n[k]>.
        """
        blocks = self.cross.reshape(-1, self.codebook_size)
        return F.embedding_bag(rows * self.num_codebooks + n, blocks, mode="sum")

    def conditional_costs(
        self, unary: torch.Tensor, indexes: torch.Tensor, n: int
    ) -> torch.Tensor:
        """Cost of each entry of codebook n while the other codebooks stay.

        Args:
            unary: From `unary_costs`, float, (B, N, K).
            indexes: int64, (B, N).
            n: The codebook, counted from 0.

        Returns:
            Costs, float, (B, K); the cost of the other codebooks is left out.
        """
        if self.num_codebooks == 1:
            return unary[:, 0]
        rows = indexes + self.offsets
        others = torch.cat([rows[:, :n], rows[:, n + 1 :]], dim=1)
        return self.cross_costs(others, n).add_(unary[:, n])

    def total_cost(self, unary: torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
        """Cost of whole index vectors.

        Args as for `conditional_costs`; returns float, (B,).
        """
        cost = unary.gather(2, indexes.unsqueeze(2)).squeeze(2).sum(1)
        rows = indexes + self.offsets
        for n in range(1, self.num_codebooks):
            cross = self.cross_costs(rows[:, :n], n)
            cost = cost + cross.gather(1, indexes[:, n : n + 1]).squeeze(1)
        return cost
