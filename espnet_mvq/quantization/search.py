"""Search for codebook indexes: the settings and the one entry.

A beam search over the codebooks gives first indexes. Refinement then changes one
codebook at a time, and two at a time where that does not help any more. Perturbation
restarts refinement from randomly changed indexes and keeps improvements. No step
returns worse indexes than it was given.

`compiled_search` and `torch_search` implement the same steps, for CPUs and for all
other devices.
"""

from dataclasses import dataclass
from typing import Optional

import torch

from espnet_mvq.quantization import torch_search
from espnet_mvq.quantization.frames import check_number
from espnet_mvq.quantization.gram import GramTables

try:
    from espnet_mvq.quantization import compiled_search
except ImportError:  # numba does not support every machine
    compiled_search = None


@dataclass(frozen=True)
class SearchEffort:
    """Settings of the search; see `Quantizer.encode`.

    Raises:
        ValueError: If one is too small.
    """

    beam_size: int
    refine_passes: int
    pair_candidates: int
    perturbation_rounds: int

    def __post_init__(self):
        for name, value in vars(self).items():
            check_number(name, value, 1 if name == "beam_size" else 0)


def default_pair_candidates(num_codebooks: int) -> int:
    """Default of `SearchEffort.pair_candidates`.

    The time of pairs grows as N^2: with 8 codebooks they take 1 % off the error for a
    third of the speed, with 16 codebooks 1 % for half of the speed.
    """
    return 1 if num_codebooks <= 8 else 0


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
        effort: Settings of the search.
        initial: Indexes to start from instead of a beam search, int64, (B, N).

    Returns:
        Codebook indexes, int64, (B, N).
    """
    on_cpu = unary.device.type == "cpu"
    implementation = compiled_search if compiled_search and on_cpu else torch_search
    return implementation.search(
        tables,
        unary,
        initial,
        effort.beam_size,
        effort.refine_passes,
        effort.pair_candidates,
        perturbations(effort.perturbation_rounds, *unary.shape[1:]),
    )


def perturbations(rounds: int, num_codebooks: int, codebook_size: int) -> torch.Tensor:
    """Draw the codebooks that change in each round, and their new entries.

    Half of the codebooks change: refinement undoes smaller changes, larger ones are no
    better than a random start (measured with 8 codebooks). All frames get the same
    changes, so the indexes of a frame do not depend on the frames around it.

    Args:
        rounds: Rounds R.
        num_codebooks: Number of codebooks N.
        codebook_size: Entries K of each codebook.

    Returns:
        Pairs of codebook and entry, int64, (R, max(1, N // 2), 2); always the same.
    """
    generator = torch.Generator().manual_seed(0)
    count = max(1, num_codebooks // 2)
    changes = torch.empty(rounds, count, 2, dtype=torch.int64)
    for change in changes:
        change[:, 0] = torch.randperm(num_codebooks, generator=generator)[:count]
        change[:, 1] = torch.randint(codebook_size, (count,), generator=generator)
    return changes
