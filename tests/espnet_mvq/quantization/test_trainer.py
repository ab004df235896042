"""Quantizer training: what it reaches and what it refuses."""

import numpy as np
import pytest
import torch

from espnet_mvq.quantization import Quantizer, QuantizerTrainer
from espnet_mvq.quantization.codebook_fitting import residual_kmeans


def trainer(**options):
    defaults = dict(codebook_size=8, num_iterations=4, kmeans_iterations=3)
    return QuantizerTrainer(8, 2, **{**defaults, **options})


@pytest.fixture
def frames():
    return torch.randn(300, 8) @ torch.randn(8, 8) + 3


def test_error_is_below_that_of_residual_kmeans():
    frames = torch.randn(1200, 8) @ torch.randn(8, 8) + 3
    held_out, frames = frames[:200], frames[200:]
    trained = QuantizerTrainer(8, 4, codebook_size=8, num_iterations=8)
    trained = trained.fit(frames, held_out)
    generator = torch.Generator().manual_seed(0)
    codebooks = residual_kmeans(frames - frames.mean(0), 4, 8, 10, generator)
    start = Quantizer(codebooks, frames.mean(0))
    for x in (frames, held_out):
        error = trained.relative_reconstruction_error(x)
        greedy = start.encode(x, beam_size=1, refine_passes=0)
        assert error < 0.9 * start.relative_reconstruction_error(x, greedy)


def test_seed_decides(frames):
    ids = [trainer(seed=seed).fit(frames).id for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_training_leaves_the_global_random_state_alone(frames):
    state = torch.get_rng_state()
    trainer().fit(frames)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_codebooks", [1, 3])
def test_any_number_of_codebooks(frames, num_codebooks):
    sizes = {"codebook_size": 4, "num_iterations": 2}
    quantizer = QuantizerTrainer(8, num_codebooks, **sizes).fit(frames)
    assert quantizer.codebooks.shape == (num_codebooks, 4, 8)
    assert quantizer.relative_reconstruction_error(frames) < 0.95


def test_provenance_has_the_given_and_the_figures(frames):
    held_out = torch.randn(50, 8)
    quantizer = trainer(seed=3).fit(frames, held_out, {"teacher": "t"})
    made = quantizer.provenance
    assert made["teacher"] == "t" and made["seed"] == 3
    assert made["training_frames"] == 300 and made["rounds"] == 4
    error = quantizer.relative_reconstruction_error(held_out)
    assert made["relative_reconstruction_error"] == pytest.approx(error, abs=1e-6)


def test_a_twentieth_is_held_out_by_default(frames):
    assert trainer().fit(frames).provenance["training_frames"] == 285


@pytest.mark.parametrize(
    "num_frames, held_out, is_held_out",
    [
        (12, None, False),
        (39, None, False),
        (40, None, True),
        (12, torch.randn(1, 8), False),
        (12, torch.ones(9, 8), False),
        (12, torch.randn(2, 8), True),
    ],
)
def test_error_is_named_by_its_frames(caplog, num_frames, held_out, is_held_out):
    caplog.set_level("INFO")
    frames = torch.randn(num_frames, 8)
    quantizer = trainer(codebook_size=4).fit(frames, held_out)
    key = "relative_reconstruction_error"
    names = [name for name in quantizer.provenance if key in name]
    assert names == [key if is_held_out else f"training_{key}"]
    assert ("error is that of the training frames" in caplog.text) == (not is_held_out)
    rounds = [line for line in caplog.messages if "reconstruction error" in line]
    place = "held-out" if is_held_out else "on the training frames"
    assert len(rounds) > 2 and all(place in line for line in rounds)
    if not is_held_out and num_frames == 12:  # of 39 one is held out all the same
        error = quantizer.relative_reconstruction_error(frames)
        assert quantizer.provenance[names[0]] == pytest.approx(error, abs=1e-5)


def test_training_under_autocast_is_as_without(frames):
    expected = trainer().fit(frames).id
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert trainer().fit(frames).id == expected


def test_patience_ends_training_early(frames):
    quantizer = trainer(num_iterations=60, patience=1).fit(frames)
    assert quantizer.provenance["rounds"] < 60


def test_arrays_and_iterators_are_as_tensors(frames, tmp_path):
    expected = trainer().fit(frames).id
    np.save(tmp_path / "frames.npy", frames.numpy())
    for same in (
        np.load(tmp_path / "frames.npy", mmap_mode="r"),
        frames.numpy().astype(np.float64),
        iter(frames.split(70)),
        (chunk.numpy() for chunk in frames.split(70)),
    ):
        assert trainer().fit(same).id == expected


def test_iterator_is_sampled_down(frames):
    quantizer = trainer(max_frames=100).fit(iter(frames.split(70)), frames[:50])
    assert quantizer.provenance["training_frames"] == 100


def test_mean_is_taken_out(frames):
    quantizer = trainer().fit(frames, frames[:50])
    torch.testing.assert_close(quantizer.mean, frames.mean(0))
    assert torch.equal(quantizer.scale, torch.ones(8))


def test_mean_std_scales_channels_but_constant_ones(frames, caplog):
    frames = frames * torch.logspace(-2, 2, 8)
    frames[:, 5] = 7.0
    quantizer = trainer(normalize="mean_std").fit(frames, frames[:50])
    expected = frames.std(0, unbiased=False)
    expected[5] = 1
    torch.testing.assert_close(quantizer.scale, expected, rtol=1e-4, atol=0)
    assert "1 of 8 channels are constant" in caplog.text
    assert quantizer.decode(quantizer.encode(frames))[:, 5].sub(7).abs().max() < 1e-4


@pytest.mark.parametrize(
    "frames, message",
    [
        (torch.randn(5, 8), "got 5 training frames, expected at least .* size 8"),
        (torch.ones(50, 8), "all 50 training frames are equal"),
        (torch.randn(50, 7), r"frames: got shape \(50, 7\), expected .*8\)"),
        (torch.randn(50), r"frames: got shape \(50,\)"),
        (iter([]), "got no frames at all"),
        (iter([torch.randn(50, 8), torch.randn(50, 7)]), r"frames: got .*\(50, 7\)"),
        (iter([[1.0]]), "frames: got list, expected a torch tensor or a numpy array"),
        (1e300 * torch.ones(50, 8).double(), "frames: got NaN or infinity in 50"),
    ],
)
def test_unusable_frames_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        trainer().fit(frames, torch.randn(20, 8))


def test_bad_frames_are_counted_and_the_first_is_named(frames):
    frames[7, 3] = float("nan")
    frames[9, 3] = float("inf")
    with pytest.raises(ValueError, match=r"in 2 of 300 frames, first in frame 7 "):
        trainer().fit(frames)
    with pytest.raises(ValueError, match="held_out: got NaN"):
        trainer().fit(torch.randn(50, 8), frames)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"codebook_size": 1}, "codebook_size: got 1, expected 2 to 256"),
        ({"codebook_size": 257}, "codebook_size: got 257, expected 2 to 256"),
        ({"max_frames": 0}, "max_frames: got 0, expected at least 8"),
        ({"max_frames": 7}, "max_frames: got 7, expected at least 8"),
        ({"max_frames": float("nan")}, "max_frames: got nan"),
        ({"patience": 0}, "patience: got 0, expected at least 1"),
        ({"patience": float("nan")}, "patience: got nan"),
        ({"perturbation_rounds": -1}, "perturbation_rounds: got -1, expected"),
        ({"ridge": (float("nan"), 5.0)}, r"ridge: got \(nan, 5.0\), expected two pos"),
        ({"ridge": (5.0, float("inf"))}, "ridge: got .*, expected two positive"),
        ({"ridge": (5.0,)}, "ridge: got .*, expected two positive"),
        ({"seed": "abc"}, "seed: got 'abc', expected a whole number"),
        ({"seed": 2**64}, "seed: got 18446744073709551616, expected a whole number"),
        ({"kmeans_iterations": 0}, "kmeans_iterations: got 0"),
        ({"num_iterations": 0}, "num_iterations: got 0"),
        ({"normalize": "std"}, "normalize: got 'std', expected 'mean' or 'mean_std'"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)


@pytest.mark.parametrize("number", [0, -1, 10**6, 2.5])
def test_number_of_codebooks_out_of_range_is_refused(number):
    with pytest.raises(ValueError, match=f"num_codebooks: got {number}.*, expected at"):
        QuantizerTrainer(8, number)
