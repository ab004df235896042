"""What a quantizer is worth on given frames.

How much it loses, and in which channels and at which search effort; how well its
codebooks are used and how much they overlap; whether its indexes survive a little noise
and can be predicted at all, which a student has to do.
"""

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from espnet_mvq.quantization.codebook_statistics import (
    IndexUsage,
    codebook_correlation,
    codebook_variance_share,
    index_usage,
)
from espnet_mvq.quantization.linear_probe import (
    ProbeScores,
    channel_statistics,
    linear_probe,
)
from espnet_mvq.quantization.quantizer import Quantizer

_CHUNK_FRAMES = 8192  # frames that are held in double precision at once
_TINY = 1e-300  # what nothing is divided by


@dataclass(frozen=True)
class EffortError:
    """The error after a search of some effort.

    Attributes:
        search: The search, in words.
        options: What `Quantizer.encode` was given.
        relative_error: sum ||x - x_hat||^2 / sum ||x - mean||^2.
    """

    search: str
    options: Dict[str, Any]
    relative_error: float


@dataclass(frozen=True)
class ReconstructionErrors:
    """Where the error lies.

    Attributes:
        channel_error: Squared error of each channel over its variance, float64, (D,);
            NaN for constant channels.
        error_share: Each channel's share of the whole squared error, (D,); 0 where
            there is no error.
        variance_share: Each channel's share of the whole variance, (D,).
        frame_quantiles: Quantile -> squared error of a frame over the mean squared
            distance of frames from their mean.
    """

    channel_error: torch.Tensor
    error_share: torch.Tensor
    variance_share: torch.Tensor
    frame_quantiles: Dict[str, float]


@dataclass(frozen=True)
class NoiseStability:
    """How many indexes stay as they are under noise.

    Attributes:
        noise_power: Power of the noise over the variance, in each channel.
        unchanged: Fraction of unchanged indexes of each codebook, (N,).
        mean_unchanged: Their mean.
    """

    noise_power: float
    unchanged: torch.Tensor
    mean_unchanged: float


@dataclass(frozen=True)
class QualityReport:
    """All figures of `measure_quality`.

    Attributes:
        num_frames: Frames measured.
        relative_error: sum ||x - x_hat||^2 / sum ||x - mean||^2 of `encode`'s defaults.
        effort: The same by search effort, from the least to the most.
        usage: Use of the entries.
        codebook_variance_share: Share of each codebook's entries in the sum of the
            codebooks' variances, in the normalised space, (N,).
        codebook_correlation: See the function of this name, (N, N).
        errors: Where the error lies.
        stability: Unchanged indexes, by noise power.
        probe: Scores of the linear classifier.
    """

    num_frames: int
    relative_error: float
    effort: List[EffortError]
    usage: IndexUsage
    codebook_variance_share: torch.Tensor
    codebook_correlation: torch.Tensor
    errors: ReconstructionErrors
    stability: List[NoiseStability]
    probe: ProbeScores

    def to_dict(self) -> Dict[str, Any]:
        """Return lists and numbers for JSON, None in place of NaN."""
        return _plain(self)


def measure_quality(
    quantizer: Quantizer,
    x: torch.Tensor,
    *,
    utt_ids: Optional[Sequence[str]] = None,
    train: Optional[torch.Tensor] = None,
    noise_powers: Sequence[float] = (0.001, 0.01, 0.1),
    probe_frames: int = 20_000,
    seed: int = 0,
) -> QualityReport:
    """Measure a quantizer on frames it was not trained on.

    Args:
        quantizer: The quantizer.
        x: Teacher embeddings, float, (F, D), F >= 2.
        utt_ids: Utterance of each frame, F names. With them the linear probe is
            trained and tested on different utterances.
        train: Frames to train the probe on, float, (F', D); all of x tests it then.
            Default: one half of x, and the other half tests.
        noise_powers: Noise power over variance, for the stability of the indexes.
        probe_frames: Frames that the probe is trained and tested on, at most.
        seed: Seed of the noise and of the probe.

    Returns:
        The figures. They are the same again for the same seed and frames.

    Raises:
        ValueError: If frames have another dimension, are fewer than 2, all equal, or
            hold NaN or infinity (the utterance is named if utt_ids are given).
    """
    _check_frames(quantizer, x, "x", utt_ids)
    indexes = quantizer.encode(x)
    generator = torch.Generator().manual_seed(seed)
    if train is None:
        rows, test_rows, split = _halves(len(x), utt_ids, generator)
        train, train_indexes = x, indexes
    else:
        _check_frames(quantizer, train, "train")
        train_indexes = quantizer.encode(train)
        rows, test_rows = torch.arange(len(train)), torch.arange(len(x))
        split = "training frames given apart"
    rows, test_rows = (
        part[
            torch.randperm(len(part), generator=generator)[: max(1, probe_frames // 2)]
        ]
        for part in (rows, test_rows)
    )
    return QualityReport(
        num_frames=len(x),
        relative_error=quantizer.relative_reconstruction_error(x, indexes),
        effort=error_by_effort(quantizer, x),
        usage=index_usage(indexes, quantizer.codebook_size),
        codebook_variance_share=codebook_variance_share(quantizer.codebooks),
        codebook_correlation=codebook_correlation(quantizer.codebooks),
        errors=reconstruction_errors(quantizer, x, indexes),
        stability=[
            label_stability(quantizer, x, indexes, power, seed)
            for power in noise_powers
        ],
        probe=linear_probe(
            (train[rows], train_indexes[rows]),
            (x[test_rows], indexes[test_rows]),
            quantizer.codebook_size,
            split=split,
            seed=seed,
        ),
    )


def error_by_effort(
    quantizer: Quantizer,
    x: torch.Tensor,
    most_passes: int = 5,
    perturbation_rounds: int = 16,
) -> List[EffortError]:
    """Measure what more search is good for.

    Args:
        quantizer: The quantizer.
        x: Frames, float, (F, D).
        most_passes: Refinement passes are 0, 1, ... to this number. Quantizers with a
            classifier start from it, and the passes are multi_quantization's.
        perturbation_rounds: Of the last search, which is always a beam search.

    Returns:
        Errors, from the least effort to the most.
    """
    by_beam = quantizer.classifier_weight is None
    start = "beam" if by_beam else "classifier"
    errors = []

    def add(name: str, options: Dict[str, Any], indexes: torch.Tensor) -> None:
        error = quantizer.relative_reconstruction_error(x, indexes)
        errors.append(EffortError(name, options, error))

    indexes = None
    for passes in range(most_passes + 1):
        options = {"refine_passes": passes}
        if passes == 0 or not by_beam:
            indexes = quantizer.encode(x, **options)
        else:  # one pass more after the last ones: the same, in less time
            indexes = quantizer.encode(x, refine_passes=1, initial_indexes=indexes)
        add(f"{start}, {passes} pass{'es' * (passes != 1)}", options, indexes)
    options = {
        "method": "beam",
        "refine_passes": most_passes,
        "perturbation_rounds": perturbation_rounds,
    }
    initial = indexes if by_beam else None
    indexes = quantizer.encode(x, initial_indexes=initial, **options)
    name = f"beam, {most_passes} passes, {perturbation_rounds} perturbations"
    add(name, options, indexes)
    return errors


def reconstruction_errors(
    quantizer: Quantizer, x: torch.Tensor, indexes: torch.Tensor
) -> ReconstructionErrors:
    """Split the reconstruction error among channels and frames.

    Args:
        quantizer: The quantizer.
        x: Frames, float, (F, D).
        indexes: Their codebook indexes, (F, N).

    Returns:
        Errors and shares of the channels, quantiles of the frames.
    """
    _, variance, constant = channel_statistics(x)
    channel_error = torch.zeros_like(variance)
    frame_error = []
    for part, chosen in zip(x.split(_CHUNK_FRAMES), indexes.split(_CHUNK_FRAMES)):
        error = (part.double() - quantizer.decode(chosen).to(part.device)).square()
        channel_error += error.sum(0)
        frame_error.append(error.sum(1))
    channel_error /= len(x)
    relative = torch.where(constant, torch.nan, channel_error / variance)
    frames = torch.cat(frame_error) / variance.sum()
    ordered = frames.sort().values
    quantiles = {
        str(q): float(ordered[round(q * (len(ordered) - 1))])
        for q in (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    }
    return ReconstructionErrors(
        relative.cpu(),
        (channel_error / channel_error.sum().clamp_min(_TINY)).cpu(),
        (variance / variance.sum()).cpu(),
        quantiles,
    )


def label_stability(
    quantizer: Quantizer,
    x: torch.Tensor,
    indexes: torch.Tensor,
    noise_power: float,
    seed: int = 0,
    **options: Any,
) -> NoiseStability:
    """Count the indexes that stay when white noise is added to the frames.

    Args:
        quantizer: The quantizer.
        x: Frames, float, (F, D).
        indexes: `quantizer.encode(x, **options)`, (F, N).
        noise_power: Variance of the noise over that of the channel it is added to.
        seed: Seed of the noise; another power with the same seed only scales it.
        **options: Of `Quantizer.encode`.

    Returns:
        Fractions of unchanged indexes.
    """
    generator = torch.Generator().manual_seed(seed)
    _, variance, _ = channel_statistics(x)
    deviation = (noise_power * variance).sqrt().float()
    unchanged = torch.zeros(quantizer.num_codebooks, dtype=torch.float64)
    for part, chosen in zip(x.split(_CHUNK_FRAMES), indexes.split(_CHUNK_FRAMES)):
        noise = torch.randn(part.shape, generator=generator).to(part.device)
        found = quantizer.encode(part + noise * deviation, **options)
        unchanged += (found == chosen).sum(0).cpu()
    unchanged /= len(x)
    return NoiseStability(noise_power, unchanged, float(unchanged.mean()))


def _halves(
    num_frames: int, utt_ids: Optional[Sequence[str]], generator: torch.Generator
) -> Tuple[torch.Tensor, torch.Tensor, str]:
    """Part frames into two halves: their rows, and how they were parted."""
    utterances = list(dict.fromkeys(utt_ids or ()))
    if len(utterances) > 1:
        first = set(utterances[: len(utterances) // 2])
        in_first = torch.tensor([utt_id in first for utt_id in utt_ids])
        rows, test_rows = in_first.nonzero()[:, 0], (~in_first).nonzero()[:, 0]
        return rows, test_rows, "first half of the utterances trains, the others test"
    order = torch.randperm(num_frames, generator=generator)
    half = num_frames // 2
    return order[:half], order[half:], "random halves of the frames"


def _check_frames(
    quantizer: Quantizer,
    x: torch.Tensor,
    name: str,
    utt_ids: Optional[Sequence[str]] = None,
) -> None:
    """Refuse frames that cannot be measured."""
    if x.dim() != 2 or x.shape[1] != quantizer.dim or not x.is_floating_point():
        raise ValueError(
            f"{name}: got {x.dtype} of shape {tuple(x.shape)}, expected float (number "
            f"of frames, {quantizer.dim}) as the quantizer has"
        )
    if len(x) < 2:
        raise ValueError(
            f"{name}: got {len(x)} frames, expected at least 2, better thousands"
        )
    if utt_ids is not None and len(utt_ids) != len(x):
        raise ValueError(
            f"utt_ids: got {len(utt_ids)} names, expected {len(x)}: one for each frame"
        )
    for start in range(0, len(x), _CHUNK_FRAMES):
        bad = ~x[start : start + _CHUNK_FRAMES].isfinite().all(dim=1)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            where = "" if utt_ids is None else f", of utterance {utt_ids[row]}"
            raise ValueError(
                f"{name}: got NaN or infinity in frame {row} (counted from 0){where}; "
                "expected finite embeddings: check the teacher's precision and audio"
            )


def _plain(value: Any) -> Any:
    """Turn dataclasses, tensors and NaN into what JSON knows."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
