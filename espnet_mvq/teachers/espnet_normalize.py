"""Normalisation over utterances of which the model sees pieces."""

import contextlib
from typing import Iterator, Optional, Tuple

import torch


class UtteranceNormalizer(torch.nn.Module):
    """ESPnet's UtteranceMVN, with the statistics of more speech than it is given.

    Args:
        normalize: The UtteranceMVN, which says what is normalised.
    """

    def __init__(self, normalize: torch.nn.Module):
        super().__init__()
        self._normalize = normalize
        self._statistics: Optional[Tuple[torch.Tensor, torch.Tensor]] = None

    @contextlib.contextmanager
    def of_whole(self, features: torch.Tensor) -> Iterator[None]:
        """Normalise, in a block, by the statistics of one whole utterance.

        Args:
            features: Its features, float, (1, T, D).
        """
        conf = self._normalize
        mean = features.mean(1, keepdim=True)
        deviation = features.std(1, keepdim=True, unbiased=False).clamp(min=conf.eps)
        if not conf.norm_means:
            mean = torch.zeros_like(mean)
        if not conf.norm_vars:
            deviation = torch.ones_like(deviation)
        self._statistics = mean, deviation
        try:
            yield
        finally:
            self._statistics = None

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Normalise features (B, T, D) of lengths (B,)."""
        if self._statistics is None:
            return self._normalize(features, lengths)
        mean, deviation = self._statistics
        return (features - mean) / deviation, lengths
