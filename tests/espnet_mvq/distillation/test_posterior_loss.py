"""Divergence from stored posteriors against dense and frame-by-frame references."""

import math

import numpy as np
import pytest
import torch

from espnet_mvq.distillation import posterior_loss, read_sparse, sparse_posteriors

V = 7


@pytest.fixture
def logits():
    """Return logits of a student and of a teacher, (5, V) each."""
    return torch.randn(5, V, requires_grad=True), 3 * torch.randn(5, V)


def sparse(teacher, top_k):
    """Return tokens and exact log-probabilities of these and of the rest."""
    log_probs = teacher.log_softmax(1)
    top, tokens = log_probs.topk(top_k, 1)
    rest = 1 - top.exp().sum(1, keepdim=True).clamp(max=1)
    return tokens, torch.cat([top, rest.log()], 1)


def dense_loss(student, teacher, temperature=1.0):
    """Return the divergence over all tokens, summed over frames."""
    teacher, student = (x / temperature for x in (teacher, student))
    divergence = torch.nn.functional.kl_div(
        student.log_softmax(1),
        teacher.log_softmax(1),
        log_target=True,
        reduction="sum",
    )
    return temperature**2 * divergence


def explicit_loss(student, teacher, top_k, temperature):
    """Compute the loss of a frame from plain numbers."""
    q, p = student.softmax(0).tolist(), teacher.softmax(0).tolist()
    best = sorted(range(V), key=lambda token: -p[token])[:top_k]
    others = [token for token in range(V) if token not in best]

    def classes(probs):
        values = [probs[token] for token in best] + [sum(probs[t] for t in others)]
        values = [value ** (1 / temperature) for value in values]
        return [value / sum(values) for value in values]

    pairs = zip(classes(p), classes(q))
    return temperature**2 * sum(a * math.log(a / b) for a, b in pairs)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_equals_the_dense_divergence_where_all_tokens_are_stored(logits, temperature):
    student, teacher = logits
    tokens, log_probs = sparse(teacher, V)
    log_probs[:, -1] = -math.inf
    actual = posterior_loss(student, tokens, log_probs, temperature).loss
    (gradient,) = torch.autograd.grad(actual, student)
    expected = dense_loss(student, teacher, temperature)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    (expected,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k, temperature", [(1, 1.0), (3, 1.0), (3, 2.0)])
def test_all_other_tokens_are_one_class(logits, top_k, temperature):
    student, teacher = logits
    output = posterior_loss(student, *sparse(teacher, top_k), temperature)
    losses = [explicit_loss(*pair, top_k, temperature) for pair in zip(*logits)]
    assert output.loss.item() == pytest.approx(sum(losses), rel=1e-4)
    assert output.divergence.item() == pytest.approx(sum(losses), rel=1e-4)
    assert output.num_agreeing == (student.argmax(1) == teacher.argmax(1)).sum()
    if temperature == 1:
        assert output.loss <= dense_loss(student, teacher) + 1e-5


def test_a_student_like_the_teacher_has_no_loss_and_no_gradient(logits):
    student, _ = logits
    output = posterior_loss(student, *sparse(student.detach(), 3))
    output.loss.backward()
    assert abs(output.loss.item()) < 1e-5 and student.grad.abs().max() < 1e-5


def test_frames_have_weights(logits):
    student, teacher = logits
    target = sparse(teacher, 3)
    each = [
        posterior_loss(student[n : n + 1], *(t[n : n + 1] for t in target)).loss
        for n in range(5)
    ]
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])
    output = posterior_loss(student, *target, weights=weights)
    torch.testing.assert_close(output.loss, (torch.stack(each) * weights).sum())
    torch.testing.assert_close(output.divergence, torch.stack(each).sum().detach())


def test_no_frames(logits):
    student, teacher = logits
    output = posterior_loss(student[:0], *sparse(teacher[:0], 3))
    output.loss.backward()
    assert output.loss == 0 and output.num_frames == 0 and not student.grad.any()


def test_student_with_more_tokens_and_half_precision(logits):
    """The rest has all tokens that the teacher does not know."""
    student, teacher = logits
    tokens, log_probs = sparse(teacher, V)
    log_probs[:, -1] = -math.inf
    more = torch.cat([student, torch.full((5, 2), 1.0)], 1)
    with torch.autocast("cpu", torch.bfloat16):
        actual = posterior_loss(more.bfloat16(), tokens, log_probs).loss
    padded = torch.cat([teacher, torch.full((5, 2), -50.0)], 1)
    expected = dense_loss(more, padded)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("top_k", [1, 4, V])
def test_stored_form_keeps_probabilities(logits, top_k):
    teacher = 4 * torch.randn(200, V)
    stored = sparse_posteriors(teacher, top_k)
    assert stored.shape == (200, 2 * top_k + 1) and stored.min() >= 0
    np.testing.assert_array_equal(stored.numpy().astype(np.uint16), stored.numpy())
    tokens, log_probs = read_sparse(stored.long())
    probs = teacher.softmax(1)
    for row, kept, expected in zip(tokens.tolist(), log_probs.exp(), probs):
        best = sorted(range(V), key=lambda token: -expected[token])[:top_k]
        assert row == best
        torch.testing.assert_close(kept[:-1], expected[best], rtol=3e-4, atol=0)
        rest = sum(float(expected[t]) for t in range(V) if t not in best)
        assert float(kept[-1]) == pytest.approx(rest, rel=3e-4)
    if top_k == V:
        assert not log_probs[:, -1].exp().any()


def test_certain_frame_is_stored_and_learned():
    """Probabilities below those that float32 has are 0; nothing becomes NaN."""
    teacher = torch.tensor([[100.0, 0.0, -100.0]])
    student = torch.zeros(1, 3, requires_grad=True)
    target = read_sparse(sparse_posteriors(teacher, 2).long())
    loss = posterior_loss(student, *target, temperature=2.0).loss
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()
    assert student.grad[0, 0] < 0 < student.grad[0, 1]
