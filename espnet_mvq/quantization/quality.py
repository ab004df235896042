"""Quality of a quantizer on given frames.

The report has the reconstruction error, by channel and search effort; the use and the
overlap of the codebooks; and two measures of how hard the indexes are for a student:
their stability under noise, and the scores of a linear classifier that predicts them
from the frame itself.
"""

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch

from espnet_mvq.quantization.classifier_quantizer import ClassifierQuantizer
from espnet_mvq.quantization.quantizer import Quantizer

_CHUNK_FRAMES = 8192  # frames in double precision at a time
_CONSTANT = 1e-12  # a channel with less of the largest channel's variance is constant
_NOISE_POWERS = (0.001, 0.01, 0.1)  # over the variance, for the stability
_PROBE_FRAMES = 20_000  # for training and test of the linear probe together
_MOST_PASSES, _MOST_PERTURBATIONS = 5, 16  # of the largest search effort


@dataclass(frozen=True)
class IndexUsage:
    """Use of the entries of each codebook.

    Attributes:
        entropy_bits: Entropy of the index distribution, float64, (N,); log2 K at most.
        perplexity: 2 to the entropy, the number of equally used entries, (N,).
        dead_entries: Entries that no frame uses, int64, (N,).
    """

    entropy_bits: torch.Tensor
    perplexity: torch.Tensor
    dead_entries: torch.Tensor


@dataclass(frozen=True)
class EffortError:
    """Error after a search of some effort.

    Attributes:
        search: The search, in words.
        options: Options of `Quantizer.encode`.
        relative_error: sum ||x - x_hat||^2 / sum ||x - mean||^2.
    """

    search: str
    options: Dict[str, Any]
    relative_error: float


@dataclass(frozen=True)
class ChannelErrors:
    """Reconstruction error by channel.

    Attributes:
        channel_error: Squared error of each channel over its variance, float64, (D,);
            NaN for constant channels.
        variance_share: Each channel's share of the whole variance, (D,).
    """

    channel_error: torch.Tensor
    variance_share: torch.Tensor


@dataclass(frozen=True)
class NoiseStability:
    """Fraction of indexes that stay the same under noise.

    Attributes:
        noise_power: Power of the noise over the variance, in each channel.
        unchanged: Fraction of unchanged indexes of each codebook, (N,).
        mean_unchanged: Their mean.
    """

    noise_power: float
    unchanged: torch.Tensor
    mean_unchanged: float


@dataclass(frozen=True)
class ProbeScores:
    """Scores of a linear classifier on frames it was not trained on.

    Attributes:
        accuracy: Fraction of right answers for each codebook, (N,).
        cross_entropy_nats: Mean cross entropy in nats, (N,).
        entropy_nats: Entropy of the indexes, the cross entropy of a guess by their
            frequencies, (N,).
        split: Division into training and test frames, in words.
        num_train_frames: Number of training frames.
        num_test_frames: Number of test frames.
    """

    accuracy: torch.Tensor
    cross_entropy_nats: torch.Tensor
    entropy_nats: torch.Tensor
    split: str
    num_train_frames: int
    num_test_frames: int


@dataclass(frozen=True)
class QualityReport:
    """The figures of `measure_quality`.

    Attributes:
        num_frames: Frames measured.
        relative_error: sum ||x - x_hat||^2 / sum ||x - mean||^2 of `encode`'s defaults.
        effort: The same by search effort, from the least to the most.
        usage: Use of the entries.
        codebook_variance_share: Share of each codebook's entries in the sum of the
            codebooks' variances, in the normalised space, (N,).
        codebook_correlation: See the function of this name, (N, N).
        errors: Error by channel.
        stability: Unchanged indexes, by noise power.
        probe: Scores of the linear classifier.
    """

    num_frames: int
    relative_error: float
    effort: List[EffortError]
    usage: IndexUsage
    codebook_variance_share: torch.Tensor
    codebook_correlation: torch.Tensor
    errors: ChannelErrors
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
    seed: int = 0,
) -> QualityReport:
    """Measure a quantizer on frames it was not trained on.

    Args:
        quantizer: The quantizer.
        x: Teacher embeddings, float, (F, D), F >= 2.
        utt_ids: Utterance of each frame, F names. With them the linear probe is
            trained and tested on different utterances, else on random halves.
        seed: Seed of the noise and of the probe.

    Returns:
        The report; the same seed and frames give the same figures.

    Raises:
        ValueError: If frames have another dimension, are fewer than 2, all equal, or
            hold NaN or infinity (the utterance is named if utt_ids are given).
    """
    _check_frames(quantizer, x, utt_ids)
    indexes = quantizer.encode(x)
    generator = torch.Generator().manual_seed(seed)
    *halves, split = _halves(len(x), utt_ids, generator)
    most = max(1, _PROBE_FRAMES // 2)
    train, test = (
        rows[torch.randperm(len(rows), generator=generator)[:most]] for rows in halves
    )
    return QualityReport(
        num_frames=len(x),
        relative_error=quantizer.relative_reconstruction_error(x, indexes),
        effort=error_by_effort(quantizer, x),
        usage=index_usage(indexes, quantizer.codebook_size),
        codebook_variance_share=codebook_variance_share(quantizer.codebooks),
        codebook_correlation=codebook_correlation(quantizer.codebooks),
        errors=channel_errors(quantizer, x, indexes),
        stability=[
            label_stability(quantizer, x, indexes, power, seed)
            for power in _NOISE_POWERS
        ],
        probe=linear_probe(
            (x[train], indexes[train]),
            (x[test], indexes[test]),
            quantizer.codebook_size,
            split=split,
            seed=seed,
        ),
    )


def error_by_effort(quantizer: Quantizer, x: torch.Tensor) -> List[EffortError]:
    """Measure the error after searches of growing effort.

    The searches are the quantizer's own with 0 to 5 refinement passes, and last a beam
    search with perturbation. The frames are float, (F, D).
    """
    by_beam = not isinstance(quantizer, ClassifierQuantizer)
    start = "beam" if by_beam else "classifier"
    errors = []

    def add(name: str, options: Dict[str, Any], indexes: torch.Tensor) -> None:
        error = quantizer.relative_reconstruction_error(x, indexes)
        errors.append(EffortError(name, options, error))

    indexes = None
    for passes in range(_MOST_PASSES + 1):
        options = {"refine_passes": passes}
        if passes == 0 or not by_beam:
            indexes = quantizer.encode(x, **options)
        else:  # one more pass on the last indexes: the same result in less time
            indexes = quantizer.encode(x, refine_passes=1, initial_indexes=indexes)
        add(f"{start}, {passes} pass{'es' * (passes != 1)}", options, indexes)
    options = {
        "refine_passes": _MOST_PASSES,
        "perturbation_rounds": _MOST_PERTURBATIONS,
    }
    searcher, initial = quantizer, indexes
    if not by_beam:  # a quantizer without the classifier searches by beam
        parts = quantizer.codebooks, quantizer.mean, quantizer.scale
        searcher, initial = Quantizer(*parts), None
    indexes = searcher.encode(x, initial_indexes=initial, **options)
    name = f"beam, {_MOST_PASSES} passes, {_MOST_PERTURBATIONS} perturbations"
    add(name, options, indexes)
    return errors


def channel_errors(
    quantizer: Quantizer, x: torch.Tensor, indexes: torch.Tensor
) -> ChannelErrors:
    """Split the error of frames (F, D) with indexes (F, N) among channels."""
    _, variance, constant = channel_statistics(x)
    error = torch.zeros_like(variance)
    for part, chosen in zip(x.split(_CHUNK_FRAMES), indexes.split(_CHUNK_FRAMES)):
        decoded = quantizer.decode(chosen).to(part.device)
        error += (part.double() - decoded).square().sum(0)
    relative = torch.where(constant, torch.nan, error / len(x) / variance)
    return ChannelErrors(relative.cpu(), (variance / variance.sum()).cpu())


def label_stability(
    quantizer: Quantizer,
    x: torch.Tensor,
    indexes: torch.Tensor,
    noise_power: float,
    seed: int = 0,
    **options: Any,
) -> NoiseStability:
    """Count the indexes that stay the same when white noise is added to the frames.

    Args:
        quantizer: The quantizer.
        x: Frames, float, (F, D).
        indexes: `quantizer.encode(x, **options)`, (F, N).
        noise_power: Variance of the noise over the variance of its channel.
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
        noisy = quantizer.encode(part + noise * deviation, **options)
        unchanged += (noisy == chosen).sum(0).cpu()
    unchanged /= len(x)
    return NoiseStability(noise_power, unchanged, float(unchanged.mean()))


def index_counts(indexes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Count the uses of each entry: integers (F, N) -> float64 (N, K)."""
    columns = indexes.long().unbind(1)
    counts = [torch.bincount(column, minlength=codebook_size) for column in columns]
    return torch.stack(counts).double()


def index_usage(indexes: torch.Tensor, codebook_size: int) -> IndexUsage:
    """Measure how evenly indexes, integers (F, N) with F >= 1, use the entries."""
    counts = index_counts(indexes, codebook_size)
    entropy = torch.special.entr(counts / len(indexes)).sum(1) / math.log(2)
    return IndexUsage(entropy, 2**entropy, (counts == 0).sum(1))


def codebook_variance_share(codebooks: torch.Tensor) -> torch.Tensor:
    """Share of each codebook's entries (N, K, D) in the sum of all variances.

    All entries have equal weights. Float64, (N,); 0 where nothing varies.
    """
    variance = _centred(codebooks).square().sum((1, 2))
    return (variance / variance.sum().clamp_min(1e-300)).cpu()


def codebook_correlation(codebooks: torch.Tensor) -> torch.Tensor:
    """Compare the directions in which codebooks can move the reconstruction.

    With S_i the covariance (D, D) of the entries of codebook i, with equal weights, the
    correlation is tr(S_i S_j) / sqrt(tr(S_i^2) tr(S_j^2)): 1 for proportional
    covariances, 0 for codebooks in orthogonal subspaces. tr(S_i S_j) is the sum of the
    squared inner products of their entries, over K^2, so no S is formed.

    Args:
        codebooks: Entries, float, (N, K, D).

    Returns:
        Correlations, float64, (N, N); NaN for a codebook whose entries are all equal.
    """
    num_codebooks, codebook_size, dim = codebooks.shape
    entries = _centred(codebooks)
    flat = entries.reshape(-1, dim)
    traces = torch.stack(
        [
            (own @ flat.T)
            .square()
            .reshape(codebook_size, num_codebooks, codebook_size)
            .sum((0, 2))
            for own in entries
        ]
    )
    norms = traces.diagonal().sqrt()
    return (traces / norms.outer(norms)).cpu()


def _centred(codebooks: torch.Tensor) -> torch.Tensor:
    """Subtract the mean entry of each codebook, in double precision, (N, K, D)."""
    entries = codebooks.double()
    return entries - entries.mean(1, keepdim=True)


def linear_probe(
    train: Tuple[torch.Tensor, torch.Tensor],
    test: Tuple[torch.Tensor, torch.Tensor],
    codebook_size: int,
    *,
    num_steps: int = 160,
    batch_size: int = 256,
    learning_rate: float = 0.005,
    split: str = "",
    seed: int = 0,
) -> ProbeScores:
    """Predict the indexes of a frame from the frame, by softmax regression.

    A student predicts indexes from features that hold less than the frame, so indexes
    that are hard to predict here will be hard to learn.

    Training starts from the frequencies of the indexes and takes a fixed number of
    steps of Adam, with a step size that falls to 0. Few steps also prevent overfitting
    to few frames.

    Args:
        train: Frames, float, (F, D), and their codebook indexes, (F, N).
        test: The same for the frames to score.
        codebook_size: Entries K of each codebook.
        num_steps: Number of steps.
        batch_size: Maximum number of frames of a step.
        learning_rate: Learning rate of the first step.
        split: Division of the frames, for the report.
        seed: Seed of the order of the frames.

    Returns:
        Scores of the test frames.
    """
    (x, indexes), (test_x, test_indexes) = train, test
    mean, variance, constant = channel_statistics(x)
    mean, scale = mean.float(), torch.where(constant, 1.0, variance.sqrt()).float()

    def loss_and_hits(frames, wanted):
        logits = ((frames.float() - mean) / scale) @ weight + bias
        logits = logits.reshape(-1, codebook_size)
        wanted = wanted.reshape(-1).long()
        loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        shape = (-1, indexes.shape[1])
        return loss.reshape(shape), (logits.argmax(1) == wanted).reshape(shape)

    # Half a frame more for each entry: no entry is impossible
    frequencies = index_counts(indexes, codebook_size) + 0.5
    bias = (frequencies / frequencies.sum(1, keepdim=True)).log().float().reshape(-1)
    weight = torch.zeros(x.shape[1], len(bias), device=x.device)
    optimizer = torch.optim.Adam([weight.requires_grad_(), bias.requires_grad_()])
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad():
        for step in range(num_steps):
            if len(order) < min(batch_size, len(x)):
                order = torch.randperm(len(x), generator=generator)
            rows, order = order[:batch_size], order[batch_size:]
            loss, _ = loss_and_hits(x[rows], indexes[rows])
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / num_steps)
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
    with torch.no_grad():
        batches = zip(test_x.split(batch_size), test_indexes.split(batch_size))
        scores = [loss_and_hits(*batch) for batch in batches]
    frequencies = index_counts(test_indexes, codebook_size) / len(test_x)
    return ProbeScores(
        torch.cat([hits for _, hits in scores]).double().mean(0).cpu(),
        torch.cat([loss for loss, _ in scores]).double().mean(0).cpu(),
        torch.special.entr(frequencies).sum(1).cpu(),
        split,
        len(x),
        len(test_x),
    )


def channel_statistics(
    x: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance (divided by F) of each channel of frames (F, D), F >= 1.

    Memory is bounded. Returns mean and variance, float64, and the mask of constant
    channels, bool; all (D,).
    """
    mean = x.mean(0, dtype=torch.float64)
    variance = torch.zeros_like(mean)
    for part in x.split(_CHUNK_FRAMES):
        variance += (part - mean).square().sum(0)
    variance /= len(x)
    return mean, variance, variance <= _CONSTANT * variance.max()


def _halves(
    num_frames: int, utt_ids: Optional[Sequence[str]], generator: torch.Generator
) -> Tuple[torch.Tensor, torch.Tensor, str]:
    """Divide frames into two halves; return their rows, and the division in words."""
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
    quantizer: Quantizer, x: torch.Tensor, utt_ids: Optional[Sequence[str]]
) -> None:
    """Raise ValueError if frames do not suit a report; see `measure_quality`."""
    if x.dim() != 2 or x.shape[1] != quantizer.dim or not x.is_floating_point():
        raise ValueError(
            f"x: got {x.dtype} of shape {tuple(x.shape)}, expected float (number "
            f"of frames, {quantizer.dim}) as the quantizer has"
        )
    if len(x) < 2:
        raise ValueError(
            f"x: got {len(x)} frames, expected at least 2, better thousands"
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
                f"x: got NaN or infinity in frame {row} (counted from 0){where}; "
                "expected finite embeddings: check the teacher's precision and audio"
            )


def _plain(value: Any) -> Any:
    """Convert dataclasses, tensors and NaN to the types of JSON."""
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
