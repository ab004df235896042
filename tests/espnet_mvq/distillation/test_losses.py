"""The codebook loss against the same sums taken target by target."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from espnet_mvq.distillation import (
    IGNORE,
    IndependentHead,
    JointHead,
    codebook_loss,
    losses,
    soft_target_table,
    unit_variance_codebooks,
)

CHANNELS, NUM_CODEBOOKS, NUM_SLOTS, CODEBOOK_SIZE, DIM = 8, 2, 2, 5, 3
NUM_TARGETS = NUM_CODEBOOKS * NUM_SLOTS


@pytest.fixture
def head():
    return IndependentHead(CHANNELS, NUM_TARGETS, CODEBOOK_SIZE)


@pytest.fixture(params=["independent", "joint"])
def any_head(request, head):
    if request.param == "joint":
        head = JointHead(CHANNELS, NUM_TARGETS, CODEBOOK_SIZE, hidden_size=6)
    torch.nn.init.normal_(head.bias)
    return head


@pytest.fixture
def frames():
    return torch.randn(2, 7, CHANNELS, requires_grad=True)


@pytest.fixture
def targets():
    """Targets with single ones missing, whole frames missing, and one short length."""
    targets = torch.randint(0, CODEBOOK_SIZE, (2, 7, NUM_TARGETS))
    targets[0, 2] = targets[0, 3, 1] = targets[1, 5:] = IGNORE
    targets[0, 4, NUM_CODEBOOKS:] = IGNORE  # no teacher frame in the second slot
    return targets


@pytest.fixture(params=["plain", "smooth", "soft", "embedding", "all"])
def options(request):
    codebooks = torch.randn(NUM_CODEBOOKS, CODEBOOK_SIZE, DIM)
    options = {
        "smooth": {"label_smoothing": 0.1},
        "soft": {"soft_targets": soft_target_table(codebooks, 0.5)},
        "embedding": {
            "codebooks": unit_variance_codebooks(codebooks),
            "embedding_weight": 0.7,
        },
    }
    options["all"] = {k: v for part in options.values() for k, v in part.items()}
    return {"plain": {}, **options}[request.param]


def explicit_sums(head, frames, targets, options):
    """Sum everything over targets, one at a time; also return the sums of the rest."""
    smoothing = options.get("label_smoothing", 0)
    weight = options.get("embedding_weight", 0)
    loss = cross_entropy = error = torch.zeros(())
    correct = 0
    for b, t in (targets != IGNORE).any(2).nonzero().tolist():
        logits = head(frames[b, t : t + 1], targets[b, t : t + 1])[0]
        difference = [torch.zeros(DIM) for _ in range(NUM_SLOTS)]
        for m, k in enumerate(targets[b, t].tolist()):
            if k == IGNORE:
                continue
            slot, n = divmod(m, NUM_CODEBOOKS)
            wanted = F.one_hot(torch.tensor(k), CODEBOOK_SIZE).float()
            if "soft_targets" in options:
                wanted = options["soft_targets"][n, k]
            wanted = (1 - smoothing) * wanted + smoothing / CODEBOOK_SIZE
            log_probs = logits[m].log_softmax(0)
            loss = loss - wanted @ log_probs
            cross_entropy = cross_entropy - log_probs[k]
            correct += int(logits[m].argmax() == k)
            if weight:
                entries = options["codebooks"][n]
                expected = log_probs.exp() @ entries
                difference[slot] = difference[slot] + expected - entries[k]
        if weight:
            error = error + sum(d @ d for d in difference)
    return loss + weight * NUM_CODEBOOKS * error, correct, cross_entropy


def gradients(loss, head, frames):
    return torch.autograd.grad(loss, [frames, *head.weights()], retain_graph=True)


@pytest.mark.parametrize("chunk_frames", [3, 1024])
def test_sums_and_gradients_equal_the_explicit_ones(
    any_head, frames, targets, options, monkeypatch, chunk_frames
):
    monkeypatch.setattr(losses, "_CHUNK_FRAMES", chunk_frames)
    expected = explicit_sums(any_head, frames, targets, options)
    output = codebook_loss(any_head, frames, targets, **options)
    torch.testing.assert_close(output.loss, expected[0])
    assert output.num_correct == expected[1]
    torch.testing.assert_close(output.cross_entropy, expected[2].detach())
    assert output.num_targets == (targets != IGNORE).sum()
    assert output.num_frames == 14 - 1 - 2
    assert not output.cross_entropy.requires_grad
    for factor in (1.0, 1e-3):
        torch.testing.assert_close(
            gradients(factor * output.loss, any_head, frames),
            gradients(factor * expected[0], any_head, frames),
        )


def test_loss_equals_torch_cross_entropy(head, frames, targets):
    logits = head(frames.flatten(0, 1)).flatten(0, 1)
    for smoothing in (0.0, 0.1, 1.0):
        expected = F.cross_entropy(
            logits,
            targets.flatten(),
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=smoothing,
        )
        loss = codebook_loss(head, frames, targets, label_smoothing=smoothing).loss
        torch.testing.assert_close(loss, expected)


def test_soft_targets_of_the_stored_index_alone_are_hard(head, frames, targets):
    table = torch.eye(CODEBOOK_SIZE).expand(NUM_CODEBOOKS, -1, -1)
    hard = codebook_loss(head, frames, targets).loss
    soft = codebook_loss(head, frames, targets, soft_targets=table).loss
    torch.testing.assert_close(soft, hard)


@pytest.mark.parametrize("weights", [None, torch.ones(2, 7)])
def test_without_valid_targets_loss_and_gradients_are_zero(
    any_head, frames, options, weights
):
    targets = torch.full((2, 7, NUM_TARGETS), IGNORE)
    output = codebook_loss(any_head, frames, targets, frame_weights=weights, **options)
    assert len(vars(output)) == 7
    assert not any(value.any() for value in vars(output).values())
    for gradient in gradients(output.loss, any_head, frames):
        assert not gradient.any()


def test_absent_targets_have_no_gradient(head, frames, targets, options):
    targets[:, :, 3] = IGNORE
    loss = codebook_loss(head, frames, targets, **options).loss
    frame_gradient, weight_gradient, bias_gradient = gradients(loss, head, frames)
    known = (targets != IGNORE).any(2)
    assert torch.equal(frame_gradient.any(2), known)
    for gradient in (weight_gradient, bias_gradient):
        assert not gradient[-CODEBOOK_SIZE:].any()
        assert gradient[:-CODEBOOK_SIZE].any()


def test_perfect_prediction_is_all_correct(targets):
    """One-hot frames and a head that reads the targets off them."""
    head = IndependentHead(2 * 7, NUM_TARGETS, CODEBOOK_SIZE)
    frames = torch.eye(14).reshape(2, 7, 14)
    wanted = F.one_hot(targets.clamp(min=0), CODEBOOK_SIZE).float()
    head.weight.data = 100 * wanted.reshape(14, -1).T.contiguous()
    codebooks = torch.randn(NUM_CODEBOOKS, CODEBOOK_SIZE, DIM)
    output = codebook_loss(
        head, frames, targets, codebooks=codebooks, embedding_weight=1.0
    )
    assert output.num_correct == output.num_targets
    assert torch.equal(output.correct_by_target, output.count_by_target)
    assert output.count_by_target.sum() == output.num_targets
    assert output.loss.item() == pytest.approx(0, abs=1e-4)


def test_without_gradients_the_loss_is_the_same(any_head, frames, targets, options):
    expected = codebook_loss(any_head, frames, targets, **options).loss
    with torch.no_grad():
        loss = codebook_loss(any_head, frames, targets, **options).loss
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("frozen", ["frames", "head", "both"])
def test_frozen_parts_get_no_gradient(any_head, frames, targets, frozen):
    loss = codebook_loss(any_head, frames, targets).loss
    expected = gradients(loss, any_head, frames)
    if frozen != "head":
        frames = frames.detach()
    if frozen != "frames":
        any_head.requires_grad_(False)
    loss = codebook_loss(any_head, frames, targets).loss
    assert loss.requires_grad == (frozen != "both")
    if loss.requires_grad:
        loss.backward()
    for value, wanted in zip([frames, *any_head.weights()], expected):
        assert (value.grad is not None) == value.requires_grad
        if value.requires_grad:
            torch.testing.assert_close(value.grad, wanted)


def test_loss_does_not_depend_on_padding(any_head, frames, targets, options):
    alone = codebook_loss(any_head, frames[:1, :5], targets[:1, :5], **options)
    padded = targets.clone()
    padded[0, 5:] = padded[1] = IGNORE
    loud = torch.where((padded != IGNORE).any(2, keepdim=True), frames, float("nan"))
    batch = codebook_loss(any_head, loud, padded, **options)
    torch.testing.assert_close(vars(batch), vars(alone))
    of_batch = gradients(batch.loss, any_head, frames)
    torch.testing.assert_close(of_batch, gradients(alone.loss, any_head, frames))


@pytest.mark.parametrize("chunk_frames", [3, 1024])
def test_bfloat16_autocast_is_near_and_trains(
    any_head, frames, targets, options, monkeypatch, chunk_frames
):
    monkeypatch.setattr(losses, "_CHUNK_FRAMES", chunk_frames)
    expected = codebook_loss(any_head, frames, targets, **options).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():  # must not spoil autocast's cache for what follows
            codebook_loss(any_head, frames, targets, **options)
        loss = codebook_loss(any_head, frames, targets, **options).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    pairs = zip(*(gradients(x, any_head, frames) for x in (loss, expected)))
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert (one - other).norm() < 0.03 * other.norm()


def test_half_precision_frames_sum_up_in_float32(any_head, targets, options):
    frames = torch.randn(2, 7, CHANNELS, dtype=torch.bfloat16, requires_grad=True)
    output = codebook_loss(any_head.bfloat16(), frames, targets, **options)
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    for gradient in gradients(output.loss, any_head, frames):
        assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all()


def test_float16_gradients_do_not_overflow_before_the_scaler_can_act(head):
    """All targets alike and one loud channel: the largest sums over a chunk."""
    frames = torch.zeros(1, 512, CHANNELS)
    frames[:, :, 0] = 300.0
    with torch.no_grad():
        head.weight[:, 0] = 0
    targets = torch.zeros(1, 512, NUM_TARGETS, dtype=torch.int64)
    loss = codebook_loss(head, frames, targets).loss
    (wanted,) = torch.autograd.grad(loss, head.weight)
    assert wanted.abs().max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", dtype=torch.float16):
        loss = codebook_loss(head, frames, targets).loss
    (gradient,) = torch.autograd.grad(loss, head.weight)
    torch.testing.assert_close(gradient, wanted, rtol=2e-3, atol=0)


def test_large_factors_of_a_scaler_do_not_overflow(head, frames, targets):
    """A factor beyond float16, as GradScaler's, times gradients that are small."""
    expected = gradients(codebook_loss(head, frames, targets).loss, head, frames)
    half = frames.detach().half().requires_grad_()
    loss = codebook_loss(head.half(), half, targets).loss
    for one, other in zip(gradients(2**20 * (2**-10 * loss), head, half), expected):
        torch.testing.assert_close(one, (2**10 * other).half(), rtol=0.02, atol=10)


def test_half_precision_weights_sum_up_many_chunks(head, monkeypatch):
    monkeypatch.setattr(losses, "_CHUNK_FRAMES", 1)
    frames = torch.zeros(1, 600, CHANNELS)
    targets = torch.zeros(1, 600, NUM_TARGETS, dtype=torch.int64)
    loss = codebook_loss(head.bfloat16(), frames.bfloat16(), targets).loss
    (gradient,) = torch.autograd.grad(loss, head.bias)
    wanted = 600 * (1 / CODEBOOK_SIZE - 1)
    assert gradient[::CODEBOOK_SIZE].tolist() == pytest.approx([wanted] * 4, rel=0.01)


def test_weights_may_be_results_of_others(head, frames, targets):
    """As in the replicas of DataParallel, which have no parameters."""
    expected = gradients(codebook_loss(head, frames, targets).loss, head, frames)
    sources = [weight.detach().requires_grad_() for weight in head.weights()]
    del head.weight, head.bias
    head.weight, head.bias = (1 * source for source in sources)
    assert not list(head.parameters())
    loss = codebook_loss(head, frames, targets).loss
    torch.testing.assert_close(torch.autograd.grad(loss, [frames, *sources]), expected)


def test_gradients_pass_through_autograd_alone(head, frames, targets, monkeypatch):
    """So that DDP's hooks see each weight once, when its gradient is complete."""
    monkeypatch.setattr(losses, "_CHUNK_FRAMES", 3)
    calls = []
    head.weight.register_hook(calls.append)
    loss = codebook_loss(head, frames, targets).loss
    assert head.weight.grad is None and not calls
    loss.backward()
    assert len(calls) == 1 and torch.equal(head.weight.grad, calls[0])


def test_only_gradients_are_kept_for_the_backward_pass(any_head, monkeypatch):
    """As large as frames and weights: no logits, however many frames."""
    monkeypatch.setattr(losses, "_CHUNK_FRAMES", 16)
    frames = torch.randn(1, 50, CHANNELS, requires_grad=True)
    targets = torch.randint(0, CODEBOOK_SIZE, (1, 50, NUM_TARGETS))
    output = codebook_loss(any_head, frames, targets)
    kept = output.loss.grad_fn.saved_tensors
    expected = [frames[0].shape, *(weight.shape for weight in any_head.weights())]
    assert [value.shape for value in kept] == expected


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"label_smoothing": 1.5}, "label_smoothing: got 1.5"),
        ({"embedding_weight": -1.0}, "embedding_weight: got -1.0"),
        ({"embedding_weight": 1.0}, "without codebooks"),
        ({"soft_targets": torch.ones(3, 5, 5)}, r"soft_targets: got shape \(3, 5, 5\)"),
        ({"soft_targets": torch.ones(2, 5, 4)}, "soft_targets: got shape"),
        ({"codebooks": torch.ones(2, 4, 3)}, "K is 5"),
        ({"codebooks": torch.ones(2, 5)}, "codebooks: got shape"),
    ],
)
def test_bad_options_are_refused(head, frames, targets, wrong, message):
    with pytest.raises(ValueError, match=message):
        codebook_loss(head, frames, targets, **wrong)
    with pytest.raises(ValueError, match="targets: got shape"):
        codebook_loss(head, frames, targets[:, :, :3])


def test_frame_weights_are_those_of_losses_alone(any_head, frames, targets, options):
    weights = torch.rand(frames.shape[:2]) * 2
    output = codebook_loss(any_head, frames, targets, frame_weights=weights, **options)
    expected = 0
    for b, t in itertools.product(*map(range, weights.shape)):
        part = frames[b : b + 1, t : t + 1], targets[b : b + 1, t : t + 1]
        alone = codebook_loss(any_head, *part, **options).loss
        expected = expected + weights[b, t] * alone
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(
        gradients(output.loss, any_head, frames), gradients(expected, any_head, frames)
    )
    plain = codebook_loss(any_head, frames, targets, **options)
    for name in ("num_correct", "cross_entropy"):
        torch.testing.assert_close(getattr(output, name), getattr(plain, name))
