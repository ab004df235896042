"""Quantizer training: alternate between searching indexes and refitting codebooks."""

import contextlib
import hashlib
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Tuple, Union

import numpy as np
import torch
from tqdm import tqdm

from espnet_mvq.files.whole_file import write_bytes
from espnet_mvq.quantization.codebook_fitting import refit_codebooks, residual_kmeans
from espnet_mvq.quantization.frames import (
    Reservoir,
    as_tensor,
    check_codebook_size,
    check_memory,
    check_number,
    check_seed,
    check_training_frames,
)
from espnet_mvq.quantization.quantizer import Quantizer

Frames = Union[torch.Tensor, np.ndarray, Iterable[torch.Tensor]]

# Residual k-means only starts the training: more frames gain nothing in the end.
_KMEANS_FRAMES_PER_ENTRY = 128
_FRAMES_OF_RIDGE = 200  # frames per entry from which on the ridge is as it is given
_CLEARLY = 1e-3  # by how much an error must fall to count as progress


@dataclass
class _State:
    """What a resumed training needs."""

    iteration: int  # rounds done
    codebooks: torch.Tensor  # (N, K, D), normalised space
    indexes: torch.Tensor  # uint8, (F, N), of the training frames
    best_error: float
    best_iteration: int
    best_codebooks: torch.Tensor
    last_progress: int = 0  # the last round that was clearly better


class QuantizerTrainer:
    """Trains a `Quantizer` on teacher embeddings.

    Starts from residual k-means, then alternates: search better indexes for all
    training frames (from the last ones, with random perturbations), solve for the best
    codebooks in closed form. A ridge that falls from round to round keeps entries that
    few frames use from running away, so that all entries stay in use. The codebooks
    with the lowest held-out error win; training ends early when that error has stopped
    to fall.

    Args:
        dim: Dimension D of the embeddings.
        num_codebooks: Number of codebooks N >= 1 (bytes per frame).
        codebook_size: Entries K of each codebook, 2 to 256.
        seed: Seed of everything random; same seed and frames, same quantizer
            (on CPUs; on GPUs torch adds in any order).
        num_iterations: Most rounds of search and refit after initialisation.
        patience: Rounds in which the held-out error fell by less than a thousandth
            before training ends.
        normalize: "mean" subtracts the mean of each channel, "mean_std" also divides
            by its standard deviation, so all channels count alike.
        max_frames: Frames trained on at most; of more, a random sample.
        kmeans_iterations: Rounds of each k-means in the initialisation.
        perturbation_rounds: See `Quantizer.encode`; for the search in each round.
        ridge: Regulariser of the first and the last refit, in frames per entry; with
            fewer than 200 frames per entry it is as much smaller.
        device: Where to train.
        checkpoint: File that keeps the state after each round; a training that finds
            one with the same settings and frames goes on from there; a damaged one is
            set aside. None: no checkpoints.
        progress: Show a progress bar; None: where the log is a terminal.

    Source: alternation after LSQ and LSQ++ (Martinez et al. 2016, 2018); purpose and
        additive form after Guo et al. 2022 (arXiv:2211.00508), whose training by
        gradient descent is compared in benchmarks/RESULTS.md.

    Raises:
        ValueError: If a setting is out of range; names it.
    """

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        *,
        codebook_size: int = 256,
        seed: int = 0,
        num_iterations: int = 16,
        patience: int = 3,
        normalize: str = "mean",
        max_frames: int = 160_000,
        kmeans_iterations: int = 5,
        perturbation_rounds: int = 2,
        ridge: Tuple[float, float] = (20.0, 5.0),
        device: Union[str, torch.device] = "cpu",
        checkpoint: Optional[Union[str, Path]] = None,
        progress: Optional[bool] = None,
    ):
        check_codebook_size(codebook_size)
        for name, value, least in (
            ("dim", dim, 1),
            ("num_codebooks", num_codebooks, 1),
            ("kmeans_iterations", kmeans_iterations, 1),
            ("max_frames", max_frames, codebook_size),
            ("num_iterations", num_iterations, 1),
            ("patience", patience, 1),
            ("perturbation_rounds", perturbation_rounds, 0),
        ):
            check_number(name, value, least)
        check_seed(seed)
        check_memory(num_codebooks, codebook_size)
        if len(ridge) != 2 or not all(0 < value < math.inf for value in ridge):
            raise ValueError(f"ridge: got {ridge}, expected two positive numbers")
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
        self.perturbation_rounds = perturbation_rounds
        self.ridge = ridge
        self.device = torch.device(device)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.progress = progress

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
                random twentieth of `frames` (at most 10 000) that is not trained on. If
                these are fewer than two, or all equal, the training frames choose.
            provenance: Stored in the quantizer, with the training's own figures.

        Returns:
            The quantizer, on the CPU. Its provenance has the error as
            `relative_reconstruction_error`; that of training frames, where they had to
            choose, as `training_relative_reconstruction_error`.

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
        settings = self._settings(x, y)
        x = ((x - mean) / scale).to(self.device)
        measured_on, figure = "held-out", "relative_reconstruction_error"
        if len(y) < 2 or bool((y == y[0]).all()):
            logging.warning(
                f"quantizer: got {len(y)} held-out frames, expected two or more that "
                "differ: the error is that of the training frames"
            )
            measured_on, figure = "on the training frames", f"training_{figure}"
            y = x.cpu() * scale + mean

        state = self._resume(settings)
        if state is None:
            state = self._initialise(x, generator)
            self._evaluate(state, y, mean, scale, measured_on)
        hidden = None if self.progress is None else not self.progress
        with tqdm(
            total=self.num_iterations,
            initial=state.iteration,
            desc="quantizer",
            unit="round",
            disable=hidden,
        ) as bar:
            while state.iteration < self.num_iterations:
                if state.iteration - state.last_progress >= self.patience:
                    break
                self._round(x, state)
                self._evaluate(state, y, mean, scale, measured_on)
                self._save_checkpoint(state, settings)
                bar.update()
        logging.info(
            f"quantizer: relative reconstruction error {state.best_error:.4f} "
            f"{measured_on} after round {state.best_iteration} of {state.iteration}"
        )
        figures = {
            figure: round(state.best_error, 6),
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
        if isinstance(frames, (np.ndarray, torch.Tensor)):
            if frames.ndim == 2 and len(frames) > self.max_frames:
                generator = torch.Generator().manual_seed(self.seed)
                rows = torch.randperm(len(frames), generator=generator)
                rows = rows[: self.max_frames].sort().values
                # Only these rows of a memory map are read.
                frames = frames[
                    rows.numpy() if isinstance(frames, np.ndarray) else rows
                ]
            if isinstance(frames, np.ndarray):
                frames = torch.from_numpy(np.array(frames, dtype=np.float32))
        else:
            reservoir = Reservoir(self.max_frames, self.seed)
            for chunk in frames:
                reservoir.add(self._check_shape(as_tensor(name, chunk), name))
            frames = reservoir.frames()
        # As float32, which does not hold all that float64 does
        frames = self._check_shape(frames, name).detach().float().cpu()
        finite = frames.isfinite().all(dim=1)
        if not finite.all():
            rows = (~finite).nonzero().flatten()
            raise ValueError(
                f"{name}: got NaN or infinity in {len(rows)} of {len(frames)} frames, "
                f"first in frame {int(rows[0])} (counted from 0); expected finite "
                "embeddings: check the teacher's precision and the audio"
            )
        return frames

    def _check_shape(self, frames: torch.Tensor, name: str) -> torch.Tensor:
        """Return frames, or refuse those that are not (F, D)."""
        if frames.dim() != 2 or frames.shape[1] != self.dim:
            raise ValueError(
                f"{name}: got shape {tuple(frames.shape)}, expected (number of frames, "
                f"{self.dim})"
            )
        return frames

    def _normalisation(self, x: torch.Tensor):
        """Return mean and scale (D,) of training frames (F, D)."""
        mean = x.mean(0, dtype=torch.float64).float()
        if self.normalize == "mean":
            return mean, torch.ones_like(mean)
        scale = (x - mean).square().mean(0, dtype=torch.float64).sqrt().float()
        constant = scale < 1e-6 * scale.max()
        if constant.any():
            logging.warning(
                f"quantizer: {int(constant.sum())} of {self.dim} channels are constant;"
                " they are left unscaled"
            )
        return mean, torch.where(constant, torch.ones_like(scale), scale)

    def _initialise(self, x: torch.Tensor, generator: torch.Generator) -> _State:
        """Residual k-means on a part of the frames, and the indexes it gives."""
        order = torch.randperm(len(x), generator=generator)
        part = order[: _KMEANS_FRAMES_PER_ENTRY * self.codebook_size].sort().values
        codebooks = residual_kmeans(
            x[part.to(x.device)],
            self.num_codebooks,
            self.codebook_size,
            self.kmeans_iterations,
            generator,
        )
        indexes = Quantizer(codebooks).encode(x, beam_size=1, pair_candidates=0)
        return _State(0, codebooks, indexes, float("inf"), 0, codebooks)

    def _round(self, x: torch.Tensor, state: _State) -> None:
        """Search better indexes of all frames, and refit the codebooks."""
        searcher = Quantizer(state.codebooks).to(x.device)
        state.indexes = searcher.encode(
            x,
            refine_passes=3,
            pair_candidates=0,
            perturbation_rounds=self.perturbation_rounds,
            initial_indexes=state.indexes,
        )
        first, last = self.ridge
        done = state.iteration / max(1, self.num_iterations - 1)
        ridge = first * (last / first) ** done
        ridge *= min(1.0, len(x) / self.codebook_size / _FRAMES_OF_RIDGE)
        state.codebooks = refit_codebooks(
            x, state.indexes.long(), self.codebook_size, ridge
        )
        state.iteration += 1

    def _evaluate(
        self,
        state: _State,
        y: torch.Tensor,
        mean: torch.Tensor,
        scale: torch.Tensor,
        measured_on: str,
    ) -> None:
        """Log the error of frames (F, D) and remember the best round."""
        # A beam search does best when the codebooks that move most come first.
        order = state.codebooks.var(1).sum(1).argsort(descending=True)
        codebooks = state.codebooks[order]
        quantizer = Quantizer(codebooks.cpu(), mean, scale).to(self.device)
        error = quantizer.relative_reconstruction_error(y)
        logging.info(
            f"quantizer: round {state.iteration}/{self.num_iterations}, relative "
            f"reconstruction error {error:.4f} {measured_on}"
        )
        if error < (1 - _CLEARLY) * state.best_error:
            state.last_progress = state.iteration
        if error < state.best_error:
            state.best_error = error
            state.best_iteration = state.iteration
            state.best_codebooks = codebooks

    def _settings(self, *frames: torch.Tensor) -> str:
        """Identify settings and frames, so that only its own checkpoint is resumed."""
        if self.checkpoint is None:
            return ""
        settings = {
            name: str(value)
            for name, value in vars(self).items()
            if name not in ("checkpoint", "device", "progress")
        }
        hashes = [
            f"{tuple(x.shape)} {hashlib.sha256(x.contiguous().numpy()).hexdigest()}"
            for x in frames
        ]
        return f"{settings} {hashes}"

    def _save_checkpoint(self, state: _State, settings: str) -> None:
        """Keep the state of a training, if it is to be kept and can be."""
        if self.checkpoint is None:
            return
        content = io.BytesIO()
        torch.save({"settings": settings, **vars(state)}, content)
        try:
            write_bytes(self.checkpoint, content.getvalue())
        except OSError as error:
            logging.warning(
                f"quantizer: training goes on without a checkpoint: {error}"
            )

    def _resume(self, settings: str) -> Optional[_State]:
        """Return the state of a training that broke off, None if there is none."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        try:
            saved = torch.load(
                self.checkpoint, map_location=self.device, weights_only=True
            )
            is_other = saved.pop("settings") != settings
            state = _State(**saved)
        except Exception as error:  # unpickling raises by kind of damage
            aside = self.checkpoint.with_name(self.checkpoint.name + ".damaged")
            with contextlib.suppress(OSError):
                self.checkpoint.replace(aside)
            logging.warning(
                f"quantizer: {self.checkpoint} is damaged ({type(error).__name__}), "
                f"set aside as {aside.name}; training starts anew"
            )
            return None
        if is_other:
            logging.warning(
                f"quantizer: {self.checkpoint} is of other settings or frames, or of "
                "an older espnet_mvq; training starts anew"
            )
            return None
        logging.info(f"quantizer: resumed after round {state.iteration}")
        return state
