"""Quantizers taken over from k2-fsa's multi_quantization give its indexes."""

from pathlib import Path

import multi_quantization
import pytest
import torch

from espnet_mvq.quantization import Quantizer, QuantizerTrainer
from espnet_mvq.quantization import quantizer as quantizer_module
from espnet_mvq.quantization.classifier_quantizer import tournament_pass
from espnet_mvq.quantization.gram import GramTables


def build_theirs(num_codebooks, codebook_size=256, dim=16):
    """Return a random quantizer whose scales are not those it starts with."""
    theirs = multi_quantization.Quantizer(dim, codebook_size, num_codebooks)
    with torch.no_grad():
        theirs.centers_scale.fill_(0.03)
        theirs.logits_scale.fill_(-0.02)
        theirs.to_logits.bias.normal_(std=0.1)
    return theirs


def assert_same_indexes(ours, theirs, x, num_passes):
    expected = theirs.encode(x, refine_indexes_iters=num_passes, as_bytes=False)
    assert torch.equal(ours.encode(x, refine_passes=num_passes).long(), expected)


@pytest.mark.parametrize(
    "num_codebooks, codebook_size, num_passes",
    [
        (number, size, passes)
        for number, size in [(1, 16), (2, 256), (4, 256), (8, 256), (8, 16)]
        for passes in (0, 1, 5)
    ]
    + [(16, 256, 2)],
)
def test_indexes_are_theirs(num_codebooks, codebook_size, num_passes):
    theirs, x = build_theirs(num_codebooks, codebook_size), torch.randn(20, 16)
    ours = Quantizer.from_multi_quantization(theirs.state_dict())
    assert_same_indexes(ours, theirs, x, num_passes)


def test_decoded_frames_are_theirs():
    theirs = build_theirs(4)
    ours = Quantizer.from_multi_quantization(theirs.state_dict())
    indexes = torch.randint(0, 256, (9, 4))
    torch.testing.assert_close(ours.decode(indexes), theirs.decode(indexes))


def test_file_round_trip_keeps_the_classifier(tmp_path):
    torch.save(build_theirs(2).state_dict(), tmp_path / "theirs.pt")
    ours = Quantizer.from_multi_quantization(tmp_path / "theirs.pt")
    ours.save(tmp_path / "quantizer.safetensors")
    again = Quantizer.load(tmp_path / "quantizer.safetensors")
    x = torch.randn(20, 16)
    assert again.id == ours.id
    assert torch.equal(
        again.encode(x, refine_passes=0), ours.encode(x, refine_passes=0)
    )


def test_normalisation_of_spear_is_applied():
    theirs = build_theirs(4)
    mean, std = torch.randn(16), torch.rand(16) + 0.5
    state = {"quantizer": theirs.state_dict(), "mean": mean, "std": std}
    ours = Quantizer.from_multi_quantization(state)
    x = torch.randn(30, 16)
    normalised = (x - mean) / (std + 1e-5)
    expected = theirs.encode(normalised, refine_indexes_iters=3, as_bytes=False)
    assert torch.equal(ours.encode(x, refine_passes=3).long(), expected)


def test_encoding_in_chunks_is_encoding_at_once(monkeypatch):
    ours = Quantizer.from_multi_quantization(build_theirs(4).state_dict())
    x = torch.randn(11, 16)
    whole = ours.encode(x)
    monkeypatch.setattr(quantizer_module, "_CHUNK_BYTES", 1)
    assert torch.equal(ours.encode(x), whole)


def test_given_indexes_are_refined_and_never_made_worse():
    ours = Quantizer.from_multi_quantization(build_theirs(4).state_dict())
    x, start = torch.randn(30, 16), torch.randint(0, 256, (30, 4))
    result = ours.encode(x, initial_indexes=start)
    before = (x - ours.decode(start)).square().sum(1)
    assert ((x - ours.decode(result)).square().sum(1) <= before + 1e-4).all()


def test_pairs_are_searched_jointly():
    """A pair of changes that only pays together, which one at a time cannot find."""
    codebooks = torch.tensor([[[0.0], [5.0]], [[0.0], [-4.9]]])
    tables, x = GramTables(codebooks), torch.tensor([[0.1]])
    unary = tables.unary_costs(x)
    start = torch.zeros(1, 2, dtype=torch.long)
    assert tournament_pass(tables, unary, start).tolist() == [[1, 1]]


def trained_quantizer(num_codebooks=4, **options):
    """Return a quantizer trained on correlated frames, and other such frames."""
    torch.manual_seed(0)
    frames = torch.randn(3000, 8) @ torch.randn(8, 16) + 0.1 * torch.randn(3000, 16)
    frames, sizes = frames + 3, {"codebook_size": 16, "num_iterations": 4}
    trainer = QuantizerTrainer(16, num_codebooks, **sizes, **options)
    return trainer.fit(frames[:2800]), frames[2800:]


@pytest.mark.parametrize("num_codebooks", [2, 4, 8, 16])
def test_indexes_are_theirs_with_a_trained_checkpoint(num_codebooks):
    torch.manual_seed(0)
    frames = torch.randn(500, 4) @ torch.randn(4, 16) + 0.1 * torch.randn(500, 16)
    device = torch.device("cpu")
    trainer = multi_quantization.QuantizerTrainer(16, num_codebooks, device, 4, 4)
    while not trainer.done():
        trainer.step(frames[torch.randint(500, (64,))])
    theirs = trainer.get_quantizer()
    ours = Quantizer.from_multi_quantization(theirs.state_dict())
    x = frames[:20]
    for num_passes in (0, 1, 5):
        assert_same_indexes(ours, theirs, x, num_passes)


def test_our_search_on_their_codebooks_is_not_worse():
    theirs, x = build_theirs(4), torch.randn(200, 16)
    ours = Quantizer.from_multi_quantization(theirs.state_dict())
    by_beam = Quantizer(ours.codebooks).relative_reconstruction_error(x)
    assert by_beam < 1.02 * ours.relative_reconstruction_error(x)


@pytest.mark.parametrize("normalize", ["mean", "mean_std"])
def test_exported_quantizer_is_loaded_by_theirs(tmp_path, normalize):
    ours, y = trained_quantizer(normalize=normalize)
    ours.to_multi_quantization(tmp_path / "theirs.pt")
    state = torch.load(tmp_path / "theirs.pt", weights_only=True)
    theirs = multi_quantization.Quantizer(16, 16, 4)
    normalised = y
    if normalize == "mean_std":
        normalised = (y - state["mean"]) / (state["std"] + 1e-5)
        state = state["quantizer"]
    theirs.load_state_dict(state)
    indexes = theirs.encode(normalised, as_bytes=False)
    again = Quantizer.from_multi_quantization(tmp_path / "theirs.pt")
    assert torch.equal(again.encode(y).long(), indexes)
    torch.testing.assert_close(again.decode(indexes), ours.decode(indexes))
    best = ours.relative_reconstruction_error(y)
    assert ours.relative_reconstruction_error(y, indexes) < 1.3 * best


def test_exported_classifier_finds_most_of_what_refinement_finds(tmp_path):
    """Without any refinement the derived classifier is far better than chance."""
    ours, y = trained_quantizer(num_codebooks=2)
    ours.to_multi_quantization(tmp_path / "theirs.pt")
    again = Quantizer.from_multi_quantization(tmp_path / "theirs.pt")
    right = again.encode(y, refine_passes=0) == ours.encode(y)
    assert right.float().mean() > 0.4  # chance is 1/16


def test_taken_over_quantizer_goes_back_unchanged(tmp_path):
    theirs, x = build_theirs(4), torch.randn(30, 16)
    ours = Quantizer.from_multi_quantization(theirs.state_dict())
    ours.to_multi_quantization(tmp_path / "again.pt")
    again = multi_quantization.Quantizer(16, 256, 4)
    again.load_state_dict(torch.load(tmp_path / "again.pt", weights_only=True))
    assert torch.equal(again.encode(x), theirs.encode(x))


def test_sizes_that_theirs_has_not_are_refused(tmp_path):
    for codebooks, what in (
        (torch.randn(3, 4, 8), "num_codebooks 3"),
        (torch.randn(2, 10, 8), "codebook_size 10"),
    ):
        with pytest.raises(ValueError, match=f"got {what}, expected a power of two"):
            Quantizer(codebooks).to_multi_quantization(tmp_path / "theirs.pt")


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pt: no such file"):
        Quantizer.from_multi_quantization(tmp_path / "none.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt: got no centers, .*state dict"):
        Quantizer.from_multi_quantization(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"centers": Path("x")}, tmp_path / "code.pt")  # would run code
    for name in ("text.pt", "code.pt"):
        with pytest.raises(ValueError, match=f"{name}: not loadable") as raised:
            Quantizer.from_multi_quantization(tmp_path / name)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"centers": float("nan")}, "centers: got NaN or infinity"),
        ({"centers": 1e300}, "centers: got NaN or infinity in float32"),
        ({"centers_scale": 100.0}, "codebooks: got NaN or infinity in float32"),
        ({"logits_scale": float("nan")}, "logits_scale: got NaN"),
        ({"to_logits.weight": float("nan")}, r"to_logits.weight: got NaN"),
        ({"to_logits.bias": float("inf")}, r"to_logits.bias: got NaN"),
        ({"std": float("nan")}, "std: got NaN"),
        ({"std": -1.0}, "scale: got zero, negative"),
        ({"mean": 1e300}, "mean: got NaN"),
        ({"mean": None}, "got std alone, expected mean and std, or none"),
        ({"centers": "text"}, "centers: got str, expected a float tensor"),
    ],
)
def test_checkpoint_with_unusable_values_is_refused(tmp_path, changes, message):
    """File and tensor are named, in one line."""
    parts = {"mean": torch.zeros(16), "std": torch.ones(16)}
    parts.update(build_theirs(2, 16).state_dict())
    for name, value in changes.items():
        if isinstance(value, float):
            value = torch.full_like(parts[name], value, dtype=torch.float64)
        parts[name] = value
    mean, std = parts.pop("mean"), parts.pop("std")
    path = tmp_path / "theirs.pt"
    torch.save({"quantizer": parts, "mean": mean, "std": std}, path)
    with pytest.raises(ValueError, match=f"theirs.pt: {message}") as raised:
        Quantizer.from_multi_quantization(path)
    assert "\n" not in str(raised.value)
