"""Quantizer training: alternate between searching indexes and refitting codebooks."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Union

import numpy as np
import torch

from espnet_mvq.quantization.frames import Reservoir, check_training_frames
from espnet_mvq.quantization.kmeans import residual_kmeans
from espnet_mvq.quantization.least_squares import refit_codebooks
from espnet_mvq.quantization.quantizer import Quantizer, check_codebook_size

Frames = Union[torch.Tensor, np.ndarray, Iterable[torch.Tensor]]


@dataclass
class _State:
    """What a resumed training needs."""

    iteration: int  # rounds done
    codebooks: torch.Tensor  # (N, K, D), normalised space
    indexes: torch.Tensor  # uint8, (F, N), of the training frames
    best_error: float
    best_iteration: int
    best_codebooks: torch.Tensor


class QuantizerTrainer:
    """Trains a `Quantizer` on teacher embeddings.

    Starts from residual k-means, then alternates: search the indexes of all training
    frames (starting from the last ones), solve for the best codebooks in closed form.
    While noise is added to the codebooks before the search (less every round), the
    alternation can leave poor local optima. The codebooks with the lowest held-out
    error win; training ends early when that error has stopped to fall.

    Args:
        dim: Dimension D of the embeddings.
        num_codebooks: Number of codebooks N >= 1 (bytes per frame).
        codebook_size: Entries K of each codebook, 2 to 256.
        seed: Seed of everything random; same seed and frames, same quantizer.
        num_iterations: Most rounds of search and refit after initialisation.
        patience: Rounds without a lower held-out error, after the noise has died
            away, before training ends.
        normalize: "mean" subtracts the mean of each channel, "mean_std" also divides
            by its standard deviation, so all channels count alike.
        max_frames: Frames kept (a random sample) when `fit` is given an iterator.
        kmeans_iterations: Rounds of each k-means in the initialisation.
        noise: Standard deviation of the first round's noise, relative to the
            entries of each codebook.
        ridge: Regulariser of the refit, in frames per entry.
        device: Where to train.
        checkpoint: File that keeps the state after each round; a training that finds
            one with the same settings goes on from there. None: no checkpoints.

    Source: alternation and annealed noise after LSQ++ (Martinez et al. 2018);
        purpose and additive form after Guo et al. 2022 (arXiv:2211.00508).
    """

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        *,
        codebook_size: int = 256,
        seed: int = 0,
        num_iterations: int = 12,
        patience: int = 3,
        normalize: str = "mean",
        max_frames: int = 160_000,
        kmeans_iterations: int = 10,
        noise: float = 0.25,
        ridge: float = 1.0,
        device: Union[str, torch.device] = "cpu",
        checkpoint: Optional[Union[str, Path]] = None,
    ):
        check_codebook_size(codebook_size)
        for name, value in (
            ("dim", dim),
            ("num_codebooks", num_codebooks),
            ("kmeans_iterations", kmeans_iterations),
            ("max_frames", max_frames),
            ("num_iterations", num_iterations),
        ):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        if normalize not in ("mean", "mean_std"):
            raise ValueError(
                f"normalize: got {normalize!r}, expected 'mean' or 'mean_std'"
            )
        self.dim = dim
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.seed = seed
        self.num_iterations = num_iterations
        self.patience = patience
        self.normalize = normalize
        self.max_frames = max_frames
        self.kmeans_iterations = kmeans_iterations
        self.noise = noise
        self.ridge = ridge
        self.device = torch.device(device)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)

    def fit(
        self,
        frames: Frames,
        held_out: Optional[Frames] = None,
        provenance: Optional[Dict[str, Any]] = None,
    ) -> Quantizer:
        """Train a quantizer.

        Args:
            frames: Teacher embeddings, float, (F, D): a tensor, an array (a memory map
                will do) or an iterator of such chunks.
            held_out: Frames of other utterances, to choose the best round. Default: a
                random twentieth of `frames` (at most 10 000) that is not trained on.
            provenance: Stored in the quantizer, with the training's own figures.

        Returns:
            The quantizer, on the CPU.

        Raises:
            ValueError: If frames hold NaN or infinity, have another dimension, are
                fewer than the codebook size or all equal.
        """
        generator = torch.Generator().manual_seed(self.seed)
        x = self._gather(frames, "frames")
        if held_out is None:
            order = torch.randperm(len(x), generator=generator)
            num_held_out = min(len(x) // 20, 10_000)
            y, x = x[order[:num_held_out]], x[order[num_held_out:]]
        else:
            y = self._gather(held_out, "held_out")
        check_training_frames(x, self.codebook_size)
        mean, scale = self._normalisation(x)
        x = ((x - mean) / scale).to(self.device)
        if len(y) < 2:
            # Too little data to hold any out: choose by the training error.
            y = x.cpu() * scale + mean

        settings = self._settings(x, y)
        state = self._resume(settings)
        if state is None:
            state = self._initialise(x, generator)
            self._evaluate(state, y, mean, scale)
        warmth = max(1, self.num_iterations // 2)  # rounds with noise
        while state.iteration < self.num_iterations:
            waited = state.iteration - max(state.best_iteration, warmth)
            if waited >= self.patience:
                break
            self._round(x, state, max(0.0, 1 - state.iteration / warmth))
            self._evaluate(state, y, mean, scale)
            self._save_checkpoint(state, settings)
        logging.info(
            f"quantizer: relative reconstruction error {state.best_error:.4f} held-out "
            f"after round {state.best_iteration} of {state.iteration}"
        )
        figures = {
            "relative_reconstruction_error": round(state.best_error, 6),
            "training_frames": len(x),
            "rounds": state.iteration,
            "seed": self.seed,
            "normalize": self.normalize,
        }
        return Quantizer(
            state.best_codebooks.cpu(), mean, scale, {**(provenance or {}), **figures}
        )

    def _gather(self, frames: Frames, name: str) -> torch.Tensor:
        """Return frames as one float tensor (F, D) on the CPU."""
        if isinstance(frames, np.ndarray):
            frames = torch.from_numpy(np.array(frames, dtype=np.float32))
        if not isinstance(frames, torch.Tensor):
            reservoir = Reservoir(self.max_frames, self.seed)
            for chunk in frames:
                reservoir.add(torch.as_tensor(chunk))
            frames = reservoir.frames()
        if frames.dim() != 2 or frames.shape[1] != self.dim:
            raise ValueError(
                f"{name}: got shape {tuple(frames.shape)}, expected (number of frames, "
                f"{self.dim})"
            )
        finite = frames.isfinite().all(dim=1)
        if not finite.all():
            rows = (~finite).nonzero().flatten()
            raise ValueError(
                f"{name}: got NaN or infinity in {len(rows)} of {len(frames)} frames, "
                f"first in frame {int(rows[0])} (counted from 0); expected finite "
                "embeddings: check the teacher's precision and the audio"
            )
        return frames.detach().float().cpu()

    def _normalisation(self, x: torch.Tensor):
        """Return mean and scale (D,) of training frames (F, D)."""
        mean = x.double().mean(0).float()
        if self.normalize == "mean":
            return mean, torch.ones_like(mean)
        scale = (x - mean).double().square().mean(0).sqrt().float()
        constant = scale < 1e-6 * scale.max()
        if constant.any():
            logging.warning(
                f"quantizer: {int(constant.sum())} of {self.dim} channels are constant;"
                " they are left unscaled"
            )
        return mean, torch.where(constant, torch.ones_like(scale), scale)

    def _initialise(self, x: torch.Tensor, generator: torch.Generator) -> _State:
        """Residual k-means, and the indexes it gives."""
        codebooks = residual_kmeans(
            x,
            self.num_codebooks,
            self.codebook_size,
            self.kmeans_iterations,
            generator,
        )
        indexes = Quantizer(codebooks).encode(x, beam_size=1)
        return _State(0, codebooks, indexes, float("inf"), 0, codebooks)

    def _round(self, x: torch.Tensor, state: _State, warmth: float) -> None:
        """Search all indexes, with noise while `warmth` (1 to 0) lasts, and refit."""
        codebooks = state.codebooks
        if warmth > 0:
            # Seeded by the round, so a resumed training goes the same way.
            generator = torch.Generator().manual_seed(
                self.seed * 100_003 + state.iteration + 1
            )
            noise = torch.randn(codebooks.shape, generator=generator).to(x.device)
            spread = codebooks.std(dim=1, keepdim=True)
            codebooks = codebooks + self.noise * warmth * spread * noise
        searcher = Quantizer(codebooks).to(x.device)
        state.indexes = searcher.encode(
            x, refine_passes=3, initial_indexes=state.indexes
        )
        state.codebooks = refit_codebooks(
            x, state.indexes.long(), self.codebook_size, self.ridge
        )
        state.iteration += 1

    def _evaluate(
        self,
        state: _State,
        y: torch.Tensor,
        mean: torch.Tensor,
        scale: torch.Tensor,
    ) -> None:
        """Log the held-out error of frames (F, D) and remember the best round."""
        quantizer = Quantizer(state.codebooks.cpu(), mean, scale).to(self.device)
        error = quantizer.relative_reconstruction_error(y)
        logging.info(
            f"quantizer: round {state.iteration}/{self.num_iterations}, relative "
            f"reconstruction error {error:.4f} held-out"
        )
        if error < state.best_error:
            state.best_error = error
            state.best_iteration = state.iteration
            state.best_codebooks = state.codebooks

    def _settings(self, *frames: torch.Tensor) -> str:
        """Identify settings and frames, so that only its own checkpoint is resumed."""
        settings = {
            name: str(value)
            for name, value in vars(self).items()
            if name not in ("checkpoint", "device")
        }
        sums = [f"{tuple(x.shape)} {x.double().sum().item():.6e}" for x in frames]
        return f"{settings} {sums}"

    def _save_checkpoint(self, state: _State, settings: str) -> None:
        """Keep the state of a training, if it is to be kept."""
        if self.checkpoint is None:
            return
        temporary = self.checkpoint.with_name(self.checkpoint.name + ".tmp")
        torch.save({"settings": settings, **vars(state)}, temporary)
        temporary.replace(self.checkpoint)

    def _resume(self, settings: str) -> Optional[_State]:
        """Return the state of a training that broke off, None if there is none."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if saved.pop("settings") != settings:
            logging.warning(
                f"quantizer: {self.checkpoint} is of other settings or frames; "
                "training starts anew"
            )
            return None
        logging.info(f"quantizer: resumed after round {saved['iteration']}")
        return _State(**saved)
