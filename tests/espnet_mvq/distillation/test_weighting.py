"""Shares of the losses, against the formulas of the papers."""

import dataclasses
import math

import pytest
import torch

from espnet_mvq.distillation.weighting import (
    WEIGHTINGS,
    AdaKD,
    Fixed,
    Focal,
    Warmup,
    Weighting,
    build_weighting,
    resolve_threshold,
)

# alpha of a teacher loss that lies -2, -1, 0, 1 and 2 from the threshold
GOMPERTZ = {
    4: [0.982, 0.873, 0.368, 0.001, 0.000],
    2: [0.873, 0.692, 0.368, 0.066, 0.001],
    1: [0.692, 0.545, 0.368, 0.192, 0.066],
    0: [0.368, 0.368, 0.368, 0.368, 0.368],
    -1: [0.066, 0.192, 0.368, 0.545, 0.692],
}
LOSSES = torch.tensor([3.0, 1.0, 2.0, 10.0])
NAN = torch.tensor([1.0, math.nan])


def adakd_alpha(x, k, threshold, scale=1.0):
    """Return the share as the paper writes it."""
    d = math.exp(-k * (x - threshold) / scale)
    return math.exp(-1 / math.sqrt(d))


@pytest.mark.parametrize("k", GOMPERTZ)
def test_adakd_at_distances_from_the_threshold(k):
    weighting = AdaKD(k_start=k, threshold=5.0, scale=1.0)
    alphas = weighting.alphas(0, torch.arange(3.0, 8.0))
    assert alphas.tolist() == pytest.approx(GOMPERTZ[k], abs=5.1e-4)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("k", [-3.0, 0.5, 2.0])
def test_adakd_is_the_formula(k, scale):
    losses = 3 * torch.rand(20)
    alphas = AdaKD(k_start=k, threshold=1.2, scale=scale).alphas(7, losses)
    expected = [adakd_alpha(float(x), k, 1.2, scale) for x in losses]
    assert alphas.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_adakd_k_falls_linearly_and_stays():
    weighting = AdaKD(k_start=3.0, k_end=-1.0, k_updates=4, threshold=0.0, scale=1.0)
    ks = [weighting.k_at(update) for update in (0, 1, 2, 4, 5, 10**9)]
    assert ks == [3.0, 2.0, 1.0, -1.0, -1.0, -1.0]
    for update, k in [(0, 3.0), (1, 2.0), (9, -1.0)]:
        alpha = float(weighting.alphas(update, torch.tensor([0.5])))
        assert alpha == pytest.approx(adakd_alpha(0.5, k, 0.0))
    assert AdaKD(k_start=3.0).k_at(10**9) == 3.0
    assert AdaKD().k_start == 2.0 and AdaKD().k_end == 0.0


@pytest.mark.parametrize("k", [-1000.0, -1.0, 0.0, 1e-3, 1000.0])
def test_adakd_stays_finite(k):
    losses = torch.tensor([-math.inf, -1e30, -1.0, 0.0, 1.0, 1e30, math.inf])
    alphas = AdaKD(k_start=k, threshold=0.0, scale=1e-6).alphas(0, losses)
    assert alphas.isfinite().all() and (0 <= alphas).all() and (alphas <= 1).all()
    assert torch.equal(alphas.sort(descending=k > 0).values, alphas)
    assert float(alphas[3]) == pytest.approx(1 / math.e)
    if abs(k) >= 1:
        assert sorted(alphas[[0, -1]].tolist()) == [0.0, 1.0]


def test_adakd_takes_losses_of_half_precision():
    weighting = AdaKD(threshold=2.0, scale=1.0)
    alphas = weighting.alphas(0, LOSSES.half())
    assert torch.equal(alphas, weighting.alphas(0, LOSSES))
    assert alphas.dtype == torch.float32


@pytest.mark.parametrize(
    "threshold, expected",
    [("mean", 4.0), ("p25", 1.75), ("median", 2.5), ("p75", 4.75), (7, 7.0)],
)
def test_threshold_and_scale_of_a_training_set(threshold, expected):
    result, scale = resolve_threshold(LOSSES, threshold)
    variance = ((LOSSES - 4.0) ** 2).mean()
    assert result == pytest.approx(expected) and isinstance(result, float)
    assert scale == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize("share, name", [(0.25, "p25"), (0.5, "median"), (0.75, "p75")])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_percentiles_are_those_of_torch(share, name, size):
    losses = torch.rand(size, dtype=torch.float64)
    expected = torch.quantile(losses, share)
    assert resolve_threshold(losses, name)[0] == pytest.approx(float(expected))


def test_losses_that_are_all_alike_have_scale_one():
    assert resolve_threshold(torch.full((5,), 0.1)) == (pytest.approx(0.1), 1.0)
    assert resolve_threshold(torch.tensor([3.0])) == (3.0, 1.0)


def test_infinite_losses_do_not_move_the_threshold():
    losses = torch.cat([LOSSES, torch.tensor([math.inf])])
    assert resolve_threshold(losses) == resolve_threshold(LOSSES)


@pytest.mark.parametrize(
    "losses, threshold, message",
    [
        ([1.0, math.nan, math.nan], "mean", "got NaN as 2 of 3 teacher losses"),
        ([], "mean", "got 0 teacher losses, none of them finite"),
        ([math.inf], "mean", "got 1 teacher losses, none of them finite"),
        ([1.0], "p90", "threshold: got 'p90', expected a number or one of mean, p25"),
    ],
)
def test_bad_training_sets_are_refused(losses, threshold, message):
    with pytest.raises(ValueError, match=message):
        resolve_threshold(torch.tensor(losses), threshold)


def test_adakd_is_made_ready_before_training():
    weighting = build_weighting({"type": "adakd", "threshold": "p25", "k_start": 1.0})
    with pytest.raises(ValueError, match="threshold 'p25' and scale None, expected"):
        weighting.alphas(0, LOSSES)
    ready = weighting.resolved(LOSSES)
    assert (ready.threshold, ready.k_start) == (1.75, 1.0)
    expected = adakd_alpha(3.0, 1.0, 1.75, ready.scale)
    assert float(ready.alphas(0, LOSSES)[0]) == pytest.approx(expected)
    assert dataclasses.replace(weighting, scale=2.0).resolved(LOSSES).scale == 2.0


def test_fixed_is_the_same_for_all():
    alphas = build_weighting({"type": "fixed", "alpha": 0.3}).alphas(9, LOSSES)
    assert torch.equal(alphas, torch.full((4,), 0.3))


def test_warmup_rises_from_the_task_alone():
    weighting = Warmup(alpha=0.8, warmup_updates=4)
    alphas = [weighting.alphas(u, None, LOSSES) for u in (0, 1, 2, 4, 5, 10**9)]
    assert all(len(a.unique()) == 1 and a.shape == (4,) for a in alphas)
    expected = [0.0, 0.2, 0.4, 0.8, 0.8, 0.8]
    assert [float(a[0]) for a in alphas] == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0, 0.5, 2.0, 5.0])
def test_focal_is_the_formula(gamma):
    losses = torch.tensor([0.0, 1e-4, 0.1, 1.0, 8.0, 200.0])
    alphas = Focal(gamma=gamma).alphas(3, None, losses)
    expected = [1 - (1 - math.exp(-x)) ** gamma for x in losses.tolist()]
    assert alphas.tolist() == pytest.approx(expected, abs=1e-6)


def test_focal_stays_in_its_range_and_carries_no_gradient():
    losses = torch.tensor([-0.1, math.inf, math.nan], requires_grad=True)
    alphas = Focal().alphas(0, task_losses_per_label=losses)
    assert alphas.tolist() == [1.0, 0.0, 0.0] and not alphas.requires_grad


def test_types_declare_the_losses_that_they_need():
    assert {n for n, w in WEIGHTINGS.items() if w.needs_teacher_loss} == {"adakd"}
    assert {n for n, w in WEIGHTINGS.items() if w.needs_task_loss} == {"focal"}
    assert all(Weighting.from_dict({"type": n}) == w() for n, w in WEIGHTINGS.items())
    assert Fixed.from_dict({"alpha": 1}) == Fixed(1)


@pytest.mark.parametrize(
    "weighting, losses, message",
    [
        (
            AdaKD(),
            (),
            "adakd: got no teacher losses, .* type: fixed or warmup or focal",
        ),
        (AdaKD(), (None, LOSSES), "adakd: got no teacher losses"),
        (AdaKD(), (NAN,), "NaN as teacher loss of 1 of 2 utterances, the first at 1"),
        (Focal(), (LOSSES,), "focal: got no task losses"),
        (Fixed(), (), "fixed: got no task losses"),
        (AdaKD(), (LOSSES[None],), r"the shapes {'teacher': \(1, 4\)}"),
        (Focal(), (LOSSES, LOSSES[:3]), r"'task': \(3,\)}, expected \(batch size,\)"),
    ],
)
def test_bad_losses_are_refused(weighting, losses, message):
    with pytest.raises(ValueError, match=message):
        weighting.alphas(0, *losses)


@pytest.mark.parametrize(
    "conf, message",
    [
        ("adakd", "got 'adakd', expected options with a type, one of adakd, fixed"),
        ({}, "got type '', expected one of adakd, fixed, warmup, focal"),
        ({"type": ["adakd"]}, r"got type \['adakd'\], expected one of"),
        (
            {"type": "fixed", "a": 1, "b": 2},
            "unknown option: a, b; expected some of alp",
        ),
        (
            {"type": "fixed", "alpha": 1.1},
            "fixed: alpha: got 1.1, expected 0 to 1",
        ),
        ({"type": "fixed", "alpha": True}, "alpha: got True"),
        ({"type": "fixed", "alpha": "0.5"}, "alpha: got '0.5'"),
        (
            {"type": "warmup", "alpha": -1, "warmup_updates": 0},
            "-1, .*; warmup_upd.* 0",
        ),
        ({"type": "warmup", "warmup_updates": 1e4}, "got 10000.0, expected a whole"),
        ({"type": "focal", "gamma": -0.1}, "gamma: got -0.1"),
        ({"type": "adakd", "k_start": math.nan}, "k_start: got nan"),
        ({"type": "adakd", "k_updates": 0}, "k_updates: got 0"),
        ({"type": "adakd", "k_end": 1.0}, "got k_end 1.0 without k_updates, expected"),
        ({"type": "adakd", "threshold": "q3"}, "threshold: got 'q3', expected a num"),
        ({"type": "adakd", "scale": 0}, "scale: got 0, expected a number above 0"),
        ({"type": "adakd", "scale": -1}, "scale: got -1, expected a number above 0"),
        (
            {"type": "adakd", "k_start": 1e4, "k_end": -1e4},
            "k_start: got 10000.0, expected -1000 to 1000; k_end: got -10000.0",
        ),
        (
            {"type": "adakd", "threshold": None, "scale": "1"},
            "threshold: got None, expected a text .*; scale: got '1', expected a fin",
        ),
    ],
)
def test_bad_options_are_refused(conf, message):
    with pytest.raises(ValueError, match=message):
        build_weighting(conf)


def test_a_class_builds_its_own_type_alone():
    with pytest.raises(ValueError, match="got type 'focal', expected one of fixed"):
        Fixed.from_dict({"type": "focal"})
