"""Weights of utterances in the losses of ESPnet's tasks.

The reference runs every utterance alone through the stock model.
"""

import contextlib
import copy
import functools

import builders
import pytest
import torch
from builders import ATTENTION, INTERCTC, OWSM_CTC, SIZES, TRANSDUCER, build_task

from espnet_mvq.plugin.criterion_weighting import CriterionWeighting

pytestmark = pytest.mark.usefixtures("numba_rnnt_loss")
QUIET = {"report_cer": False, "report_wer": False}
WEIGHTS = torch.tensor([0.3, 1.7, 0.9])
# Task of `TASKS`, further options, further `model_conf`, calls of criteria in order
CASES = {
    "asr": ("asr", {}, {"lsm_weight": 0.1}, ["ctc", "criterion_att"]),
    "asr with ctc alone": ("asr", {}, {"ctc_weight": 1.0}, ["ctc"]),
    "asr with attention alone": ("asr", {}, {"ctc_weight": 0.0}, ["criterion_att"]),
    "asr with interctc": (
        "asr",
        {"encoder_conf": {**SIZES, **INTERCTC}},
        {"interctc_weight": 0.4},
        ["ctc", "ctc", "criterion_att"],
    ),
    "asr with transducer": (
        "asr",
        TRANSDUCER,
        {"ctc_weight": 0.3},
        ["ctc", "criterion_transducer"],
    ),
    "maskctc": ("maskctc", {}, {}, ["ctc", "criterion_mlm"]),
    "slu": ("slu", {}, {}, ["ctc", "criterion_att"]),
    "s2t": ("s2t", {}, {}, ["ctc", "criterion_att"]),
    "s2t_ctc": (
        "s2t_ctc",
        {"encoder_conf": {**OWSM_CTC, **INTERCTC}},
        {"interctc_weight": 0.4, "ctc_asr_only": [True, False]},
        ["ctc", "ctc"],
    ),
    "asr_transducer": (
        "asr_transducer",
        {},
        {"auxiliary_ctc_weight": 0.3, "auxiliary_lm_loss_weight": 0.2},
        ["criterion_transducer", "aux_ctc", "aux_lm"],
    ),
    "st": (
        "st",
        {"extra_asr_decoder": "transformer", "extra_asr_decoder_conf": ATTENTION},
        {"asr_weight": 0.3, "mtlalpha": 0.4, "st_mtlalpha": 0.2, "report_bleu": False},
        ["ctc", "st_ctc", "criterion_asr", "criterion_st"],
    ),
    "st with transducer": (
        "st",
        {**TRANSDUCER, "st_joint_net_conf": TRANSDUCER["joint_net_conf"]},
        {"report_bleu": False},
        ["st_criterion_transducer"],
    ),
}


@pytest.fixture(autouse=True)
def mask_every_other(monkeypatch):
    """Let Mask-CTC mask the same labels of an utterance in every batch."""

    def mask(text, mask_token, eos, ignore_id):
        masked = (torch.arange(text.shape[1]) % 2 == 0) & (text != ignore_id)
        inputs = text.masked_fill(masked, mask_token)
        return inputs.masked_fill(text == ignore_id, eos), text.masked_fill(
            ~masked, ignore_id
        )

    monkeypatch.setattr("espnet2.asr.maskctc_model.mask_uniform", mask)


@functools.lru_cache(maxsize=None)
def build_once(name, **model_conf):
    """Build a stock model."""
    task, options, conf, _ = CASES[name]
    conf = {**QUIET, **conf, **model_conf}
    return build_task(task, mvq=False, model_conf=conf, **options)


def build(name, **model_conf):
    """Return a stock model of its own; the same weights every time."""
    return copy.deepcopy(build_once(name, **model_conf))


def make_batch(name, empty=False):
    """Return three utterances; with `empty` the second has no text.

    They are equally long: the front end tells the end of an utterance from padding.
    """
    text = torch.tensor([[2, 3, 2, 2], [3, 3, -1, -1], [2, 3, 3, -1]])
    lengths = torch.tensor([4, 2, 3])
    if empty:
        text[1], lengths[1] = -1, 0
    speech = 0.1 * torch.randn(3, 9600, generator=torch.Generator().manual_seed(0))
    batch = {
        "speech": speech,
        "speech_lengths": torch.tensor([9600] * 3),
        "text": text,
        "text_lengths": lengths,
    }
    batch = builders.make_task_batch(CASES[name][0], batch)
    if name == "s2t_ctc":
        batch["text_prev"] = text.masked_fill(text == -1, 2)
        batch["text_prev_lengths"] = torch.tensor([4] * 3)
    return batch


def step(model, batch):
    """Run forward and backward; return loss, statistics and gradients."""
    loss, stats, _, gradients = builders.step(model, batch)
    for name, parameter in model.named_parameters():
        if gradients[name] is None:
            gradients[name] = torch.zeros(()).expand(parameter.shape)
    return loss.sum(), stats, gradients


def step_weighed(model, batch, weights):
    """Run the same with weights; return losses and labels of each criterion, too."""
    calls = []

    def weigh(losses, labels):
        calls.append((losses, labels))
        return weights

    with CriterionWeighting(model).weighted_by(weigh):
        results = step(model, batch)
    return (*results, calls)


@functools.lru_cache(maxsize=None)
def steps_alone(name):
    """Run each utterance alone, without weights."""
    model, batch = build(name).eval(), make_batch(name)
    parts = [{key: v[n : n + 1] for key, v in batch.items()} for n in range(3)]
    return [step(model, part) for part in parts]


def assert_mean(loss, gradients, name, weights):
    """Compare with the weighted mean of the utterances that ran alone."""
    pairs = [pair for pair in zip(weights, steps_alone(name)) if pair[0]]
    expected = sum(weight * alone[0] for weight, alone in pairs) / 3
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for key, gradient in gradients.items():
        expected = sum(weight * alone[2][key] for weight, alone in pairs) / 3
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_weights_of_one_change_nothing(name):
    models = [build(name).train() for _ in range(2)]
    batch = make_batch(name)
    loss, stats, gradients = step(models[0], batch)
    ours, our_stats, our_gradients, calls = step_weighed(
        models[1], batch, torch.ones(3)
    )
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(our_gradients, gradients, rtol=1e-4, atol=1e-5)
    for key, value in stats.items():
        assert value is our_stats[key] is None or torch.allclose(our_stats[key], value)
    assert len(calls) == len(CASES[name][3])


@pytest.mark.parametrize("name", CASES)
def test_loss_is_the_weighted_mean_of_utterances_alone(name):
    loss, stats, gradients, calls = step_weighed(
        build(name).eval(), make_batch(name), WEIGHTS
    )
    assert_mean(loss, gradients, name, WEIGHTS)
    for key, criterion in [("loss_ctc", "ctc"), ("loss_att", "criterion_att")]:
        if criterion in CASES[name][3] and stats.get(key) is not None:
            losses, _ = calls[CASES[name][3].index(criterion)]
            expected = torch.cat([one[1][key] for one in steps_alone(name)])
            torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_utterance_of_weight_zero_has_no_effect(name, empty):
    if empty and name == "maskctc":
        pytest.skip("stock Mask-CTC masks at least one label, so it needs one")
    weights = torch.tensor([0.3, 0.0, 1.9])
    loss, _, gradients, calls = step_weighed(
        build(name).eval(), make_batch(name, empty), weights
    )
    assert_mean(loss, gradients, name, weights)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    labels = dict(zip(CASES[name][3], (labels.tolist() for _, labels in calls)))
    if empty and "ctc" in labels:
        assert labels["ctc"][1] == 0
    if empty and "criterion_att" in labels:
        assert labels["criterion_att"] == [5, 1, 4]  # <eos>, too


@pytest.mark.parametrize("name", ["asr", "asr_transducer", "s2t_ctc"])
def test_nothing_is_left_of_a_batch_without_weights(name):
    model, batch = build(name).train(), make_batch(name, empty=True)
    loss, _, gradients, _ = step_weighed(model, batch, torch.zeros(3))
    assert loss == 0 and not any(g.any() for g in gradients.values())
    reached = [n for n, p in model.named_parameters() if p.grad is None]
    step(model, make_batch(name))
    assert reached == [n for n, p in model.named_parameters() if p.grad is None]


def test_utterances_that_s2t_leaves_out_are_weighed_in_their_place():
    model, batch = build("s2t_ctc", interctc_weight=0.0).eval(), make_batch("s2t_ctc")
    parts = [{key: v[n : n + 1] for key, v in batch.items()} for n in (0, 2)]
    alone = [step(model, part)[0] for part in parts]
    batch["text"][1, 0] = model.na
    loss, _, _, [(losses, labels)] = step_weighed(model, batch, WEIGHTS)
    expected = (WEIGHTS[0] * alone[0] + WEIGHTS[2] * alone[1]) / 2
    torch.testing.assert_close(loss, expected)
    assert labels.tolist() == [4, 0, 3] and losses[1] == 0
    batch["text"][:, 0] = model.na
    with CriterionWeighting(model).weighted_by(fail):  # not called, and no error
        model(**batch)


def fail(losses, labels):
    """Stand for a caller's mistake."""
    raise RuntimeError("of the caller's")


@pytest.mark.parametrize("name", CASES)
def test_outside_the_block_the_model_is_stock(name):
    model, batch = build(name).eval(), make_batch(name)
    before = step(model, batch)  # asr_transducer builds its criterion in it
    keys, modules = list(model.state_dict()), [dict(vars(m)) for m in model.modules()]
    criteria = CriterionWeighting(model)
    for weigh in (lambda losses, labels: WEIGHTS, fail):
        with contextlib.suppress(RuntimeError), criteria.weighted_by(weigh):
            step(model, batch)
        for module, attributes in zip(model.modules(), modules):
            assert vars(module).keys() == attributes.keys()
            same = [vars(module)[k] is v for k, v in attributes.items() if callable(v)]
            assert all(same)
    assert list(model.state_dict()) == keys
    after = step(model, batch)
    assert torch.equal(after[0], before[0])
    assert all(torch.equal(after[2][key], value) for key, value in before[2].items())


def test_half_precision():
    model, batch = build("asr").eval(), make_batch("asr")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _, gradients = step(model, batch)
        ours, _, our_gradients, calls = step_weighed(model, batch, torch.ones(3))
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(our_gradients, gradients)
    assert all(losses.dtype == torch.float32 for losses, _ in calls)


def test_checkpointed_encoder():
    model, batch = build("asr").eval(), make_batch("asr")
    expected = step_weighed(model, batch, WEIGHTS)
    for layer in model.encoder.encoders:
        stock = layer.forward
        layer.forward = lambda *args, stock=stock: torch.utils.checkpoint.checkpoint(
            stock, *args, use_reentrant=False
        )
    loss, _, gradients, _ = step_weighed(model, batch, WEIGHTS)
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(gradients[key], g) for key, g in expected[2].items())


class Weighed(torch.nn.Module):
    """Model that weights utterances in its forward, as `model: mvq` does."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.criteria = CriterionWeighting(model)

    def forward(self, weights, **batch):
        with self.criteria.weighted_by(lambda losses, labels: weights):
            loss, stats, weight = self.model(**batch)
        return loss, stats, weight


def test_two_ranks_one_without_weights(tmp_path):
    model, batch = Weighed(build("asr")), make_batch("asr")
    before = model.model.ctc.ctc_lo.weight.detach().clone()
    inputs = [{**batch, "weights": WEIGHTS}, {**batch, "weights": 0 * WEIGHTS}]
    state, _ = builders.train_on_two_ranks(tmp_path, model, inputs)
    assert not torch.equal(state["model.ctc.ctc_lo.weight"], before)


@pytest.mark.parametrize(
    "weights, message",
    [
        (torch.ones(2), "expected 3 numbers, each at least 0"),
        (torch.ones(3, 1), "ESPnetASRModel: ctc: got the weights"),
        (torch.tensor([1.0, -0.1, 1.0]), "expected 3 numbers, each at least 0"),
        (torch.tensor([1.0, float("nan"), 1.0]), "expected 3 numbers"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        step_weighed(build("asr"), make_batch("asr"), weights)


class SumOfLogits(torch.nn.Module):
    """Criterion without a loss per utterance."""

    def forward(self, logits, *others):
        return logits.sum()


def test_late_criterion_that_cannot_be_weighed_is_refused(monkeypatch):
    monkeypatch.setattr("warprnnt_pytorch.RNNTLoss", lambda **options: SumOfLogits())
    with pytest.raises(ValueError, match="got SumOfLogits with reduction None, expec"):
        step_weighed(build("asr_transducer"), make_batch("asr_transducer"), WEIGHTS)
