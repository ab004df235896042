"""Frames for training, and checks of frames, indexes and numbers."""

import math
import numbers
import os
import warnings
from typing import Any, Iterable, List, Union

import numpy as np
import torch

Frames = Union[torch.Tensor, np.ndarray, Iterable[torch.Tensor]]

MAX_CODEBOOK_SIZE = 256  # an index is one byte
# Memory of a pair of entries in a refit: its count in float32 and twice in float64
_PAIR_BYTES = 20


class Reservoir:
    """Keeps a uniform random sample of frames from a stream of unknown length.

    Each frame draws a random key, and the frames with the smallest keys are kept.

    Args:
        max_frames: Size of the sample.
        seed: Seed of the keys.

    Raises:
        ValueError: If max_frames is below 1 or torch does not take the seed.
    """

    def __init__(self, max_frames: int, seed: int = 0):
        check_number("max_frames", max_frames, 1)
        check_seed(seed)
        self.max_frames = max_frames
        self._generator = torch.Generator().manual_seed(seed)
        self._frames: List[torch.Tensor] = []
        self._keys: List[torch.Tensor] = []
        self._held = 0
        self._threshold = float("inf")
        self.num_seen = 0

    def add(self, frames: torch.Tensor) -> None:
        """Offer a chunk of frames, float, (F, D)."""
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


def gather_frames(
    name: str, frames: Frames, dim: int, max_frames: int, seed: int
) -> torch.Tensor:
    """Return frames as one tensor on the CPU, a random sample if there are too many.

    Args:
        name: Name of the frames in errors.
        frames: Float, (F, D): a tensor, an array or memory map, or an iterator of such
            chunks.
        dim: Dimension D.
        max_frames: Maximum number of frames.
        seed: Seed of the sample.

    Returns:
        Float32, (at most max_frames, D).

    Raises:
        ValueError: If there are none, or they have another shape or hold NaN or
            infinity.
    """

    def check_shape(frames: torch.Tensor) -> torch.Tensor:
        if frames.dim() != 2 or frames.shape[1] != dim:
            raise ValueError(
                f"{name}: got shape {tuple(frames.shape)}, expected (number of frames, "
                f"{dim})"
            )
        return frames

    if isinstance(frames, (np.ndarray, torch.Tensor)):
        if frames.ndim == 2 and len(frames) > max_frames:
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randperm(len(frames), generator=generator)[:max_frames]
            # Reads only these rows of a memory map
            frames = frames[rows.sort().values.numpy()]
        if isinstance(frames, np.ndarray):
            frames = torch.from_numpy(np.array(frames, dtype=np.float32))
    else:
        reservoir = Reservoir(max_frames, seed)
        for chunk in frames:
            reservoir.add(check_shape(as_tensor(name, chunk)))
        frames = reservoir.frames()
    # Checked as float32, which does not hold all values of float64
    frames = check_shape(frames).detach().float().cpu()
    bad_rows = (~frames.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad_rows):
        raise ValueError(
            f"{name}: got NaN or infinity in {len(bad_rows)} of {len(frames)} frames, "
            f"first in frame {int(bad_rows[0])} (counted from 0); expected finite "
            "embeddings: check the teacher's precision and the audio"
        )
    return frames


def check_number(name: str, value: Any, least: int) -> None:
    """Check a setting that is a whole number.

    Raises:
        ValueError: If it is not, or is too small; names the setting.
    """
    if not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(
            f"{name}: got {value!r}, expected at least {least}, a whole number"
        )


def check_seed(seed: Any) -> None:
    """Check a seed.

    Raises:
        ValueError: If it is not a whole number from -2^63 to 2^64 - 1.
    """
    if not isinstance(seed, numbers.Integral) or not -(2**63) <= seed < 2**64:
        raise ValueError(
            f"seed: got {seed!r}, expected a whole number from -2^63 to 2^64 - 1"
        )


def check_codebook_size(codebook_size: int) -> None:
    """Check that the indexes of a codebook fit into one byte.

    Raises:
        ValueError: If the size is not between 2 and 256.
    """
    check_number("codebook_size", codebook_size, 0)
    if not 2 <= codebook_size <= MAX_CODEBOOK_SIZE:
        raise ValueError(
            f"codebook_size: got {codebook_size}, expected 2 to {MAX_CODEBOOK_SIZE}: "
            "an index is stored in one byte"
        )


def check_memory(num_codebooks: int, codebook_size: int) -> None:
    """Check that the tables of a training fit into the memory of this machine.

    Raises:
        ValueError: If they do not.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = _PAIR_BYTES * (num_codebooks * codebook_size) ** 2
    if needed > memory:
        most = math.isqrt(memory // _PAIR_BYTES) // codebook_size
        raise ValueError(
            f"num_codebooks: got {num_codebooks} of {codebook_size} entries, expected "
            f"at most {most} here: the tables of a training take {needed / 1e9:.0f} GB"
        )


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """Return a tensor, or a numpy array as one that shares its memory.

    Raises:
        ValueError: If it is neither, or an array that torch does not support.
    """
    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"{name}: got {type(value).__name__}, expected a torch tensor or a numpy "
            "array"
        )
    try:
        with warnings.catch_warnings():
            # The warning that a memory map is read only: nothing writes to it.
            warnings.simplefilter("ignore", UserWarning)
            return torch.as_tensor(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: got a numpy array of {value.dtype} that torch does not take "
            f"({str(error).rstrip('.')}); expected a copy of it in another type or "
            "layout: numpy.array(x, dtype='float32')"
        ) from error


def check_frames(x: Any, dim: int) -> torch.Tensor:
    """Return embeddings (*, D), a tensor or array, as a tensor.

    Raises:
        ValueError: If they are not float, or of another dimension.
    """
    x = as_tensor("encode", x)
    if x.dim() < 1 or x.shape[-1] != dim or not x.is_floating_point():
        raise ValueError(
            f"encode: got {x.dtype} of shape {tuple(x.shape)}, expected float "
            f"(*, {dim}): this quantizer's dimension is {dim}"
        )
    return x


def check_indexes(indexes: Any, num_codebooks: int, codebook_size: int) -> torch.Tensor:
    """Return codebook indexes (*, N), a tensor or array, as an int64 tensor (F, N).

    Raises:
        ValueError: If they are not integers from 0 to K - 1, or not N of them.
    """
    indexes = as_tensor("indexes", indexes)
    if indexes.dim() < 1 or indexes.shape[-1] != num_codebooks:
        raise ValueError(
            f"indexes: got shape {tuple(indexes.shape)}, expected "
            f"(*, {num_codebooks}): one index for each codebook"
        )
    if (
        indexes.dtype.is_complex
        or indexes.is_floating_point()
        or (indexes.dtype == torch.bool)
    ):
        raise ValueError(f"indexes: got {indexes.dtype}, expected an integer type")
    flat = indexes.reshape(-1, num_codebooks).long()
    if flat.numel() and not (0 <= flat.min() and flat.max() < codebook_size):
        raise ValueError(
            f"indexes: got values from {flat.min()} to {flat.max()}, expected 0 "
            f"to {codebook_size - 1}"
        )
    return flat


def check_training_frames(x: torch.Tensor, codebook_size: int) -> None:
    """Check training frames, finite, (F, D).

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
