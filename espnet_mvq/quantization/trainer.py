"""Training of quantizers: alternate between index search and codebook refit."""

import contextlib
import hashlib
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import torch
from tqdm import tqdm

from espnet_mvq.files.whole_file import write_bytes
from espnet_mvq.quantization.codebook_fitting import refit_codebooks, residual_kmeans
from espnet_mvq.quantization.frames import (
    Frames,
    check_codebook_size,
    check_memory,
    check_number,
    check_seed,
    check_training_frames,
    gather_frames,
)
from espnet_mvq.quantization.quantizer import Quantizer

_KMEANS_FRAMES_PER_ENTRY = 128  # more frames do not improve the trained quantizer
_FRAMES_OF_RIDGE = 200  # frames per entry from which on the full ridge is used
_PROGRESS = 1e-3  # relative fall of the error that counts as progress


@dataclass
class _State:
    """State of a training, as kept in a checkpoint."""

    iteration: int  # finished rounds
    codebooks: torch.Tensor  # (N, K, D), normalised space
    indexes: torch.Tensor  # uint8, (F, N), of the training frames
    best_error: float
    best_iteration: int
    best_codebooks: torch.Tensor
    last_progress: int = 0  # the last round with progress


@dataclass(frozen=True)
class _Evaluation:
    """Frames that the error is measured on."""

    frames: torch.Tensor  # float, (F, D), unnormalised
    mean: torch.Tensor  # (D,)
    scale: torch.Tensor  # (D,)
    measured_on: str  # "held-out" or "on the training frames"


class QuantizerTrainer:
    """Trains a `Quantizer` on teacher embeddings.

    Training starts from residual k-means, then alternates: it searches better indexes
    for all training frames (from the last ones, with random perturbations), and solves
    for the best codebooks in closed form. A ridge that falls from round to round bounds
    entries with few frames, so that all entries stay in use. The result is the
    codebooks with the lowest held-out error; training ends early when that error stops
    falling.

    Args:
        dim: Dimension D of the embeddings.
        num_codebooks: Number of codebooks N >= 1 (bytes per frame).
        codebook_size: Entries K of each codebook, 2 to 256.
        seed: Random seed. The same seed and frames give the same quantizer on CPUs; on
            GPUs the order of torch's sums is not deterministic.
        num_iterations: Maximum number of rounds of search and refit.
        patience: Training ends after this many rounds in which the held-out error fell
            by less than a thousandth.
        normalize: "mean" subtracts the mean of each channel; "mean_std" also divides
            by its standard deviation, which gives all channels equal weight.
        max_frames: Maximum number of training frames; a random sample of more.
        kmeans_iterations: Rounds of each k-means in the initialisation.
        perturbation_rounds: See `Quantizer.encode`; for the search in each round.
        ridge: Regulariser of the first and the last refit, in frames per entry; below
            200 frames per entry it is reduced in proportion.
        device: Device of the training.
        checkpoint: File of the state after each round. A training with the same
            settings and frames resumes from it; a damaged one is set aside. None: no
            checkpoints.
        progress: Show a progress bar; None: if the log is a terminal.

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
            frames: Teacher embeddings, float, (F, D): a tensor, an array or memory
                map, or an iterator of such chunks.
            held_out: Frames of other utterances, to select the best round. Default: a
                random twentieth of `frames` (at most 10 000), left out of the
                training. If these are fewer than two, or all equal, the training
                frames select.
            provenance: Stored in the quantizer, with figures of the training.

        Returns:
            The quantizer, on the CPU. Its provenance has the held-out error as
            `relative_reconstruction_error`, or the error of the training frames as
            `training_relative_reconstruction_error`.

        Raises:
            ValueError: If frames hold NaN or infinity, have another dimension, are
                fewer than the codebook size or all equal.
        """
        generator = torch.Generator().manual_seed(self.seed)
        x = gather_frames("frames", frames, self.dim, self.max_frames, self.seed)
        if held_out is None:
            order = torch.randperm(len(x), generator=generator)
            num_held_out = min(len(x) // 20, 10_000)
            y, x = x[order[:num_held_out]], x[order[num_held_out:]]
        else:
            y = gather_frames(
                "held_out", held_out, self.dim, self.max_frames, self.seed
            )
        check_training_frames(x, self.codebook_size)
        mean, scale = self._normalisation(x)
        settings = self._settings(x, y)
        x = ((x - mean) / scale).to(self.device)
        evaluation = _Evaluation(y, mean, scale, "held-out")
        figure = "relative_reconstruction_error"
        if len(y) < 2 or bool((y == y[0]).all()):
            logging.warning(
                f"quantizer: got {len(y)} held-out frames, expected two or more that "
                "differ: the error is that of the training frames"
            )
            y = x.cpu() * scale + mean
            evaluation = _Evaluation(y, mean, scale, "on the training frames")
            figure = f"training_{figure}"

        state = self._resume(settings)
        if state is None:
            state = self._initialise(x, generator)
            self._evaluate(state, evaluation)
        with tqdm(
            total=self.num_iterations,
            initial=state.iteration,
            desc="quantizer",
            unit="round",
            disable=None if self.progress is None else not self.progress,
        ) as bar:
            while state.iteration < self.num_iterations:
                if state.iteration - state.last_progress >= self.patience:
                    break
                self._round(x, state)
                self._evaluate(state, evaluation)
                self._save_checkpoint(state, settings)
                bar.update()
        logging.info(
            f"quantizer: relative reconstruction error {state.best_error:.4f} "
            f"{evaluation.measured_on} after round {state.best_iteration} of "
            f"{state.iteration}"
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

    def _normalisation(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Mean and scale (D,) of training frames (F, D)."""
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
        """Residual k-means on a part of the frames, and indexes of all frames."""
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

    def _evaluate(self, state: _State, evaluation: _Evaluation) -> None:
        """Measure and log the error, and keep the codebooks of the best round."""
        # A beam search works best from the largest codebook to the smallest.
        order = state.codebooks.var(1).sum(1).argsort(descending=True)
        codebooks = state.codebooks[order]
        quantizer = Quantizer(codebooks.cpu(), evaluation.mean, evaluation.scale)
        quantizer.to(self.device)
        error = quantizer.relative_reconstruction_error(evaluation.frames)
        logging.info(
            f"quantizer: round {state.iteration}/{self.num_iterations}, relative "
            f"reconstruction error {error:.4f} {evaluation.measured_on}"
        )
        if error < (1 - _PROGRESS) * state.best_error:
            state.last_progress = state.iteration
        if error < state.best_error:
            state.best_error = error
            state.best_iteration = state.iteration
            state.best_codebooks = codebooks

    def _settings(self, *frames: torch.Tensor) -> str:
        """Settings and hashes of the frames: they identify a checkpoint."""
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
        """Write the checkpoint; a failure is a warning."""
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
        """Read the checkpoint; None if there is none of this training."""
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
