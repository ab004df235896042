"""Encoding, decoding and the error of a quantizer."""

import numpy as np
import pytest
import torch

from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization import quantizer as module
from espnet_mvq.quantization.classifier_quantizer import ClassifierQuantizer


def huge(*shape):
    """Return values that float32 does not hold."""
    return torch.full(shape, 1e300, dtype=torch.float64)


@pytest.fixture
def quantizer():
    return Quantizer(torch.randn(2, 4, 8), torch.randn(8), torch.rand(8) + 0.5)


@pytest.mark.parametrize("shape", [(8,), (7, 8), (2, 7, 8), (0, 8), (2, 0, 8)])
def test_encode_and_decode_keep_leading_dimensions(quantizer, shape):
    indexes = quantizer.encode(torch.randn(shape))
    assert indexes.shape == (*shape[:-1], 2) and indexes.dtype == torch.uint8
    decoded = quantizer.decode(indexes)
    assert decoded.shape == shape and decoded.dtype == torch.float32


def test_decode_adds_entries_and_undoes_the_normalisation(quantizer):
    indexes = torch.randint(0, 4, (7, 2))
    first, second = quantizer.codebooks
    sums = torch.stack([first[i] + second[j] for i, j in indexes.tolist()])
    expected = sums * quantizer.scale + quantizer.mean
    torch.testing.assert_close(quantizer.decode(indexes), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_exact_sums_come_back(quantizer, dtype):
    indexes = torch.randint(0, 4, (7, 2)).to(dtype)
    result = quantizer.encode(quantizer.decode(indexes), beam_size=16)
    assert torch.equal(result.long(), indexes.long())


def test_all_values_of_a_byte_are_used():
    quantizer = Quantizer(torch.arange(256.0).reshape(1, 256, 1))
    x = torch.arange(256.0).unsqueeze(1)
    assert quantizer.encode(x).flatten().tolist() == list(range(256))
    assert torch.equal(quantizer.decode(quantizer.encode(x)), x)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("initial", [False, True])
def test_encoding_in_chunks_equals_encoding_at_once(monkeypatch, beam_size, initial):
    quantizer = Quantizer(torch.randn(3, 8, 8))
    x = torch.randn(20, 8)
    options = {"beam_size": beam_size}
    if initial:
        options["initial_indexes"] = torch.randint(0, 8, (20, 3))
    whole = quantizer.encode(x, **options)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 2000)  # a few frames
    assert torch.equal(quantizer.encode(x, **options), whole)
    error = quantizer.relative_reconstruction_error(x, whole)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    assert torch.equal(quantizer.encode(x, **options), whole)
    assert quantizer.relative_reconstruction_error(x, whole) == pytest.approx(error)


def test_half_precision_frames(quantizer):
    x = torch.randn(7, 8)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        rounded = x.to(dtype)
        expected = quantizer.encode(rounded.float())
        assert torch.equal(quantizer.encode(rounded), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_classifier", [False, True])
def test_autocast_changes_nothing(dtype, with_classifier):
    parts = {"codebooks": torch.randn(2, 8, 8), "mean": torch.randn(8)}
    kind = ClassifierQuantizer if with_classifier else Quantizer
    if with_classifier:
        parts["classifier_weight"] = torch.randn(16, 8)
        parts["classifier_bias"] = torch.randn(16)
    x = torch.randn(300, 8)
    expected, quantizer = kind(**parts).encode(x), kind(**parts)
    error = quantizer.relative_reconstruction_error(x, expected)
    quantizer = kind(**parts)  # its tables are made under autocast
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(quantizer.encode(x), expected)
        decoded = quantizer.decode(expected)
        assert quantizer.relative_reconstruction_error(x) == error
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, quantizer.decode(expected))
    assert torch.equal(quantizer.encode(x), expected)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.T.contiguous().T,
        lambda x: x.clone().requires_grad_(),
        lambda x: x.double(),
        lambda x: x.numpy(),
        lambda x: x.numpy().astype(np.float64),
        lambda x: np.asfortranarray(x.numpy()),
        lambda x: np.frombuffer(x.numpy().tobytes(), np.float32).reshape(7, 8),
    ],
)
@pytest.mark.filterwarnings("error")
def test_frames_of_other_layouts_and_arrays(quantizer, convert):
    x = torch.randn(7, 8)
    expected = quantizer.encode(x)
    result = quantizer.encode(convert(x))
    assert torch.equal(result, expected) and not result.requires_grad
    decoded = quantizer.decode(expected.numpy())
    assert torch.equal(decoded, quantizer.decode(expected))
    error = quantizer.relative_reconstruction_error(convert(x), expected.numpy())
    assert error == pytest.approx(quantizer.relative_reconstruction_error(x))


@pytest.mark.parametrize(
    "x, message",
    [
        ([[0.0] * 8], "got list, expected a torch tensor or a numpy array"),
        (None, "got NoneType"),
        (np.zeros((3, 8), ">f4"), "got a numpy array of >f4 that torch does not"),
        (np.zeros((3, 8))[::-1], "got a numpy array of float64 .*negative"),
        (np.zeros((3, 8), object), "got a numpy array of object"),
        (np.zeros((3, 8), int), r"expected float \(\*, 8\)"),
        (torch.zeros(3, 8, dtype=torch.int64), r"expected float \(\*, 8\)"),
        (torch.zeros(3, 7), r"expected float \(\*, 8\)"),
        (torch.tensor(1.0), r"expected float \(\*, 8\)"),
        (huge(3, 8), r"up to 1e\+300 in frame 0"),
        (torch.full((3, 8), 3e38), r"values up to 3e\+38 in frame 0"),
    ],
)
def test_unusable_frames_are_refused_in_one_line(quantizer, x, message):
    with pytest.raises(ValueError, match=message) as raised:
        quantizer.encode(x)
    assert "\n" not in str(raised.value)


def test_quantizer_in_half_precision_is_refused(quantizer):
    with pytest.raises(ValueError, match="got torch.float16, expected torch.float32"):
        quantizer.half().encode(torch.randn(3, 8).half())


def test_loading_other_codebooks_renews_the_cached_tables(quantizer):
    x = torch.randn(7, 8)
    first = quantizer.encode(x)
    other = Quantizer(quantizer.codebooks.flip(1), quantizer.mean, quantizer.scale)
    assert torch.equal(other.encode(x).long(), 3 - first.long())
    quantizer.load_state_dict(other.state_dict())
    assert torch.equal(quantizer.encode(x), other.encode(x))


def test_relative_reconstruction_error_by_the_formula(quantizer):
    x = torch.randn(2, 7, 8)
    rest = (x - quantizer.decode(quantizer.encode(x))).square().sum()
    spread = (x - x.reshape(-1, 8).mean(0)).square().sum()
    error = quantizer.relative_reconstruction_error(x)
    assert error == pytest.approx(float(rest / spread), rel=1e-5)
    worse = quantizer.relative_reconstruction_error(x, torch.zeros(2, 7, 2).long())
    assert worse > error
    mean = Quantizer(torch.zeros(1, 2, 8), mean=x.reshape(-1, 8).mean(0))
    assert mean.relative_reconstruction_error(x) == pytest.approx(1, rel=1e-5)


def test_error_of_unusable_frames_or_indexes_is_refused(quantizer, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 32 * 8 * 5)  # five frames
    with pytest.raises(ValueError, match="indexes: got 5 of 10 frames"):
        quantizer.relative_reconstruction_error(torch.randn(10, 8), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="NaN or infinity in the frames"):
        frames, indexes = torch.full((5, 8), torch.nan), torch.zeros(5, 2).byte()
        quantizer.relative_reconstruction_error(frames, indexes)
    with pytest.raises(ValueError, match="all 3 frames are equal"):
        quantizer.relative_reconstruction_error(torch.ones(3, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_first_bad_frame_is_named(quantizer, value, monkeypatch):
    x = torch.randn(2, 7, 8)
    x[1, 3, 2] = x[1, 5, 0] = value
    with pytest.raises(ValueError, match=r"NaN or infinity in frame 10 "):
        quantizer.encode(x)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1)
    with pytest.raises(ValueError, match=r"NaN or infinity in frame 10 "):
        quantizer.encode(x)


@pytest.mark.parametrize(
    "indexes, message",
    [
        (torch.zeros(7, 3, dtype=torch.int64), r"expected \(\*, 2\)"),
        (torch.zeros(7, 2), "expected an integer type"),
        (torch.zeros(7, 2, dtype=torch.bool), "expected an integer type"),
        (torch.full((7, 2), 4), "values from 4 to 4, expected 0 to 3"),
        (torch.full((7, 2), -1), "values from -1 to -1"),
        (torch.tensor(1), "got shape"),
    ],
)
def test_bad_indexes_are_refused(quantizer, indexes, message):
    with pytest.raises(ValueError, match=message):
        quantizer.decode(indexes)
    with pytest.raises(ValueError, match=message):
        quantizer.encode(torch.zeros(7, 8), initial_indexes=indexes)


def test_initial_indexes_of_other_frames_are_refused(quantizer):
    with pytest.raises(ValueError, match="got 6 frames, x has 7"):
        quantizer.encode(torch.zeros(7, 8), initial_indexes=torch.zeros(6, 2).long())


@pytest.mark.parametrize(
    "option, value",
    [("beam_size", 0), ("beam_size", 2.5), ("beam_size", "8"), ("beam_size", -1)]
    + [("refine_passes", -1), ("pair_candidates", -1), ("perturbation_rounds", -1)],
)
def test_search_settings_out_of_range_are_refused(quantizer, option, value):
    with pytest.raises(ValueError, match=f"{option}: got {value!r}, expected at least"):
        quantizer.encode(torch.zeros(7, 8), **{option: value})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(4, 8),), "codebooks: got shape"),
        ((torch.zeros(0, 4, 8),), "none of them 0"),
        ((torch.zeros(2, 1, 8),), "expected 2 to 256"),
        ((torch.zeros(2, 257, 8),), "expected 2 to 256"),
        ((torch.full((2, 4, 8), float("nan")),), "codebooks: got NaN"),
        ((torch.zeros(2, 4, 8), torch.zeros(7)), r"mean: .* expected \(8,\)"),
        ((torch.zeros(2, 4, 8), None, torch.zeros(8)), "scale: got zero"),
        ((torch.zeros(2, 4, 8), None, -torch.ones(8)), "scale: got zero, negative"),
        ((huge(2, 4, 8),), "codebooks: got NaN or infinity in float32"),
        ((torch.full((2, 4, 8), 1e20),), r"codebooks: got values up to 1e\+20"),
        ((torch.zeros(2, 4, 8), huge(8)), "mean: got NaN or infinity in float32"),
        ((torch.zeros(2, 4, 8), None, huge(8)), "scale: got zero, .* in float32"),
        ((torch.zeros(2, 4, 8), None, 1 / huge(8)), "scale: got zero, .* in float32"),
        (([[1.0]],), "codebooks: got list"),
        ((torch.zeros(2, 4, 8, dtype=torch.complex64),), "codebooks: got .*complex64"),
    ],
)
def test_unusable_tensors_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Quantizer(*arguments)


@pytest.mark.parametrize(
    "num_codebooks, weight, bias, message",
    [
        (2, torch.full((8, 8), float("nan")), torch.ones(8), "_weight: got NaN"),
        (2, torch.ones(8, 8), huge(8), "classifier_bias: got NaN"),
        (2, torch.ones(7, 8), torch.ones(8), r"_weight: got shape \(7, 8\), expected"),
        (2, torch.ones(8, 8), None, "got one of weight and bias, expected both"),
        (3, torch.ones(12, 8), torch.ones(12), "got 3 codebooks, expected a power of"),
    ],
)
def test_unusable_classifiers_are_refused(num_codebooks, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        ClassifierQuantizer(
            torch.ones(num_codebooks, 4, 8),
            classifier_weight=weight,
            classifier_bias=bias,
        )
