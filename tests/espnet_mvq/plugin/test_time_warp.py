"""SpecAug's time warp: the indexes move as the features do."""

import pytest
import torch
from builders import build_model

from espnet_mvq.plugin.time_warp import (
    TimeWarpHook,
    WarpedTime,
    refuse_warp_inside,
)

SPECAUG = {
    "specaug": "specaug",
    "specaug_conf": {
        "apply_time_warp": True,
        "time_warp_window": 10,
        "apply_freq_mask": False,
        "apply_time_mask": False,
    },
}


def build_specaug(window=10):
    from espnet2.asr.specaug.specaug import SpecAug

    conf = {**SPECAUG["specaug_conf"], "time_warp_window": window}
    return SpecAug(**conf)


class Frontend(torch.nn.Module):
    """Looks like ESPnet's default one."""

    def __init__(self):
        super().__init__()
        from espnet2.layers.stft import Stft

        self.stft = Stft(n_fft=512, hop_length=160)
        self.hop_length = 160


@pytest.mark.parametrize("lengths", [[100, 100, 100], [100, 80, 60]])
def test_map_is_that_of_the_warp(lengths):
    """Features that are their own frame numbers tell which frame each one was."""
    specaug = build_specaug()
    hook = TimeWarpHook(specaug, Frontend())
    lengths = torch.tensor(lengths)
    features = torch.arange(100.0).expand(3, -1).unsqueeze(2).repeat(1, 1, 4)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with hook.record() as warp:
        warped, _ = specaug(features.clone(), lengths)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    plain = build_specaug()(features.clone(), lengths)[0]
    # Neither the features nor the random numbers that follow have changed.
    assert torch.equal(plain, warped) and torch.equal(torch.get_rng_state(), after)
    times = 160.0 * torch.arange(100)
    sources = warp(times) / 160
    assert (sources - times / 160).abs().max() > 0.5
    for row, feature, length in zip(sources, warped, lengths.tolist()):
        torch.testing.assert_close(row[:length], feature[:length, 0])
        # Padding is not moved.
        torch.testing.assert_close(row[length:], torch.arange(100.0)[length:])


def test_times_between_and_outside_of_frames():
    warp = WarpedTime(160, 80, torch.tensor([[0.0, 2.0, 3.0]]))
    times = torch.tensor([80.0, 160.0, 240.0, 400.0, 560.0, 0.0])
    expected = torch.tensor([[80.0, 240.0, 400.0, 560.0, 720.0, 0.0]])
    torch.testing.assert_close(warp(times), expected)


def test_nothing_is_recorded_where_nothing_is_warped():
    specaug = build_specaug()
    with TimeWarpHook(specaug, Frontend()).record() as warp:
        pass
    specaug(torch.randn(1, 100, 4), torch.tensor([100]))
    assert warp.source_frames is None
    with TimeWarpHook(None, None).record() as warp:
        assert warp is None


def test_front_end_without_a_known_shift_is_refused():
    with pytest.raises(ValueError, match="apply_time_warp: false"):
        TimeWarpHook(build_specaug(), torch.nn.Linear(2, 2))


def test_warp_inside_of_the_encoder_is_refused():
    encoder = torch.nn.Linear(2, 2)
    refuse_warp_inside(encoder)
    encoder.specaug = None
    refuse_warp_inside(encoder)
    encoder.specaug = build_specaug()
    with pytest.raises(ValueError, match="Linear: its own SpecAug warps time"):
        refuse_warp_inside(encoder)


def test_targets_move_with_the_features(batch):
    """Indexes that are their own frame numbers tell which frames are predicted."""
    model = build_model({"codebook_size": 64, "num_codebooks": 1}, **SPECAUG).train()
    target = model.mvq.codebook_indexes
    gather, calls = target.aligner.gather, []

    def targets(*args):
        values, known = gather(*args)
        return values.masked_fill(~known.unsqueeze(3), -1).flatten(2)

    def record(*args):
        *others, times = args
        calls.append((targets(*others, times), targets(*others), times))
        return gather(*args)

    target.aligner.gather = record
    numbers = torch.arange(30).reshape(1, 30, 1).expand(3, -1, -1)
    model(**{**batch, "codebook_indexes": numbers})
    [(warped, plain, times)] = calls
    moved = (warped - plain)[(warped >= 0) & (plain >= 0)]
    assert moved.any() and moved.abs().max() <= 10 * 160 / 320 + 1
    frames = warped.reshape(3, -1)
    misses = (320 * frames + 199.5 - times).abs()
    assert (misses[frames >= 0] <= 160).all()


def test_evaluation_is_not_warped(batch):
    model = build_model(**SPECAUG).eval()
    loss = model(**batch)[1]["loss_mvq"]
    plain = build_model().eval()(**batch)[1]["loss_mvq"]
    torch.testing.assert_close(loss, plain)
