"""Choosing frames for training, and checks of frames and indexes."""

from typing import List

import torch

MAX_CODEBOOK_SIZE = 256  # an index is one byte


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


def check_codebook_size(codebook_size: int) -> None:
    """Refuse a codebook size whose indexes do not fit into one byte.

    Raises:
        ValueError: If the size is not between 2 and 256.
    """
    if not 2 <= codebook_size <= MAX_CODEBOOK_SIZE:
        raise ValueError(
            f"codebook_size: got {codebook_size}, expected 2 to {MAX_CODEBOOK_SIZE}: "
            "an index is stored in one byte"
        )


def check_frames(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Return embeddings (*, D) as (F, D), or refuse them.

    Raises:
        ValueError: If they are not float, or of another dimension.
    """
    if x.dim() < 1 or x.shape[-1] != dim or not x.is_floating_point():
        raise ValueError(
            f"encode: got {x.dtype} of shape {tuple(x.shape)}, expected float "
            f"(*, {dim}): this quantizer's dimension is {dim}"
        )
    return x.reshape(-1, dim)


def check_indexes(
    indexes: torch.Tensor, num_codebooks: int, codebook_size: int
) -> torch.Tensor:
    """Return codebook indexes (*, N) as int64 (F, N), or refuse them.

    Raises:
        ValueError: If they are not integers from 0 to K - 1, or not N of them.
    """
    if indexes.dim() < 1 or indexes.shape[-1] != num_codebooks:
        raise ValueError(
            f"indexes: got shape {tuple(indexes.shape)}, expected "
            f"(*, {num_codebooks}): one index for each codebook"
        )
    if indexes.is_floating_point() or indexes.dtype == torch.bool:
        raise ValueError(f"indexes: got {indexes.dtype}, expected an integer type")
    flat = indexes.reshape(-1, num_codebooks).long()
    if flat.numel() and not (0 <= flat.min() and flat.max() < codebook_size):
        raise ValueError(
            f"indexes: got values from {flat.min()} to {flat.max()}, expected 0 "
            f"to {codebook_size - 1}"
        )
    return flat


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
