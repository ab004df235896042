"""A small training set on disk, for tests that run ESPnet's own commands."""

import sys
import types

import numpy as np
import pytest
import torch
import yaml
from builders import MASK, PRETRAINING, TINY_MODEL, write_indexes, write_wavs

NUM_SAMPLES = 8000
TRAINING = {
    **TINY_MODEL,
    "model": "mvq",
    "model_conf": {"ctc_weight": 0.5, "mvq_conf": {"layer": 1}},
    # ESPnet draws the order of batches, but never changes a batch: these are utterances
    # 0 to 3 and 4 to 7.
    "use_preprocessor": False,
    "batch_type": "unsorted",
    "batch_size": 4,
    "num_workers": 0,
    "max_epoch": 2,
    "optim": "adam",
    "optim_conf": {"lr": 0.01},
    "best_model_criterion": [["valid", "loss", "min"]],
    "num_att_plot": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "allow_variable_data_keys": True,
}


class StandInRNNTLoss(torch.nn.Module):
    """Stands in for a loss that must be compiled: any function of the same input."""

    def __init__(self, reduction="mean", **options):
        super().__init__()
        self.reduction = reduction

    def forward(self, joint_out, target, frames, labels):
        losses = -joint_out.log_softmax(3)[..., 0].mean((1, 2))
        return losses.mean() if self.reduction == "mean" else losses


def put_rnnt_loss(monkeypatch, loss):
    module = types.ModuleType("warprnnt_pytorch")
    module.RNNTLoss = loss
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", module)


@pytest.fixture
def rnnt_loss(monkeypatch):
    """Replace the compiled transducer loss by a function of the same input."""
    put_rnnt_loss(monkeypatch, StandInRNNTLoss)


@pytest.fixture
def numba_rnnt_loss(monkeypatch):
    """Replace the compiled transducer loss by ESPnet's own in numba."""
    from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba

    put_rnnt_loss(monkeypatch, RNNTLossNumba)


@pytest.fixture
def write_training(tmp_path):
    """Return a function that writes a training's data and configuration.

    Its utterances u0 to u7 are training and validation set; it takes those that have
    codebook indexes (in the training set alone), and options of ESPnet. It returns the
    path of the yaml.
    """

    def write(with_indexes=range(8), **options):
        noise = np.random.default_rng(0)
        indexes = {f"u{n}": noise.integers(0, 4, (24, 2)) for n in with_indexes}
        ours = [str(write_indexes(tmp_path, indexes)), "codebook_indexes", "mvq_ark"]
        write_wavs(tmp_path, {f"u{n}": NUM_SAMPLES for n in range(8)})
        texts, shapes = tmp_path / "text", tmp_path / "speech_shape"
        texts.write_text("".join(f"u{n} 2 3\n" for n in range(8)))
        shapes.write_text("".join(f"u{n} {NUM_SAMPLES}\n" for n in range(8)))
        stock = [[str(tmp_path / "wav.scp"), "speech", "sound"]]
        stock.append([str(texts), "text", "text_int"])
        config = {
            **TRAINING,
            "train_data_path_and_name_and_type": [*stock, ours],
            "valid_data_path_and_name_and_type": stock,
            "train_shape_file": [str(shapes)],
            "valid_shape_file": [str(shapes)],
            "output_dir": str(tmp_path / "exp"),
            **options,
        }
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def write_pretraining(write_training, tmp_path):
    """Return `write_training` for the task ssl: masked speech without text."""

    def write(with_indexes=range(8), **options):
        path = write_training(with_indexes)
        asr = yaml.safe_load(path.read_text())
        asr_only = ("decoder", "decoder_conf", "token_type")
        config = {key: value for key, value in asr.items() if key not in asr_only}
        config.update(PRETRAINING, model_conf={"mvq_conf": {"mask": MASK}}, **options)
        for kind in ("train", "valid"):
            data = config[f"{kind}_data_path_and_name_and_type"]
            config[f"{kind}_data_path_and_name_and_type"] = [
                entry for entry in data if entry[1] != "text"
            ]
        path = tmp_path / "pretrain.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write
