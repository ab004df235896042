"""Posteriors of a CTC teacher as target of the student's own CTC."""

import argparse

import pytest
import torch
from builders import (
    FRAMES,
    MVQ_CONF,
    TASK_TOKENS,
    TINY_MODEL,
    assert_same_as_stock,
    build_model,
    build_task,
    make_task_batch,
    step,
    train,
    without,
)
from corpus_builders import posterior_metadata

from espnet_mvq.distillation import read_sparse, sparse_posteriors
from espnet_mvq.plugin.config import parse_targets
from espnet_mvq.plugin.training_checks import complete_mvq_conf

TOKENS = TINY_MODEL["token_list"]
CONF = {"loss": "posteriors", "token_list": TOKENS}
LENGTHS = "posteriors_lengths"


@pytest.fixture
def posteriors(batch):
    """Return a batch with posteriors in place of indexes; one utterance has none."""
    lengths = batch["codebook_indexes_lengths"].clone()
    lengths[1] = 0
    logits = 3 * torch.randn(3, 30, len(TOKENS))
    stored = [sparse_posteriors(row, 2) for row in logits]
    stored = torch.stack(stored).long()
    padding = torch.arange(30) >= lengths[:, None]
    stored = stored.masked_fill(padding.unsqueeze(2), -32768)  # as ESPnet pads
    return {**without(batch), "posteriors": stored, LENGTHS: lengths}


def explicit_loss(model, batch, weights=(1.0, 1.0, 1.0)):
    """Compute the loss frame by frame from the probabilities of the model's CTC."""
    (target,) = model.mvq.values()
    frames, lengths = model.encode(batch["speech"], batch["speech_lengths"])
    places, inside = target.aligner.teacher_frames(frames.shape[1])
    probs, total = model.ctc.softmax(frames), torch.zeros(())
    for b, weight in enumerate(weights):
        for t in range(int(lengths[b])):
            for slot, place in enumerate(places[t].tolist()):
                if not (inside[t, slot] and 0 <= place < batch[LENGTHS][b]):
                    continue
                tokens, stored = read_sparse(batch["posteriors"][b, place])
                q = probs[b, t, tokens]
                q = torch.cat([q, 1 - q.sum()[None]])
                p = stored.exp() / stored.exp().sum()
                total = total + weight * (p * (p.log() - q.log())).sum()
    return total / (target.aligner.targets_per_frame * len(frames))


@pytest.mark.parametrize("shift", [320, 640])
def test_loss_is_that_of_the_formula(posteriors, shift):
    """With two teacher frames for each student frame, and with one."""
    if shift == 640:
        posteriors["posteriors"] = posteriors["posteriors"][:, ::2]
        posteriors[LENGTHS] = posteriors[LENGTHS] // 2
    model = build_model({**CONF, "frame_shift_samples": shift}).eval()
    loss, stats, _ = model(**posteriors)
    expected = explicit_loss(model, posteriors)
    torch.testing.assert_close(
        stats["loss_posterior"][0], expected.detach(), rtol=1e-4, atol=1e-4
    )
    task = build_model(model="espnet").eval()(**without(posteriors, "post"))[0]
    torch.testing.assert_close(loss, task + stats["loss_posterior"])
    assert stats["posterior_divergence"] > 0
    assert 0 <= stats["posterior_agreement"] <= 1


def test_weighted_utterances(posteriors):
    """(1 - a) task + a KD, and only the task's for the one without posteriors."""
    weighting = {"type": "fixed", "alpha": 0.25}
    model = build_model({**CONF, "weighting": weighting}).train()
    loss, stats, _ = model(**posteriors)
    expected = explicit_loss(model, posteriors, [0.25, 0.0, 0.25])
    torch.testing.assert_close(
        stats["loss_posterior"][0], expected.detach(), rtol=1e-4, atol=1e-4
    )
    assert float(stats["mvq_alpha"]) == pytest.approx(0.5 / 3)
    assert loss.isfinite()


def test_student_learns_and_gets_no_weights(posteriors):
    model = build_model(CONF)
    stock = build_model(model="espnet")
    assert set(model.state_dict()) == {*stock.state_dict(), "mvq.num_updates"}
    model(**posteriors)[0].backward()
    assert model.ctc.ctc_lo.weight.grad.abs().sum() > 0
    # A distribution for each utterance, which a student can learn
    first = posteriors["posteriors"][:, :1]
    posteriors["posteriors"] = first.expand(-1, 30, -1)
    before, *_, after = train(model, posteriors)
    assert after["loss_posterior"] < 0.9 * before["loss_posterior"]


def test_batch_without_posteriors_is_that_of_the_stock_model(posteriors):
    plain = without(posteriors, "posteriors")
    stock = step(build_model(model="espnet").train(), plain)
    assert_same_as_stock(step(build_model(CONF).train(), plain), stock)
    without_weight = build_model({**CONF, "weight": 0.0}).train()
    ours = step(without_weight, posteriors)
    assert_same_as_stock(ours, stock)
    assert ours.stats["loss_posterior"] > 0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda stored: stored[..., 1:], r"shape \(3, 30, 4\), expected .*2 k \+ 1"),
        (lambda stored: stored + 4, "got token [5-8], expected less than 5"),
    ],
)
def test_other_values_are_refused(posteriors, change, message):
    posteriors["posteriors"] = change(posteriors["posteriors"])
    with pytest.raises(ValueError, match=message):
        build_model(CONF)(**posteriors)


@pytest.mark.parametrize(
    "tokens, message",
    [
        (["<blank>", "<unk>", "b"], "token 2 is 'b' there and 'a' in the student's"),
        ([*TOKENS, "c"], "token 5 is 'c' there and None in the student's"),
    ],
)
def test_other_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        build_model({**CONF, "token_list": tokens})


def test_student_may_have_more_tokens(posteriors):
    """As <sos/eos>, which models of transformers do not have."""
    stored = posteriors["posteriors"]
    stored[..., :2] = stored[..., :2].clamp(max=3)
    model = build_model({**CONF, "token_list": TOKENS[:4]})
    assert model(**posteriors)[1]["loss_posterior"].isfinite()


@pytest.mark.parametrize("name", ["asr", "asr_transducer"])
def test_student_without_ctc_is_refused(name, rnnt_loss):
    options = {"model_conf": {"ctc_weight": 0.0}} if name == "asr" else {}
    with pytest.raises(ValueError, match="without CTC on its encoder output"):
        build_task(name, layer=-1, mvq_conf=CONF, **options)


@pytest.mark.parametrize("name", ["slu", "maskctc", "s2t", "s2t_ctc", "st"])
def test_tasks_with_ctc(name, batch):
    conf = {**CONF, "token_list": TASK_TOKENS}
    options = (
        {"model_conf": {"asr_weight": 0.3, "mtlalpha": 1.0}} if name == "st" else {}
    )
    model = build_task(name, layer=-1, mvq_conf=conf, **options)
    logits = torch.randn(3, 30, len(TASK_TOKENS))
    stored = torch.stack([sparse_posteriors(row, 2) for row in logits]).long()
    batch = make_task_batch(name, without(batch))
    lengths = batch["speech_lengths"] // 320
    _, stats, _ = model(**batch, posteriors=stored, posteriors_lengths=lengths)
    assert stats["loss_posterior"].isfinite()


@pytest.mark.parametrize(
    "name, conf, message",
    [
        ("posteriors", {}, "loss: got codebooks for posteriors, expected one of post"),
        ("posteriors", {"loss": "l2"}, "loss: got l2 for posteriors"),
        ("embeddings", {"loss": "posteriors"}, "loss: got posteriors for embeddings"),
        ("posteriors", {**CONF, "layer": 1}, "layer of posteriors: got 1 and level fr"),
        ("posteriors", {**CONF, "level": "utterance"}, "got -1 and level utterance"),
        ("posteriors", {**CONF, "temperature": 0.5}, "temperature: got 0.5, expected"),
        ("posteriors", {**CONF, "quantizer": "q"}, "are no codebook indexes; leave"),
        ("posteriors", {"loss": "posteriors"}, "token_list missing"),
    ],
)
def test_bad_options_are_refused(name, conf, message):
    with pytest.raises(ValueError, match=message):
        parse_targets({**MVQ_CONF, "targets": {name: conf}})


@pytest.fixture
def options(tmp_path):
    """Return a function that makes a training's options with stored posteriors."""

    def make(conf, stored=True):
        posterior_metadata(2, TOKENS).save(tmp_path / "posteriors.json")
        data = [(str(tmp_path / "wav.scp"), "speech", "sound")]
        if stored:
            data.append((str(tmp_path / "posteriors.scp"), "posteriors", "mvq_ark"))
        return argparse.Namespace(
            model_conf={"mvq_conf": conf},
            train_data_path_and_name_and_type=data,
            valid_data_path_and_name_and_type=[],
        )

    return make


def test_metadata_fill_the_options(options):
    args = options({"loss": "posteriors", "temperature": 2.0})
    complete_mvq_conf(args)
    completed = args.model_conf["mvq_conf"]
    given = {"loss": "posteriors", "temperature": 2.0}
    expected = {**given, **FRAMES, "token_list": TOKENS, "level": "frame"}
    expected["teacher_id"] = "teacher@1, layer -1"
    assert completed == expected
    (config,) = parse_targets(completed).values()
    assert config.token_list == TOKENS


def test_missing_posteriors(options):
    with pytest.raises(ValueError, match="posteriors.scp,posteriors,mvq_ark"):
        complete_mvq_conf(options({"loss": "posteriors"}, stored=False))
