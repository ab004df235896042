"""The quality report of a quantizer, figure by figure."""

import json
import math

import pytest
import torch

from espnet_mvq.quantization import Quantizer, QuantizerTrainer
from espnet_mvq.quantization import quality as module
from espnet_mvq.quantization.classifier_quantizer import ClassifierQuantizer
from espnet_mvq.quantization.quality import (
    channel_errors,
    channel_statistics,
    codebook_correlation,
    codebook_variance_share,
    error_by_effort,
    index_counts,
    index_usage,
    label_stability,
    linear_probe,
    measure_quality,
)


@pytest.fixture
def x():
    return torch.randn(300, 8) * torch.arange(1, 9) + 5


@pytest.fixture
def quantizer(x):
    return QuantizerTrainer(8, 3, codebook_size=8, num_iterations=2).fit(x)


def with_classifier(quantizer):
    """Give a quantizer of two codebooks the classifier of multi_quantization's."""
    rows = quantizer.num_codebooks * quantizer.codebook_size
    return ClassifierQuantizer(
        quantizer.codebooks,
        quantizer.mean,
        classifier_weight=torch.randn(rows, quantizer.dim),
        classifier_bias=torch.zeros(rows),
    )


def test_report_agrees_with_the_quantizer(quantizer, x):
    report = measure_quality(quantizer, x)
    indexes = quantizer.encode(x)
    assert report.num_frames == 300
    assert report.relative_error == quantizer.relative_reconstruction_error(x)
    assert report.effort[-2].relative_error == report.relative_error
    dead = [8 - len(set(column)) for column in indexes.T.tolist()]
    assert report.usage.dead_entries.tolist() == dead
    assert [s.noise_power for s in report.stability] == [0.001, 0.01, 0.1]
    assert report.codebook_correlation.shape == (3, 3)


def test_effort_lowers_the_error(quantizer, x, monkeypatch):
    monkeypatch.setattr(module, "_MOST_PASSES", 2)
    errors = error_by_effort(quantizer, x)
    names = ["0 passes", "1 pass", "2 passes", "2 passes, 16 perturbations"]
    assert [e.search for e in errors] == [f"beam, {name}" for name in names]
    values = [e.relative_error for e in errors]
    assert values == sorted(values, reverse=True)
    for effort in errors:
        indexes = quantizer.encode(x, **effort.options)
        error = quantizer.relative_reconstruction_error(x, indexes)
        assert effort.relative_error == error


def test_effort_of_a_quantizer_with_a_classifier(x, monkeypatch):
    monkeypatch.setattr(module, "_MOST_PASSES", 2)
    trained = QuantizerTrainer(8, 2, codebook_size=8, num_iterations=2).fit(x)
    errors = error_by_effort(with_classifier(trained), x)
    names = [f"classifier, {name}" for name in ("0 passes", "1 pass", "2 passes")]
    assert [e.search for e in errors] == [*names, "beam, 2 passes, 16 perturbations"]
    values = [e.relative_error for e in errors]
    assert values[0] > values[1] >= values[2]
    assert values[3] == error_by_effort(trained, x)[-1].relative_error


def test_errors_of_channels(quantizer, x, monkeypatch):
    x[:, 3] = quantizer.mean[3] + 0.5
    indexes = quantizer.encode(x)
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 7)
    errors = channel_errors(quantizer, x, indexes)
    squared = (x.double() - quantizer.decode(indexes)).square()
    varying = (x.double() - x.double().mean(0)).square()
    for d in range(8):
        expected = float("nan") if d == 3 else squared[:, d].sum() / varying[:, d].sum()
        assert errors.channel_error[d].item() == pytest.approx(expected, nan_ok=True)
    torch.testing.assert_close(errors.variance_share, varying.sum(0) / varying.sum())
    total = quantizer.relative_reconstruction_error(x, indexes)
    of_channels = (errors.channel_error * errors.variance_share).nansum()
    constant = squared[:, 3].sum() / varying.sum()
    assert (of_channels + constant).item() == pytest.approx(total)


def test_perfect_quantizer():
    """Each frame is an entry: no error, and half of the entries dead."""
    entries = torch.randn(8, 4)
    x = entries[:4].repeat(20, 1)
    report = measure_quality(Quantizer(entries[None]), x)
    assert report.relative_error == pytest.approx(0, abs=1e-12)
    assert report.usage.dead_entries.tolist() == [4]
    assert report.usage.entropy_bits.item() == pytest.approx(2)
    assert report.probe.accuracy.item() == 1
    assert report.stability[0].mean_unchanged == 1
    json.dumps(report.to_dict(), allow_nan=False)


def test_noise_changes_indexes(quantizer, x, monkeypatch):
    indexes = quantizer.encode(x)
    kept = [
        label_stability(quantizer, x, indexes, power).mean_unchanged
        for power in (1e-12, 0.001, 0.01, 0.1, 10)
    ]
    assert kept[0] == 1 and kept == sorted(kept, reverse=True) and kept[4] < 0.5
    once = label_stability(quantizer, x, indexes, 0.1, seed=1)
    again = label_stability(quantizer, x, indexes, 0.1, seed=1)
    assert torch.equal(once.unchanged, again.unchanged)
    assert once.mean_unchanged == pytest.approx(once.unchanged.mean().item())
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 100)
    parts = label_stability(quantizer, x, indexes, 0.1, seed=1)
    torch.testing.assert_close(parts.unchanged, once.unchanged, atol=0.1, rtol=0)


def test_noise_has_the_given_power(quantizer, x, monkeypatch):
    inputs, repeated = [], x.repeat(30, 1)
    indexes = quantizer.encode(repeated)

    def encode(frames):
        inputs.append(frames)
        return indexes[: len(frames)]

    monkeypatch.setattr(quantizer, "encode", encode)
    label_stability(quantizer, repeated, indexes, 0.01)
    noise = torch.cat(inputs) - repeated
    power = noise.var(0) / x.var(0, correction=0)
    torch.testing.assert_close(power, torch.full((8,), 0.01), rtol=0.1, atol=0)


def probe_frames(monkeypatch, *args, **kwargs):
    """Return the frames that the probe is trained and tested on."""
    seen = {}

    def probe(train, test, codebook_size, **options):
        seen.update(train=train, test=test, split=options["split"])
        return linear_probe(train, test, codebook_size, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "linear_probe", probe)
        measure_quality(*args, **kwargs)
    return seen["train"], seen["test"], seen["split"]


def test_probe_is_tested_on_other_utterances(quantizer, x, monkeypatch):
    x[:, 0] = torch.arange(300)
    utt_ids = [f"utt{n // 60}" for n in range(300)]
    train, test, split = probe_frames(monkeypatch, quantizer, x, utt_ids=utt_ids)
    assert sorted(train[0][:, 0].tolist()) == list(range(120))
    assert sorted(test[0][:, 0].tolist()) == list(range(120, 300))
    assert "utterances" in split
    assert torch.equal(train[1], quantizer.encode(train[0]))
    assert torch.equal(test[1], quantizer.encode(test[0]))


@pytest.mark.parametrize("utt_ids", [None, ["only"] * 300])
def test_probe_of_one_utterance_takes_random_halves(quantizer, x, monkeypatch, utt_ids):
    x[:, 0] = torch.arange(300)
    train, test, split = probe_frames(monkeypatch, quantizer, x, utt_ids=utt_ids)
    rows = [sorted(part[0][:, 0].tolist()) for part in (train, test)]
    assert sorted(rows[0] + rows[1]) == list(range(300))
    assert len(rows[0]) == 150 and rows[0] != list(range(150))
    assert "random" in split


def test_probe_frames_are_limited(quantizer, x, monkeypatch):
    monkeypatch.setattr(module, "_PROBE_FRAMES", 40)
    train, test, _ = probe_frames(monkeypatch, quantizer, x)
    assert len(train[0]) == len(test[0]) == 20


def test_report_is_the_same_again_and_survives_json(quantizer, x):
    x[:, 3] = 1.0
    first, second = (measure_quality(quantizer, x, seed=3).to_dict() for _ in "ab")
    assert first == second
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert first["errors"]["channel_error"][3] is None
    fields = "num_frames relative_error effort usage codebook_variance_share "
    fields += "codebook_correlation errors stability probe"
    assert set(first) == set(fields.split())
    assert measure_quality(quantizer, x[:2]).num_frames == 2


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.randn(5, 7), r"x: got .* \(5, 7\), expected float .* 8\)"),
        (torch.randn(2, 5, 8), r"\(2, 5, 8\), expected float"),
        (torch.ones(5, 8, dtype=torch.int64), "int64"),
        (torch.randn(1, 8), "got 1 frames, expected at least 2"),
        (torch.ones(5, 8), "all 5 frames are equal"),
    ],
)
def test_frames_that_cannot_be_measured(quantizer, bad, message):
    with pytest.raises(ValueError, match=message):
        measure_quality(quantizer, bad)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_name_frame_and_utterance(quantizer, x, value, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 7)
    bad = x.clone()
    bad[100, 5] = value
    with pytest.raises(ValueError, match="x: .* frame 100 .counted from 0.; expected"):
        measure_quality(quantizer, bad)
    utt_ids = ["a"] * 100 + ["b"] * 200
    with pytest.raises(ValueError, match="frame 100 .* of utterance b"):
        measure_quality(quantizer, bad, utt_ids=utt_ids)
    with pytest.raises(ValueError, match="got 2 names, expected 300"):
        measure_quality(quantizer, x, utt_ids=["a", "b"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_usage_of_known_counts(dtype):
    indexes = torch.tensor([[0, 3], [0, 3], [1, 3], [2, 3]]).to(dtype)
    assert index_counts(indexes, 4).tolist() == [[2, 1, 1, 0], [0, 0, 0, 4]]
    usage = index_usage(indexes, 4)
    assert usage.entropy_bits.tolist() == pytest.approx([1.5, 0])
    assert usage.perplexity.tolist() == pytest.approx([2**1.5, 1])
    assert usage.dead_entries.tolist() == [1, 3]
    usage = index_usage(torch.arange(512).remainder(256)[:, None], 256)
    assert usage.entropy_bits.item() == pytest.approx(8)
    assert usage.perplexity.item() == pytest.approx(256)
    assert usage.dead_entries.item() == 0


def plain_correlation(codebooks):
    """Form the covariances (D, D), one pair after the other."""
    covariances = [torch.cov(entries.double().T, correction=0) for entries in codebooks]
    count = len(codebooks)
    values = torch.zeros(count, count, dtype=torch.float64)
    for i, a in enumerate(covariances):
        for j, b in enumerate(covariances):
            norm = math.sqrt((a @ a).trace() * (b @ b).trace())
            values[i, j] = (a @ b).trace() / norm
    return values


@pytest.mark.parametrize("shape", [(3, 8, 5), (2, 4, 16), (1, 2, 3)])
def test_correlation_equals_that_of_covariances(shape):
    codebooks = torch.randn(shape) * torch.arange(1, shape[2] + 1) + 3
    result = codebook_correlation(codebooks)
    torch.testing.assert_close(result, plain_correlation(codebooks))


def test_correlation_of_equal_and_of_orthogonal_codebooks():
    left = torch.cat([torch.randn(8, 3), torch.zeros(8, 3)], dim=1)
    right = torch.cat([torch.zeros(8, 3), torch.randn(8, 3)], dim=1)
    # Neither order, nor sign, nor size, nor mean of the entries counts.
    codebooks = torch.stack([left, right, -2 * left.flip(0) + 1])
    expected = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.float64)
    result = codebook_correlation(codebooks)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)
    result = codebook_correlation(torch.stack([left, torch.ones(8, 6)]))
    assert result[0, 0] == pytest.approx(1)  # equal entries have no correlation
    assert result[1].isnan().all() and result[0, 1].isnan()


def test_variance_share():
    entries = torch.randn(8, 3)
    codebooks = torch.stack([entries, 2 * entries + 5, torch.ones(8, 3)])
    result = codebook_variance_share(codebooks).tolist()
    assert result == pytest.approx([0.2, 0.8, 0], abs=1e-6)


def halves(x, indexes):
    half = len(x) // 2
    return (x[:half], indexes[:half]), (x[half:], indexes[half:])


def test_separable_indexes_are_guessed_and_random_ones_are_not():
    x = torch.randn(4000, 8)
    separable = x[:, :4].argmax(1)
    indexes = torch.stack([separable, torch.randint(0, 4, (4000,))], 1).to(torch.uint8)
    scores = linear_probe(*halves(x, indexes), 4, learning_rate=0.05)
    assert scores.accuracy[0] > 0.95 and scores.cross_entropy_nats[0] < 0.25
    assert scores.accuracy[1] == pytest.approx(0.25, abs=0.04)
    assert scores.cross_entropy_nats[1] == pytest.approx(math.log(4), abs=0.03)
    assert scores.entropy_nats.tolist() == pytest.approx([math.log(4)] * 2, abs=0.01)
    assert (scores.num_train_frames, scores.num_test_frames) == (2000, 2000)


def test_without_steps_it_knows_the_frequencies():
    indexes = torch.tensor([0] * 700 + [1] * 200 + [2] * 100)[:, None]
    data = torch.randn(1000, 3), indexes
    scores = linear_probe(data, data, 4, num_steps=0)
    entropy = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert scores.entropy_nats.item() == pytest.approx(entropy)
    assert scores.cross_entropy_nats.item() == pytest.approx(entropy, abs=0.003)
    assert scores.accuracy.item() == pytest.approx(0.7)


def test_entries_that_were_not_trained_on_are_possible():
    train = torch.randn(50, 3), torch.zeros(50, 1, dtype=torch.uint8)
    test = torch.randn(50, 3), torch.full((50, 1), 3, dtype=torch.uint8)
    scores = linear_probe(train, test, 4)
    assert scores.accuracy.item() == 0
    assert math.log(4) < scores.cross_entropy_nats.item() < math.inf
    one = torch.randn(1, 3), torch.tensor([[2]])
    assert linear_probe(one, one, 4).accuracy.item() == 1  # enough to run


def test_size_of_channels_does_not_matter():
    """A classifier without standardisation does not see the small channels."""
    x = torch.randn(2000, 4)
    indexes = x.argmax(1)[:, None]
    wide = x * torch.tensor([1e-2, 1, 1e2, 10]) + torch.tensor([0, 50, 5e2, -1])
    plain, scaled = (linear_probe(*halves(v, indexes), 4) for v in (x, wide))
    assert plain.accuracy.item() > 0.8
    torch.testing.assert_close(plain.accuracy, scaled.accuracy, atol=0.01, rtol=0)


def test_same_seed_same_scores_and_no_global_state():
    x, indexes = torch.randn(300, 4), torch.randint(0, 4, (300, 2))
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second, other = (
            linear_probe(*halves(x, indexes), 4, seed=seed) for seed in (1, 1, 2)
        )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.cross_entropy_nats, second.cross_entropy_nats)
    assert not torch.equal(first.cross_entropy_nats, other.cross_entropy_nats)


def test_channel_statistics(monkeypatch):
    x = torch.randn(50, 4) * 3 + 1000
    x[:, 2] = 0.1
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 7)
    mean, variance, constant = channel_statistics(x)
    torch.testing.assert_close(mean, x.double().mean(0))
    torch.testing.assert_close(variance, x.double().var(0, correction=0))
    assert constant.tolist() == [False, False, True, False]
