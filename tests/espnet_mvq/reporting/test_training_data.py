"""The data of a teacher that a training read."""

import json

import numpy as np
import pytest
import torch
from builders import index_metadata
from experiment_builders import write_experiment, write_indexes

from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.quantization import Quantizer
from espnet_mvq.reporting.training_data import (
    find_quantizer,
    read_quality,
    recipe_folder,
    target_bytes,
)

ARRAYS = {"u1": np.zeros((100, 2), np.uint8), "u2": np.ones((50, 2), np.uint8)}


@pytest.fixture
def scp(tmp_path):
    return write_indexes(
        tmp_path, Quantizer(torch.randn(2, 4, 6)), index_metadata(), ARRAYS
    )


def test_data_on_disk_are_counted_once(tmp_path, scp):
    """Arks behind the scp, losses, quantizers; from any working folder."""
    loss = tmp_path / "dump" / "loss"
    loss.write_text("u1 0.5\n")
    quantizer = "dump/mvq/own/quantizer.safetensors"
    exp = write_experiment(
        tmp_path / "exp" / "a",
        [],
        data=[[scp, "codebook_indexes", "mvq_ark"], ["dump/loss", "l", "mvq_loss"]],
        model_conf={"mvq_conf": {"targets": {"x": {"quantizer": quantizer}}}},
    )
    (ark,) = tmp_path.glob("dump/mvq/own/train/*.ark")
    files = [ark, tmp_path / scp, loss, tmp_path / quantizer]
    assert target_bytes(exp) == sum(file.stat().st_size for file in files)
    ark.unlink()
    with pytest.raises(FileNotFoundError, match=ark.name):
        target_bytes(exp)


def test_quantizer_is_found_by_its_id(tmp_path, scp):
    metadata = IndexMetadata.beside(tmp_path / scp)
    own = tmp_path / "dump" / "mvq" / "own" / "quantizer.safetensors"
    assert find_quantizer(metadata, tmp_path / scp, tmp_path, {}) == own
    elsewhere = own.rename(tmp_path / "q.safetensors")
    Quantizer(torch.randn(2, 4, 6)).save(own)  # another one
    assert find_quantizer(metadata, tmp_path / scp, tmp_path, {}) is None
    own.with_name("made_of.txt").write_text(f"layer=4\nquantizer={elsewhere}\n")
    assert find_quantizer(metadata, tmp_path / scp, tmp_path, {}) == elsewhere


def test_paths_start_at_the_recipe(tmp_path, scp, monkeypatch):
    config = {"train_data_path_and_name_and_type": [[scp, "speech", "sound"]]}
    exp = tmp_path / "exp" / "a"
    assert (recipe_folder(exp, config) / scp).samefile(tmp_path / scp)
    monkeypatch.chdir(tmp_path)
    assert str(recipe_folder(exp, config)) == "."


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"format": "other"})])
def test_other_files_are_no_quality_report(tmp_path, content):
    path = tmp_path / "quantizer_report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path}: got .* run it again"):
        read_quality(path)
