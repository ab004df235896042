"""Without MVQ loss, `model: mvq` is stock ESPnet bit for bit."""

import copy
import math

import pytest
import torch
from builders import STATS, assert_same_as_stock, build_model, step, without


def remove_indexes(batch, how):
    """Remove the indexes from a batch in one of the ways that occur."""
    if how == "absent":
        return without(batch)
    batch = dict(batch)
    if how == "empty":
        batch["codebook_indexes"] = batch["codebook_indexes"][:, :0]
    if how != "given":
        batch["codebook_indexes_lengths"] = torch.zeros(3, dtype=torch.int64)
    return batch


@pytest.mark.parametrize("init", [None, "xavier_uniform", "kaiming_normal"])
def test_initial_weights_and_random_state_are_those_of_stock(init):
    """Dropout and the order of batches depend on the random state."""
    stock = build_model(model="espnet", init=init).state_dict()
    state = torch.get_rng_state()
    ours = build_model(init=init).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(ours[name], value) for name, value in stock.items())


def test_state_dict_is_that_of_stock_and_one_prefix_at_its_end():
    stock, model = build_model(model="espnet").state_dict(), build_model()
    ours = list(model.state_dict())
    assert ours[: len(stock)] == list(stock)
    added = ours[len(stock) :]
    assert added and all(name.startswith("mvq.") for name in added)
    result = model.load_state_dict(stock, strict=False)
    assert result.missing_keys == added and not result.unexpected_keys


@pytest.mark.parametrize("empty_text", [False, True])
@pytest.mark.parametrize(
    "weight, how",
    [(0.0, "given"), (0.0, "absent"), (1.0, "absent"), (1.0, "empty")]
    + [(1.0, "all padding")],
)
def test_loss_stats_and_gradients_are_those_of_stock(batch, weight, how, empty_text):
    if empty_text:
        batch["text"][2], batch["text_lengths"][2] = -1, 0
    dropout = {"dropout_rate": 0.1, "output_size": 8}
    stock = build_model(model="espnet", encoder_conf=dropout)
    model = build_model({"weight": weight, "layer": 1}, encoder_conf=dropout)
    result = step(model, remove_indexes(batch, how))
    assert_same_as_stock(result, step(stock, without(batch)))


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("how", ["given", "absent", "empty", "all padding"])
def test_statistics_have_the_same_keys_on_every_batch(batch, how, weight):
    """With weight 0 they still report how well indexes are predicted."""
    stats = step(build_model({"weight": weight}), remove_indexes(batch, how)).stats
    assert [math.isnan(stats[name]) for name in STATS] == [how != "given"] * 4


def test_mvq_loss_is_added_with_its_weight(batch):
    plain = step(build_model(model="espnet"), without(batch)).loss
    for weight in (0.5, 2.0):
        loss, stats, _, _ = step(build_model({"weight": weight}), batch)
        expected = plain + weight * stats["loss_mvq"]
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(stats["loss"], expected)


def test_encode_and_collect_feats_are_those_of_stock(batch):
    stock, model = build_model(model="espnet").eval(), build_model().eval()
    arguments = batch["speech"], batch["speech_lengths"]
    pairs = zip(model.encode(*arguments), stock.encode(*arguments))
    assert all(torch.equal(*pair) for pair in pairs)
    feats = model.collect_feats(**batch)
    assert torch.equal(feats["feats"], stock.collect_feats(**batch)["feats"])


def test_deep_copy_has_its_own_hooks_and_weights(batch):
    model = build_model({"layer": 1}).eval()
    copied = copy.deepcopy(model)
    expected = model(**batch)[1]["loss_mvq"]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.testing.assert_close(copied(**batch)[1]["loss_mvq"], expected)
