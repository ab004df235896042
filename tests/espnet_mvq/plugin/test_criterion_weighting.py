"""Weights of utterances in the losses of ESPnet's tasks.

The reference runs every utterance alone through the stock model.
"""

import contextlib
import copy
import functools
import importlib
import sys
import types

import pytest
import torch
import torch.distributed as dist
from test_tasks import COMMON, SIZES, TASKS, TRANSDUCER
from torch.nn.parallel import DistributedDataParallel

from espnet_mvq.plugin.criterion_weighting import CriterionWeighting

QUIET = {"report_cer": False, "report_wer": False}
INTERCTC = {"interctc_layer_idx": [1], "interctc_use_conditioning": True}
WEIGHTS = torch.tensor([0.3, 1.7, 0.9])
ATTENTION = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
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
        {"encoder_conf": {**TASKS["s2t_ctc"][4]["encoder_conf"], **INTERCTC}},
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
def rnnt_loss(monkeypatch):
    """Put ESPnet's own numba loss, of the same interface, for the compiled one."""
    from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba

    module = types.ModuleType("warprnnt_pytorch")
    module.RNNTLoss = RNNTLossNumba
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", module)


@pytest.fixture(autouse=True)
def mask_every_other(monkeypatch):
    """Let Mask-CTC mask the same labels of an utterance in every batch."""

    def mask(text, mask_token, eos, ignore_id):
        masked = (torch.arange(text.shape[1]) % 2 == 0) & (text != ignore_id)
        shown = text.masked_fill(masked, mask_token).masked_fill(text == ignore_id, eos)
        return shown, text.masked_fill(~masked, ignore_id)

    monkeypatch.setattr("espnet2.asr.maskctc_model.mask_uniform", mask)


@functools.lru_cache(maxsize=None)
def build_once(name, **model_conf):
    """Build a stock model."""
    key, options, conf, _ = CASES[name]
    module, task, _, stock, task_options = TASKS[key]
    task = getattr(importlib.import_module(f"espnet2.tasks.{module}"), task)
    args = task.get_parser().parse_args(["--output_dir", "unused"])
    for option, value in {**COMMON, **task_options, **options}.items():
        setattr(args, option, copy.deepcopy(value))
    if stock:
        args.model = stock
    args.model_conf = {**args.model_conf, **QUIET, **conf, **model_conf}
    torch.manual_seed(1)
    return task.build_model(args)


def build(name, **model_conf):
    """Return a stock model of its own; the same weights every time."""
    return copy.deepcopy(build_once(name, **model_conf))


def make_batch(name, empty=False):
    """Return three utterances; the second has no text if so wished.

    They are equally long: the front end shows an utterance's end other than padding.
    """
    text = torch.tensor([[2, 3, 2, 2], [3, 3, -1, -1], [2, 3, 3, -1]])
    lengths = torch.tensor([4, 2, 3])
    if empty:
        text[1], lengths[1] = -1, 0
    speech = 0.1 * torch.randn(3, 9600)
    batch = {"speech": speech, "speech_lengths": torch.tensor([9600] * 3)}
    names = {"s2t": ["text_prev", "text_ctc"], "st": ["src_text"]}
    names["s2t_ctc"] = names["s2t"]
    for key in ["text", *names.get(CASES[name][0], [])]:
        batch[key], batch[f"{key}_lengths"] = text.clone(), lengths.clone()
    if name == "s2t_ctc":
        batch["text_prev"] = text.masked_fill(text == -1, 2)
        batch["text_prev_lengths"] = torch.tensor([4] * 3)
        batch["prefix"] = torch.tensor([[2, 3]] * 3)
        batch["prefix_lengths"] = torch.tensor([2] * 3)
    return batch


def step(model, batch):
    """Run forward and backward; return loss, statistics and gradients."""
    torch.manual_seed(5)  # dropout
    model.zero_grad()
    loss, stats, _ = model(**{key: value.clone() for key, value in batch.items()})
    loss.sum().backward()
    none = torch.zeros(())
    gradients = {
        name: none.expand(p.shape) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
    return loss.detach().sum(), stats, gradients


def step_weighed(model, batch, weights):
    """Run the same with weights; return losses and labels of each criterion, too."""
    calls = []

    def weigh(losses, labels):
        calls.append((losses, labels))
        return weights

    with CriterionWeighting(model).weighted_by(weigh):
        results = step(model, batch)
    return (*results, calls)


def steps_alone(model, batch, utterances=(0, 1, 2)):
    """Run the same for utterances, each alone."""
    return [
        step(model, {k: v[n : n + 1] for k, v in batch.items()}) for n in utterances
    ]


def assert_mean(loss, gradients, alone, weights):
    """Compare with the weighted sum of utterances that ran alone, over three."""
    expected = sum(w * one[0] for w, one in zip(weights, alone)) / 3
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        expected = sum(w * one[2][name] for w, one in zip(weights, alone)) / 3
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_weights_of_one_change_nothing(name):
    models = [build(name).train() for _ in range(2)]
    batch = make_batch(name)
    loss, stats, gradients = step(models[0], batch)
    ours, our_stats, our_gradients, calls = step_weighed(
        models[1], batch, torch.ones(3)
    )
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=0)
    for key, gradient in gradients.items():
        torch.testing.assert_close(
            our_gradients[key], gradient, rtol=1e-4, atol=1e-5, msg=key
        )
    for key, value in stats.items():
        assert value is our_stats[key] is None or torch.allclose(our_stats[key], value)
    assert len(calls) == len(CASES[name][3])


@pytest.mark.parametrize("name", CASES)
def test_loss_is_the_weighted_mean_of_utterances_alone(name):
    model, batch = build(name).eval(), make_batch(name)
    alone = steps_alone(model, batch)
    loss, stats, gradients, calls = step_weighed(model, batch, WEIGHTS)
    assert_mean(loss, gradients, alone, WEIGHTS)
    for key, criterion in [("loss_ctc", "ctc"), ("loss_att", "criterion_att")]:
        if criterion in CASES[name][3] and stats.get(key) is not None:
            losses, _ = calls[CASES[name][3].index(criterion)]
            expected = torch.cat([one[1][key] for one in alone])
            torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_weight_zero_leaves_no_trace(name, empty):
    if empty and name == "maskctc":
        pytest.skip("stock Mask-CTC masks at least one label, so it needs one")
    model, batch = build(name).eval(), make_batch(name, empty)
    weights = torch.tensor([0.3, 0.0, 1.9])
    loss, _, gradients, calls = step_weighed(model, batch, weights)
    assert_mean(loss, gradients, steps_alone(model, batch, (0, 2)), weights[[0, 2]])
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
    alone = steps_alone(model, batch)
    batch["text"][1, 0] = model.na
    loss, _, _, [(losses, labels)] = step_weighed(model, batch, WEIGHTS)
    torch.testing.assert_close(
        loss, (WEIGHTS[0] * alone[0][0] + WEIGHTS[2] * alone[2][0]) / 2
    )
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
    before = step(model, batch)  # from here on asr_transducer has its criterion
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


def test_half_precision(name="asr"):
    model, batch = build(name).eval(), make_batch(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _, gradients = step(model, batch)
        ours, _, our_gradients, calls = step_weighed(model, batch, torch.ones(3))
    torch.testing.assert_close(ours, loss)
    for key, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[key], gradient)
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


def train(rank, folder, model, batch):
    """Take two steps; rank 1 has nothing but utterances of weight 0."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    parallel = DistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        parallel(WEIGHTS * (1 - rank), **batch)[0].backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_one_without_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    model = Weighed(build("asr"))
    before = model.model.ctc.ctc_lo.weight.detach().clone()
    args = str(tmp_path), model, make_batch("asr")
    torch.multiprocessing.start_processes(train, args, nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["model.ctc.ctc_lo.weight"], before)


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
    """Criterion that cannot but reduce."""

    def forward(self, logits, *others):
        return logits.sum()


def test_late_criterion_that_cannot_be_weighed_is_refused(monkeypatch):
    module = types.ModuleType("warprnnt_pytorch")
    module.RNNTLoss = lambda **options: SumOfLogits()
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", module)
    with pytest.raises(ValueError, match="got SumOfLogits with reduction None, expec"):
        step_weighed(build("asr_transducer"), make_batch("asr_transducer"), WEIGHTS)
