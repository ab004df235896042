"""A small training set on disk, for tests that run ESPnet's own commands."""

import numpy as np
import pytest
import soundfile
import yaml

from espnet_mvq.indexes import IndexMetadata, ShardWriter
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME
from espnet_mvq.indexes.shard import shard_paths

NUM_SAMPLES = 8000
METADATA = {
    "teacher": "teacher",
    "layer": 1,
    "num_codebooks": 2,
    "codebook_size": 4,
    "sample_rate": 16_000,
    "frame_shift_samples": 320,
    "frame_offset_samples": 199.5,
    "quantizer_id": "0123456789abcdef",
}
SIZES = {"attention_heads": 2, "linear_units": 8}
TRAINING = {
    "token_list": ["<blank>", "<unk>", "a", "b", "<sos/eos>"],
    "frontend_conf": {"n_fft": 128, "hop_length": 160, "n_mels": 8},
    "specaug": None,
    "normalize": None,
    "encoder": "transformer",
    "encoder_conf": {**SIZES, "output_size": 8, "num_blocks": 2},
    "decoder": "transformer",
    "decoder_conf": {**SIZES, "num_blocks": 1},
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


@pytest.fixture
def write_training(tmp_path):
    """Return a function that writes a training's data and configuration.

    Its utterances u0 to u7 are training and validation set; it takes those that have
    codebook indexes (in the training set alone), and options of ESPnet. It returns the
    path of the yaml.
    """

    def write(with_indexes=range(8), **options):
        metadata = IndexMetadata(**METADATA)
        noise = np.random.default_rng(0)
        with ShardWriter(tmp_path, 1, metadata) as shard:
            for n in with_indexes:
                shard.write(f"u{n}", noise.integers(0, 4, (24, 2), np.uint8))
        _, scp, json_path = shard_paths(tmp_path, 1)
        scp.rename(tmp_path / SCP_NAME)
        json_path.rename(tmp_path / METADATA_NAME)
        lines = {"wav.scp": "", "text": "", "speech_shape": ""}
        for n in range(8):
            wav = tmp_path / f"u{n}.wav"
            soundfile.write(wav, 0.1 * noise.standard_normal(NUM_SAMPLES), 16_000)
            lines["wav.scp"] += f"u{n} {wav}\n"
            lines["text"] += f"u{n} 2 3\n"
            lines["speech_shape"] += f"u{n} {NUM_SAMPLES}\n"
        for name, text in lines.items():
            (tmp_path / name).write_text(text)
        data = [("wav.scp", "speech", "sound"), ("text", "text", "text_int")]
        stock = [[str(tmp_path / name), *others] for name, *others in data]
        ours = [str(tmp_path / SCP_NAME), "codebook_indexes", "mvq_ark"]
        config = {
            **TRAINING,
            "train_data_path_and_name_and_type": [*stock, ours],
            "valid_data_path_and_name_and_type": stock,
            "train_shape_file": [str(tmp_path / "speech_shape")],
            "valid_shape_file": [str(tmp_path / "speech_shape")],
            "output_dir": str(tmp_path / "exp"),
            **options,
        }
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write
