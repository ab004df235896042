"""The quantizer's file and its id."""

import errno
import re

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from espnet_mvq.quantization import Quantizer


@pytest.fixture
def quantizer():
    return Quantizer(
        torch.arange(8.0).reshape(2, 2, 2),
        mean=torch.tensor([0.5, -1.0]),
        scale=torch.tensor([1.0, 2.0]),
        provenance={"teacher": "s3prl/fbank", "layer": 1},
    )


@pytest.fixture
def path(quantizer, tmp_path):
    quantizer.save(tmp_path / "quantizer.safetensors")
    return tmp_path / "quantizer.safetensors"


def rewrite(path, change_tensors=None, **metadata):
    """Change a quantizer file behind its back."""
    with safe_open(path, framework="pt") as file:
        old = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if change_tensors:
        change_tensors(tensors)
    safetensors.torch.save_file(tensors, path, metadata={**old, **metadata})


def test_round_trip(quantizer, path):
    loaded = Quantizer.load(path)
    for name in ("codebooks", "mean", "scale"):
        assert torch.equal(getattr(loaded, name), getattr(quantizer, name))
    assert loaded.id == quantizer.id
    assert loaded.provenance == {"teacher": "s3prl/fbank", "layer": 1}
    assert (loaded.num_codebooks, loaded.codebook_size, loaded.dim) == (2, 2, 2)
    x = torch.randn(7, 2)
    assert torch.equal(loaded.encode(x), quantizer.encode(x))


def test_file_describes_itself(path):
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["codebooks", "mean", "scale"]
        metadata = file.metadata()
    assert metadata["format"] == "espnet_mvq.quantizer"
    assert metadata["version"] == "1"
    sizes = [metadata[name] for name in ("num_codebooks", "codebook_size", "dim")]
    assert sizes == ["2", "2", "2"]


def test_id_is_fixed_for_ever(quantizer):
    """Files in the world name quantizers by it: it must never change."""
    assert quantizer.id == "d3428c78d6022050"


def test_equal_content_equal_id(quantizer):
    parts = quantizer.codebooks, quantizer.mean, quantizer.scale
    same = Quantizer(*(part.clone() for part in parts), provenance={"layer": 9})
    assert same.id == quantizer.id
    for changed in range(3):
        others = [part.clone() for part in parts]
        others[changed][-1] += 1e-3
        assert Quantizer(*others).id != quantizer.id
    assert Quantizer(parts[0].reshape(1, 4, 2), *parts[1:]).id != quantizer.id


def test_saving_replaces_the_file_and_leaves_no_other(quantizer, path):
    other = Quantizer(torch.zeros(1, 2, 2))
    other.save(str(path))
    assert Quantizer.load(path).id == other.id
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="espnet_mvq.bin.train_quantizer"):
        Quantizer.load(tmp_path / "quantizer.safetensors")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_file_is_refused(path, size):
    path.write_bytes(path.read_bytes()[:size])
    message = f"{re.escape(str(path))}: not a whole safetensors file"
    with pytest.raises(ValueError, match=message):
        Quantizer.load(path)


def test_safetensors_of_something_else_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no quantizer of espnet_mvq.*'weight'"):
        Quantizer.load(path)


@pytest.mark.parametrize(
    "change, metadata, message",
    [
        (lambda tensors: tensors.pop("mean"), {}, "no quantizer"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), {}, "extra"),
        (
            lambda tensors: tensors["mean"].add_(1),
            {},
            "differs from the id .* it was s",
        ),
        (None, {"id": "0" * 16}, "id 0000000000000000"),
        (None, {"version": "2"}, "got version '2'.*newer espnet_mvq"),
        (None, {"provenance": "{"}, "^quantizer .*quantizer.safetensors: "),
        (None, {"provenance": "[1]"}, "^quantizer .*quantizer.safetensors: "),
    ],
)
def test_changed_files_are_refused(path, change, metadata, message):
    rewrite(path, change, **metadata)
    with pytest.raises(ValueError, match=message):
        Quantizer.load(path)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("codebooks", float("nan"), "codebooks: got NaN or infinity"),
        ("codebooks", 1e300, "codebooks: got NaN or infinity in float32"),
        ("mean", float("inf"), "mean: got NaN or infinity"),
        ("scale", 0.0, "scale: got zero"),
    ],
)
def test_unusable_values_are_refused(path, name, value, message):
    def change(tensors):
        tensors[name] = torch.full_like(tensors[name], value, dtype=torch.float64)

    rewrite(path, change)
    message = f"quantizer {re.escape(str(path))}: {message}"
    with pytest.raises(ValueError, match=message):
        Quantizer.load(path)


@pytest.mark.parametrize("method", ["save", "to_multi_quantization"])
def test_failed_writing_keeps_the_old_file(quantizer, path, monkeypatch, method):
    before = path.read_bytes()

    def write(self, content):
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", write)
    message = f"{re.escape(str(path))}: could not be written .No space left on device"
    with pytest.raises(OSError, match=message):
        getattr(quantizer, method)(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_changed_byte_is_noticed(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="the file was changed|not a whole"):
        Quantizer.load(path)
