"""The linear classifier of indexes: perfect, at chance, and in between."""

import math

import pytest
import torch

from espnet_mvq.quantization.linear_probe import channel_statistics, linear_probe


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
    assert scores.chance_nats == math.log(4)
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


def test_one_frame_is_enough_to_run():
    data = torch.randn(1, 3), torch.tensor([[2]])
    assert linear_probe(data, data, 4).accuracy.item() == 1


def test_channel_statistics(monkeypatch):
    from espnet_mvq.quantization import linear_probe as module

    x = torch.randn(50, 4) * 3 + 1000
    x[:, 2] = 0.1
    monkeypatch.setattr(module, "_CHUNK_FRAMES", 7)
    mean, variance, constant = channel_statistics(x)
    torch.testing.assert_close(mean, x.double().mean(0))
    torch.testing.assert_close(variance, x.double().var(0, correction=0))
    assert constant.tolist() == [False, False, True, False]
