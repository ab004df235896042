"""Weights of utterances in single criteria: formulas, what is infinite, refusals."""

import copy
import pickle

import numpy as np
import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import LabelSmoothingLoss

from espnet_mvq.plugin.criterion_weighting import CriterionWeighting

WEIGHTS = torch.tensor([0.3, 1.7, 0.9])


class Criteria(torch.nn.Module):
    """Model that has nothing but criteria."""

    def __init__(self, **criteria):
        super().__init__()
        for name, criterion in criteria.items():
            setattr(self, name, criterion)


def test_infinite_loss_of_weight_zero_leaves_no_trace():
    ctc = CTC(odim=5, encoder_output_size=4, zero_infinity=False)
    criteria = CriterionWeighting(Criteria(ctc=ctc))
    frames = torch.randn(3, 6, 4, requires_grad=True)
    labels, lengths = torch.randint(1, 5, (3, 8)), torch.tensor([3, 8, 0])
    calls = []

    def weigh(losses, labels):
        calls.append(losses)
        return losses.isfinite().float()

    with criteria.weighted_by(weigh):
        loss = ctc(frames, torch.tensor([6, 6, 6]), labels, lengths)
    loss.backward()
    (losses,) = calls
    assert losses.isinf().tolist() == [False, True, False]
    assert loss.isfinite() and frames.grad.isfinite().all()
    assert ctc.ctc_lo.weight.grad.isfinite().all()
    assert frames.grad.flatten(1).any(1).tolist() == [True, False, True]
    torch.testing.assert_close(loss, losses[[0, 2]].sum() / 3)


class BrokenTransducer(torch.nn.Module):
    """Loss of which loss and gradient of utterance 1 are NaN."""

    reduction = "mean"

    def forward(self, logits, targets, frames, labels):
        losses = logits.flatten(1).square().sum(1)
        losses = losses * torch.tensor([1.0, float("nan"), 1.0])
        return losses.mean() if self.reduction == "mean" else losses


def test_broken_transducer_loss_of_weight_zero_leaves_no_trace():
    model = Criteria(criterion_transducer=BrokenTransducer())
    criteria, weights = CriterionWeighting(model), torch.tensor([1.0, 0.0, 2.0])
    logits = torch.randn(3, 4, 3, 5, requires_grad=True)
    others = [torch.ones(3, 2), torch.tensor([4] * 3), torch.tensor([2] * 3)]
    with criteria.weighted_by(lambda losses, labels: weights):
        loss = model.criterion_transducer(logits, *others)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    assert logits.grad.flatten(1).any(1).tolist() == [True, False, True]
    assert "reduction" not in vars(model.criterion_transducer)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("normalize_length", [True, False])
def test_label_smoothing_by_its_formula(normalize_length, smoothing):
    criterion = LabelSmoothingLoss(5, -1, smoothing, normalize_length)
    criteria = CriterionWeighting(Criteria(criterion_att=criterion))
    logits = torch.randn(3, 4, 5)
    targets = torch.tensor([[1, 2, 3, 4], [0, -1, -1, -1], [-1, -1, -1, -1]])
    log_probs, losses = logits.log_softmax(2), []
    for b in range(3):
        losses.append(torch.zeros(()))
        for t, label in enumerate(targets[b].tolist()):
            for v in range(5 if label >= 0 else 0):
                p = 1 - smoothing if v == label else smoothing / 4
                entropy = p * np.log(p) if p > 0 else 0.0
                losses[b] += entropy - p * log_probs[b, t, v]
    losses, divisor = torch.stack(losses), 5 if normalize_length else 3
    calls = []

    def weigh(*call):
        calls.append(call)
        return WEIGHTS

    with criteria.weighted_by(weigh):
        loss = criterion(logits, targets)
    torch.testing.assert_close(loss, (WEIGHTS * losses).sum() / divisor)
    [(given_losses, labels)] = calls
    torch.testing.assert_close(given_losses, losses)
    assert labels.tolist() == [4, 1, 0]
    torch.testing.assert_close(losses.sum() / divisor, criterion(logits, targets))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_torchaudios_transducer_loss(reduction):
    torchaudio = pytest.importorskip("torchaudio")
    criterion = torchaudio.transforms.RNNTLoss(blank=0, reduction=reduction)
    criteria = CriterionWeighting(Criteria(criterion_transducer=criterion))
    logits = torch.randn(3, 5, 4, 6, requires_grad=True)
    targets = torch.randint(1, 6, (3, 3), dtype=torch.int32)
    frames = torch.tensor([5, 4, 5], dtype=torch.int32)
    labels = torch.tensor([3, 0, 2], dtype=torch.int32)
    stock = criterion(logits, targets, frames, labels)
    calls = []

    def weigh(*call):
        calls.append(call)
        return WEIGHTS

    with criteria.weighted_by(weigh):
        loss = criterion(logits, targets, frames, labels)
    [(losses, given_labels)] = calls
    divisor = 3 if reduction == "mean" else 1
    torch.testing.assert_close(losses.sum() / divisor, stock.detach())
    torch.testing.assert_close(loss, (WEIGHTS * losses).sum() / divisor)
    assert given_labels.tolist() == labels.tolist()
    assert criterion.reduction == reduction


def test_copies_of_a_model_have_their_own_criteria():
    model = Criteria(ctc=CTC(odim=5, encoder_output_size=4))
    model.criteria = CriterionWeighting(model)
    with model.criteria.weighted_by(lambda losses, labels: torch.ones(1)):
        model.ctc(torch.ones(1, 2, 4), torch.tensor([2]), *torch.ones(2, 1, 1).long())
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other is not model and other.criteria._model is other


def test_weighing_nothing_is_refused():
    criteria = CriterionWeighting(Criteria(ctc=CTC(odim=5, encoder_output_size=4)))
    with pytest.raises(ValueError, match="none of its criteria ran"):
        with criteria.weighted_by(lambda losses, labels: WEIGHTS):
            pass


class OtherSmoothing(torch.nn.Module):
    """Criterion that looks like ESPnet's but computes otherwise."""

    padding_idx, normalize_length = -1, False

    def __init__(self):
        super().__init__()
        self.criterion = torch.nn.KLDivLoss(reduction="none")

    def forward(self, logits, targets):
        return logits.sum()


def test_criterion_that_computes_otherwise_is_refused():
    criterion = OtherSmoothing()
    criteria = CriterionWeighting(Criteria(criterion_att=criterion))
    with pytest.raises(ValueError, match="its criterion_att cannot be .* kl_div"):
        with criteria.weighted_by(lambda losses, labels: WEIGHTS):
            criterion(torch.ones(3, 2, 5), torch.ones(3, 2))


class NoReduction(torch.nn.Module):
    def forward(self, *args):
        return args[0].sum()


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"criterion_classif": torch.nn.CrossEntropyLoss()}, "classif is not known: u"),
        ({"criterion_new": NoReduction()}, "criterion_new is not known"),
        ({"superb_setup": True}, "superb_setup computes a loss per batch"),
        ({"use_k2_pruned_loss": True}, "set use_k2_pruned_loss: false"),
        (
            {"ctc": CTC(5, 4, ctc_type="builtin2")},
            "ctc_type builtin2, expected builtin",
        ),
        ({"criterion_att": NoReduction()}, "att: expected ESPnet's LabelSmoothingLoss"),
        ({"criterion_transducer": len}, "got builtin_function_or_method with reduc"),
        ({"st_criterion_transducer": NoReduction()}, "got NoReduction with reduction"),
        ({}, "it has no criterion that is known"),
        (
            {"use_k2_pruned_loss": True, "criterion_a": None},
            "Criteria: its loss cannot be weighed by utterance: criterion_a .*; k2's",
        ),
    ],
)
def test_models_that_cannot_be_weighed_are_refused(attributes, message):
    with pytest.raises(ValueError, match=message):
        CriterionWeighting(Criteria(**attributes))
