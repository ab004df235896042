"""The codebook loss against cross entropy on explicit logits."""

import pytest
import torch
import torch.nn.functional as F

from espnet_mvq.distillation import IGNORE, IndependentHead, codebook_loss, losses

CHANNELS, NUM_TARGETS, CODEBOOK_SIZE = 8, 4, 5


@pytest.fixture
def head():
    return IndependentHead(CHANNELS, NUM_TARGETS, CODEBOOK_SIZE)


@pytest.fixture
def frames():
    return torch.randn(2, 7, CHANNELS, requires_grad=True)


@pytest.fixture
def targets():
    """Targets with single ones missing, whole frames missing, and one short length."""
    targets = torch.randint(0, CODEBOOK_SIZE, (2, 7, NUM_TARGETS))
    targets[0, 2] = targets[0, 3, 1] = targets[1, 5:] = IGNORE
    return targets


def explicit_loss(head, frames, targets):
    """Sum cross entropy over all targets, one at a time."""
    weight = head.weight.reshape(NUM_TARGETS, CODEBOOK_SIZE, CHANNELS)
    bias = head.bias.reshape(NUM_TARGETS, CODEBOOK_SIZE)
    total, correct = 0.0, 0
    for b, t, m in (targets != IGNORE).nonzero().tolist():
        logits = weight[m] @ frames[b, t] + bias[m]
        total = total - logits.log_softmax(0)[targets[b, t, m]]
        correct += int(logits.argmax() == targets[b, t, m])
    return total, correct


def gradients(loss, head, frames):
    return torch.autograd.grad(loss, [frames, head.weight, head.bias])


@pytest.mark.parametrize("chunk_frames", [1, 3, 1024])
def test_loss_hits_and_gradients_equal_the_explicit_ones(
    head, frames, targets, monkeypatch, chunk_frames
):
    monkeypatch.setattr(losses, "_CHUNK_FRAMES", chunk_frames)
    torch.nn.init.normal_(head.bias)
    expected, num_correct = explicit_loss(head, frames, targets)
    output = codebook_loss(head, frames, targets)
    torch.testing.assert_close(output.loss, expected)
    assert output.num_correct == num_correct
    assert output.num_targets == (targets != IGNORE).sum()
    assert output.num_frames == 14 - 1 - 2
    torch.testing.assert_close(
        gradients(output.loss, head, frames), gradients(expected, head, frames)
    )


def test_loss_equals_torch_cross_entropy(head, frames, targets):
    logits = head(frames.flatten(0, 1)).flatten(0, 1)
    expected = F.cross_entropy(
        logits, targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(codebook_loss(head, frames, targets).loss, expected)


def test_head_gives_each_target_its_own_logits(head):
    x = torch.randn(3, CHANNELS)
    logits = head(x)
    assert logits.shape == (3, NUM_TARGETS, CODEBOOK_SIZE)
    rows = head.weight[CODEBOOK_SIZE : 2 * CODEBOOK_SIZE]
    torch.testing.assert_close(logits[:, 1], x @ rows.T)


def test_initial_logits_are_near_chance():
    big = IndependentHead(64, 2, 256)
    assert torch.equal(big.bias, torch.zeros(512))
    logits = big(torch.randn(200, 64)).detach()
    assert float(logits.std()) == pytest.approx(1, rel=0.1)


def test_without_valid_targets_loss_and_gradients_are_zero(head, frames):
    targets = torch.full((2, 7, NUM_TARGETS), IGNORE)
    output = codebook_loss(head, frames, targets)
    sums = output.loss, output.num_correct, output.num_targets, output.num_frames
    assert [value.item() for value in sums] == [0, 0, 0, 0]
    loss = output.loss + 0 * sum(p.sum() for p in head.parameters()) + 0 * frames.sum()
    for gradient in gradients(loss, head, frames):
        assert not gradient.any()


def test_perfect_prediction_is_all_correct(targets):
    """One-hot frames and a head that reads the targets off them."""
    head = IndependentHead(2 * 7, NUM_TARGETS, CODEBOOK_SIZE)
    frames = torch.eye(14).reshape(2, 7, 14)
    wanted = F.one_hot(targets.clamp(min=0), CODEBOOK_SIZE).float()
    head.weight.data = 100 * wanted.reshape(14, -1).T.contiguous()
    output = codebook_loss(head, frames, targets)
    assert output.num_correct == output.num_targets
    assert output.loss.item() == pytest.approx(0, abs=1e-4)


def test_without_gradients_the_loss_is_the_same(head, frames, targets):
    expected = codebook_loss(head, frames, targets).loss
    with torch.no_grad():
        loss = codebook_loss(head, frames, targets).loss
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


def test_loss_does_not_depend_on_padding(head, frames, targets):
    alone = codebook_loss(head, frames[:1, :5], targets[:1, :5])
    padded = targets.clone()
    padded[0, 5:] = padded[1] = IGNORE
    batch = codebook_loss(head, frames, padded)
    torch.testing.assert_close(batch.loss, alone.loss)
    loud = torch.where((padded != IGNORE).any(2, keepdim=True), frames, float("nan"))
    torch.testing.assert_close(codebook_loss(head, loud, padded).loss, alone.loss)


@pytest.mark.parametrize("chunk_frames", [3, 1024])
def test_bfloat16_autocast_is_near_and_trains(
    head, frames, targets, monkeypatch, chunk_frames
):
    monkeypatch.setattr(losses, "_CHUNK_FRAMES", chunk_frames)
    expected = codebook_loss(head, frames, targets).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = codebook_loss(head, frames, targets).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    pairs = gradients(loss, head, frames), gradients(expected, head, frames)
    for found, wanted in zip(*pairs):
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_half_precision_frames_sum_up_in_float32(head, targets):
    frames = torch.randn(2, 7, CHANNELS, dtype=torch.bfloat16)
    output = codebook_loss(head.bfloat16(), frames, targets)
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
