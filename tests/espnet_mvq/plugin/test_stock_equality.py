"""Without MVQ loss, `model: mvq` is stock ESPnet bit for bit."""

import copy
import math

import pytest
import torch

STATS = ["loss_mvq", "acc_mvq", "mvq_nats_below_chance", "mvq_frames"]
INDEX_KEYS = ("codebook_indexes", "codebook_indexes_lengths")


def step(model, batch):
    """Run forward and backward; return loss, statistics, weight and gradients."""
    torch.manual_seed(5)  # dropout
    model.zero_grad()
    loss, stats, weight = model(**batch)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss.detach(), stats, weight, gradients


def without_indexes(batch, how):
    batch = dict(batch)
    if how == "absent":
        for key in INDEX_KEYS:
            batch.pop(key)
    elif how == "empty":
        batch["codebook_indexes"] = batch["codebook_indexes"][:, :0]
        batch["codebook_indexes_lengths"] = torch.zeros(3, dtype=torch.int64)
    elif how == "all padding":
        batch["codebook_indexes_lengths"] = torch.zeros(3, dtype=torch.int64)
    return batch


@pytest.mark.parametrize("init", [None, "xavier_uniform", "kaiming_normal"])
def test_initial_weights_are_those_of_stock(build_model, init):
    weights = build_model(model="espnet", init=init).state_dict()
    ours = build_model(init=init).state_dict()
    different = [name for name in weights if not torch.equal(ours[name], weights[name])]
    assert different == []


@pytest.mark.parametrize("init", [None, "xavier_uniform", "kaiming_normal"])
def test_random_state_after_building_is_that_of_stock(build_model, init):
    """Dropout and the order of batches go on from it."""
    build_model(model="espnet", init=init)
    state = torch.get_rng_state()
    build_model(init=init)
    assert torch.equal(torch.get_rng_state(), state)


def test_state_dict_is_that_of_stock_and_one_prefix_at_its_end(build_model):
    stock = list(build_model(model="espnet").state_dict())
    ours = list(build_model().state_dict())
    assert ours[: len(stock)] == stock
    added = ours[len(stock) :]
    assert added and all(name.startswith("mvq.") for name in added)


@pytest.mark.parametrize("empty_text", [False, True])
@pytest.mark.parametrize(
    "weight, how",
    [(0.0, "given"), (0.0, "absent"), (1.0, "absent"), (1.0, "empty")]
    + [(1.0, "all padding")],
)
def test_loss_stats_and_gradients_are_those_of_stock(
    build_model, batch, weight, how, empty_text
):
    if empty_text:
        batch["text"][2], batch["text_lengths"][2] = -1, 0
    dropout = {"dropout_rate": 0.1, "output_size": 8}
    stock = build_model(model="espnet", encoder_conf=dropout)
    model = build_model({"weight": weight, "layer": 1}, encoder_conf=dropout)
    plain = without_indexes(batch, "absent")
    loss, stats, batch_size, gradients = step(stock, plain)
    found = step(model, without_indexes(batch, how))
    assert torch.equal(found[0], loss) and torch.equal(found[2], batch_size)
    for name, value in stats.items():
        same = value is None and found[1][name] is None
        assert same or torch.equal(found[1][name], value), name
    for name, gradient in gradients.items():
        assert torch.equal(found[3][name], gradient), name
    for name in set(found[3]) - set(gradients):
        assert name.startswith("mvq.") and not found[3][name].any()


@pytest.mark.parametrize("how", ["given", "absent", "empty", "all padding"])
def test_statistics_have_the_same_keys_on_every_batch(build_model, batch, how):
    _, stats, _, _ = step(build_model(), without_indexes(batch, how))
    assert set(STATS) <= set(stats)
    absent = [math.isnan(float(stats[name])) for name in STATS]
    assert absent == [how != "given"] * 4


def test_weight_zero_still_reports_how_well_indexes_are_predicted(build_model, batch):
    _, stats, _, _ = step(build_model({"weight": 0.0}), batch)
    assert all(float(stats[name]) == float(stats[name]) for name in STATS)


def test_mvq_loss_is_added_with_its_weight(build_model, batch):
    plain = step(build_model(model="espnet"), without_indexes(batch, "absent"))[0]
    for weight in (0.5, 2.0):
        loss, stats, _, _ = step(build_model({"weight": weight}), batch)
        expected = plain + weight * stats["loss_mvq"]
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(stats["loss"], expected)


def test_encode_and_collect_feats_are_those_of_stock(build_model, batch):
    stock, model = build_model(model="espnet").eval(), build_model().eval()
    arguments = batch["speech"], batch["speech_lengths"]
    for found, expected in zip(model.encode(*arguments), stock.encode(*arguments)):
        assert torch.equal(found, expected)
    feats = model.collect_feats(**batch)
    assert torch.equal(feats["feats"], stock.collect_feats(**batch)["feats"])


def test_weights_of_stock_load_both_ways(build_model):
    stock, model = build_model(model="espnet"), build_model()
    result = model.load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("mvq.") for key in result.missing_keys)


def test_deep_copy_has_its_own_hooks_and_weights(build_model, batch):
    model = build_model({"layer": 1}).eval()
    copied = copy.deepcopy(model)
    expected = model(**batch)[1]["loss_mvq"]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.testing.assert_close(copied(**batch)[1]["loss_mvq"], expected)
