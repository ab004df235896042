"""The code search that is fastest on the device at hand."""

from typing import Optional

import torch

from espnet_mvq.quantization.gram import GramTables
from espnet_mvq.quantization.search import SearchEffort, search

try:
    from espnet_mvq.quantization import compiled_search
except ImportError:  # numba is not made for every machine; torch does the same
    compiled_search = None


def find_indexes(
    tables: GramTables,
    unary: torch.Tensor,
    effort: SearchEffort,
    initial: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Find codebook indexes: compiled on a CPU, in torch elsewhere.

    Args:
        tables: Gram tables of the codebooks.
        unary: From `GramTables.unary_costs`, float, (B, N, K).
        effort: How hard to search.
        initial: Indexes to start from in place of a beam search, int64, (B, N).

    Returns:
        Codebook indexes, int64, (B, N).
    """
    if compiled_search is not None and unary.device.type == "cpu":
        return compiled_search.search(tables, unary, effort, initial)
    return search(tables, unary, effort, initial)


def search_bytes(num_codebooks: int, codebook_size: int, effort: SearchEffort) -> int:
    """Estimate what the tables of one frame take during a search, in bytes.

    The torch search holds costs of all entries, twice, and about three tables of a
    single codebook for each partial choice of the beam.
    """
    return 4 * codebook_size * (2 * num_codebooks + 3 * effort.beam_size)
