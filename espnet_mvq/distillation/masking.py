"""Random masks of feature frames and channels, for masked prediction."""

import math
from dataclasses import dataclass
from typing import Any, Mapping

import torch

from espnet_mvq.options import check_options, check_ranges

_INF = math.inf
_RANGES = {
    "prob": (0, 1),
    "length": (1, _INF),
    "min_spans": (0, _INF),
    "channel_prob": (0, 1),
    "channel_length": (1, _INF),
    "alpha": (0, 1),
}


@dataclass(frozen=True)
class Mask:
    """Masks of the features that a student reads, and their part in the loss.

    Attributes:
        prob: Share of the frames of an utterance that its spans would cover if they
            did not overlap.
        length: Feature frames of a span.
        min_spans: Smallest number of spans of an utterance.
        channel_prob: As `prob`, of the channels.
        channel_length: Channels of a span.
        alpha: Share of masked student frames in the loss: these have the weight
            2 alpha, all others 2 (1 - alpha). 0.5: all frames alike; 1: masked ones
            alone; 0: the others alone.

    Raises:
        ValueError: If a value is out of range.

    Source: probabilities and lengths are those of SPEAR (Yang et al. 2025,
        arXiv:2510.25955), which has the loss on all frames; alpha is that of HuBERT
        (Hsu et al. 2021, arXiv:2106.07447, section II-B), times 2.
    """

    prob: float = 0.65
    length: int = 10
    min_spans: int = 2
    channel_prob: float = 0.25
    channel_length: int = 20
    alpha: float = 0.5

    @classmethod
    def from_dict(cls, conf: Mapping[str, Any]) -> "Mask":
        """Build from yaml.

        Args:
            conf: Any of the attributes.

        Raises:
            ValueError: If an option is unknown, of another type or out of range.
        """
        check_options("mvq_conf mask", cls, conf)
        return cls(**conf)

    def __post_init__(self) -> None:
        check_ranges("mvq_conf mask", self, _RANGES)

    def frames(self, lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Draw masked frames of a batch.

        Args:
            lengths: Feature frames of each utterance, int64, (B,).
            num_frames: Frames T of the padded batch.

        Returns:
            Mask of the frames, bool, (B, T), on the CPU. Utterances shorter than a
            span have no masked frame.

        Raises:
            ValueError: If all utterances are shorter than a span.
        """
        longest = int(lengths.max())
        if longest < self.length and self.prob > 0:
            raise ValueError(
                f"mvq_conf mask length: got spans of {self.length} frames, but the "
                f"longest utterance of a batch has {longest}; give shorter spans, or "
                "leave out such short speech"
            )
        sizes = lengths.tolist()
        return _draw_spans(sizes, num_frames, self.prob, self.length, self.min_spans)

    def channels(self, batch_size: int, num_channels: int) -> torch.Tensor:
        """Draw masked channels of each utterance: bool, (B, F), on the CPU."""
        length = min(self.channel_length, num_channels)
        sizes = [num_channels] * batch_size
        return _draw_spans(sizes, num_channels, self.channel_prob, length, 0)

    def weights(self, masked: torch.Tensor) -> torch.Tensor:
        """Return the weight of each student frame in the loss.

        Args:
            masked: Mask of student frames, bool, (B, T).

        Returns:
            Float32, (B, T).
        """
        return torch.where(masked, 2 * self.alpha, 2 * (1 - self.alpha)).float()


def _draw_spans(
    sizes: list, width: int, prob: float, length: int, min_spans: int
) -> torch.Tensor:
    """Draw spans that may overlap, with different starts.

    Args:
        sizes: Size of each row.
        width: Size of the padded rows.
        prob: Share of a row that spans would cover without overlaps.
        length: Size of a span.
        min_spans: Smallest number of spans of a row.

    Returns:
        Mask, bool, (rows, width).
    """
    mask = torch.zeros(len(sizes), width, dtype=torch.bool)
    if prob == 0:
        return mask
    inside = torch.arange(length)
    for row, size in zip(mask, sizes):
        # Rounded at random, so that the share holds on average for short rows, too
        count = max(min_spans, int(prob * size / length + float(torch.rand(()))))
        starts = torch.randperm(max(0, size - length + 1))[:count]
        row[(starts.unsqueeze(1) + inside).flatten()] = True
    return mask
