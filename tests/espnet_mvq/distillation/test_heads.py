"""Heads against their formulas written out, and against multi_quantization's."""

import pytest
import torch

from espnet_mvq.distillation import (
    HEADS,
    IGNORE,
    IndependentHead,
    JointHead,
    codebook_loss,
)

CHANNELS, CODEBOOK_SIZE, HIDDEN = 8, 5, 12


def explicit_joint_logits(head, frame, targets):
    """Compute the logits of one frame (C,), one index at a time, from JointHead's."""
    size, num_targets = head.codebook_size, head.num_targets
    hidden = head.hidden.weight @ frame + head.hidden.bias
    scale = 0.5 * (len(hidden) / num_targets) ** 0.5
    logits = []
    for j in range(num_targets):
        own = slice(j * size, (j + 1) * size)
        independent = head.weight[own] @ frame + head.bias[own]
        logits.append(independent + head.hidden_weight[j] @ hidden.clamp(min=0))
        if j + 1 < num_targets and targets[j] != IGNORE:
            hidden = hidden + scale * head.context[j * size + targets[j]]
    return torch.stack(logits)


def copy_of(theirs, channels):
    """Return our joint head with the weights of a JointCodebookLoss."""
    num_targets, size, hidden = theirs.linear2_weight.shape
    head = JointHead(channels, num_targets, size, hidden)
    with torch.no_grad():
        head.weight.copy_(theirs.linear2b_weight.reshape(-1, channels))
        head.bias.copy_(theirs.linear2_bias.reshape(-1))
        head.hidden.load_state_dict(theirs.linear1.state_dict())
        head.hidden_weight.copy_(theirs.linear2_weight)
        head.context.copy_(theirs.codebook_embedding.weight)
    return head


def test_independent_head_gives_each_target_its_own_logits():
    head = IndependentHead(CHANNELS, 4, CODEBOOK_SIZE)
    x = torch.randn(3, CHANNELS)
    logits = head(x)
    assert logits.shape == (3, 4, CODEBOOK_SIZE)
    rows = head.weight[CODEBOOK_SIZE : 2 * CODEBOOK_SIZE]
    torch.testing.assert_close(logits[:, 1], x @ rows.T)
    assert torch.equal(head(x, torch.zeros(3, 4, dtype=torch.int64)), logits)


def test_initial_logits_are_near_chance():
    head = IndependentHead(64, 2, 256)
    assert torch.equal(head.bias, torch.zeros(512))
    logits = head(torch.randn(200, 64)).detach()
    assert float(logits.std()) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("num_targets", [1, 2, 3, 8])
def test_joint_head_equals_its_formula(num_targets):
    head = JointHead(CHANNELS, num_targets, CODEBOOK_SIZE, HIDDEN)
    torch.nn.init.normal_(head.bias)
    x = torch.randn(6, CHANNELS)
    targets = torch.randint(-1, CODEBOOK_SIZE, (6, num_targets))
    expected = [explicit_joint_logits(head, *pair) for pair in zip(x, targets)]
    torch.testing.assert_close(head(x, targets), torch.stack(expected))


def test_joint_head_depends_on_earlier_targets_only():
    head = JointHead(CHANNELS, 4, CODEBOOK_SIZE, HIDDEN)
    x, targets = torch.randn(1, CHANNELS), torch.tensor([[1, 2, 3, 4]])
    logits = head(x, targets)
    for j in range(4):
        other = targets.clone()
        other[0, j] = 0
        changed = (head(x, other) != logits).any(2)[0].tolist()
        assert changed == [place > j for place in range(4)]
    with pytest.raises(ValueError, match="targets: got None"):
        head(x)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("num_targets", [1, 2, 6])
def test_every_parameter_is_used(name, num_targets):
    head = HEADS[name](CHANNELS, num_targets, CODEBOOK_SIZE)
    weights = head.weights()
    assert {id(w) for w in weights} == {id(p) for p in head.parameters()}
    frames = torch.randn(1, 50, CHANNELS)
    targets = torch.randint(0, CODEBOOK_SIZE, (1, 50, num_targets))
    codebook_loss(head, frames, targets).loss.backward()
    assert all(p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("is_joint", [True, False])
@pytest.mark.parametrize("num_targets", [2, 5])
def test_loss_and_gradients_equal_multi_quantization(is_joint, num_targets):
    """Also with two slots: icefall concatenates neighbouring teacher frames too."""
    prediction = pytest.importorskip("multi_quantization.prediction")
    theirs = prediction.JointCodebookLoss(
        CHANNELS, num_targets, HIDDEN, CODEBOOK_SIZE, is_joint=is_joint
    )
    torch.nn.init.normal_(theirs.linear2_bias)
    joint = copy_of(theirs, CHANNELS)
    head = joint
    if not is_joint:
        head = IndependentHead(CHANNELS, num_targets, CODEBOOK_SIZE)
        head.load_state_dict({k: getattr(joint, k) for k in ("weight", "bias")})
    frames = torch.randn(2, 7, CHANNELS, requires_grad=True)
    targets = torch.randint(0, CODEBOOK_SIZE, (2, 7, num_targets))
    targets[1, 4:] = IGNORE
    expected = theirs(frames, targets.masked_fill(targets == IGNORE, -100))
    expected.backward()
    expected_gradient, frames.grad = frames.grad, None
    loss = codebook_loss(head, frames, targets).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(frames.grad, expected_gradient)
    pairs = {
        "weight": theirs.linear2b_weight,
        "bias": theirs.linear2_bias,
        "hidden.weight": theirs.linear1.weight,
        "hidden.bias": theirs.linear1.bias,
        "hidden_weight": theirs.linear2_weight,
        "context": theirs.codebook_embedding.weight,
    }
    for name, parameter in head.named_parameters():
        wanted = pairs[name].grad.reshape(parameter.shape)
        torch.testing.assert_close(parameter.grad, wanted)


def test_joint_head_predicts_indexes_that_depend_on_each_other():
    """Pairs of equal random indexes: nothing to learn but that they are equal."""
    heads = {name: HEADS[name](4, 2, CODEBOOK_SIZE) for name in HEADS}
    frames = torch.zeros(1, 64, 4)
    targets = torch.arange(64).reshape(1, 64, 1) % CODEBOOK_SIZE
    targets = targets.expand(1, 64, 2)
    correct = {}
    for name, head in heads.items():
        optimizer = torch.optim.Adam(head.parameters(), 0.01)
        for _ in range(40):
            optimizer.zero_grad()
            output = codebook_loss(head, frames, targets)
            output.loss.backward()
            optimizer.step()
        correct[name] = int(output.num_correct)
    assert correct["joint"] >= 64 and correct["independent"] < 40
