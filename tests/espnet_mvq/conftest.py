"""Fixtures shared by the tests of the package; `builders.py` has the functions."""

import random

import builders
import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    """Give every test the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def speech():
    """Return three utterances of noise, padded with zeros, and their lengths."""
    lengths = torch.tensor([9600, 8000, 6400])  # RNNs want them sorted
    waveforms = 0.1 * torch.randn(3, 9600)
    return waveforms * (torch.arange(9600) < lengths[:, None]), lengths


@pytest.fixture
def batch(speech):
    """Return a batch as ESPnet's collate gives it, with codebook indexes."""
    waveforms, lengths = speech
    index_lengths = lengths // 320
    indexes = torch.randint(0, 4, (3, 30, 2))
    padding = torch.arange(30) >= index_lengths[:, None]
    return {
        "speech": waveforms,
        "speech_lengths": lengths,
        "text": torch.tensor([[2, 3, 2], [3, 2, -1], [2, -1, -1]]),
        "text_lengths": torch.tensor([3, 2, 1]),
        "codebook_indexes": indexes.masked_fill(padding.unsqueeze(2), -1),
        "codebook_indexes_lengths": index_lengths,
    }


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory):
    """Save a HuBERT of 2 layers and 16 channels with random weights."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny_hubert"
    builders.save_hubert(folder)
    return folder


@pytest.fixture
def teacher_options(teacher_dir):
    return ["--teacher", f"transformers/{teacher_dir}", "--layer", "1"]


@pytest.fixture
def data_dir(tmp_path):
    """Write 6 short wavs, with wav.scp and utt2num_samples as ESPnet's stages do."""
    folder = tmp_path / "data"
    folder.mkdir()
    lengths = {f"utt{number}": 6400 + 1600 * number for number in range(6)}
    builders.write_wavs(folder, lengths)
    lines = [f"{utt_id} {length}\n" for utt_id, length in lengths.items()]
    (folder / "utt2num_samples").write_text("".join(lines))
    return folder
