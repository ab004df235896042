"""A padded tensor of a batch together with the lengths of its utterances."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Padded:
    """Padded tensor of a batch and the lengths of its utterances.

    Attributes:
        values: (B, T, ...); anything behind an utterance's length.
        lengths: int64, (B,).
    """

    values: torch.Tensor
    lengths: torch.Tensor
