"""Choosing and checking the frames a quantizer is trained on."""

from typing import List

import torch


class Reservoir:
    """Keeps a uniform random sample of frames from a stream of unknown length.

    Every frame of the stream has the same chance to be kept: each draws a random
    key, and those with the smallest keys stay.

    Args:
        max_frames: Frames kept.
        seed: Seed of the keys.
    """

    def __init__(self, max_frames: int, seed: int = 0):
        self.max_frames = max_frames
        self._generator = torch.Generator().manual_seed(seed)
        self._frames: List[torch.Tensor] = []
        self._keys: List[torch.Tensor] = []
        self._held = 0
        self._threshold = float("inf")
        self.num_seen = 0

    def add(self, frames: torch.Tensor) -> None:
        """Offer a chunk of frames.

        Args:
            frames: Float, (F, D).
        """
        keys = torch.rand(len(frames), generator=self._generator, dtype=torch.float64)
        self.num_seen += len(frames)
        chosen = keys < self._threshold
        self._frames.append(frames[chosen.to(frames.device)].cpu())
        self._keys.append(keys[chosen])
        self._held += int(chosen.sum())
        if self._held > 2 * self.max_frames:
            self._shrink()

    def frames(self) -> torch.Tensor:
        """Return the sample in the order of the stream, (at most max_frames, D)."""
        if not self._frames:
            raise ValueError("got no frames at all, expected at least one chunk")
        self._shrink()
        return self._frames[0]

    def _shrink(self) -> None:
        """Drop the frames with the largest keys."""
        frames, keys = torch.cat(self._frames), torch.cat(self._keys)
        if len(keys) > self.max_frames:
            kept = keys.argsort()[: self.max_frames].sort().values
            frames, keys = frames[kept], keys[kept]
            self._threshold = float(keys.max())
        self._frames, self._keys, self._held = [frames], [keys], len(keys)


def check_training_frames(x: torch.Tensor, codebook_size: int) -> None:
    """Refuse frames that no quantizer can be trained on.

    Args:
        x: Training frames, finite, (F, D).
        codebook_size: Entries of each codebook.

    Raises:
        ValueError: If there are fewer frames than entries, or all are equal.
    """
    if len(x) < codebook_size:
        raise ValueError(
            f"got {len(x)} training frames, expected at least the codebook size "
            f"{codebook_size}: use more audio or smaller codebooks"
        )
    if bool((x == x[0]).all()):
        raise ValueError(
            f"all {len(x)} training frames are equal, expected frames that vary: check "
            "the teacher, its layer and the audio"
        )
