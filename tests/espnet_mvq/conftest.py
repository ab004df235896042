"""Fixtures shared by the tests of the package: seed, speech, a tiny ESPnet model."""

import random

import numpy as np
import pytest
import soundfile
import torch

SAMPLE_RATE = 16_000
TINY_MODEL = {
    "token_list": ["<blank>", "<unk>", "a", "b", "<sos/eos>"],
    "token_type": "char",
    "specaug": None,
    "normalize": None,
    "frontend_conf": {"n_fft": 128, "hop_length": 160, "n_mels": 8},
    "encoder": "transformer",
    "encoder_conf": {
        "output_size": 8,
        "attention_heads": 2,
        "linear_units": 8,
        "num_blocks": 2,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    },
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 8, "num_blocks": 1},
    "model_conf": {"ctc_weight": 0.5},
}
# Teacher of 50 frames a second, centred as those with windows of 400 samples are
MVQ_CONF = {
    "num_codebooks": 2,
    "codebook_size": 4,
    "sample_rate": SAMPLE_RATE,
    "frame_shift_samples": 320,
    "frame_offset_samples": 199.5,
    "quantizer_id": "0123456789abcdef",
}


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
def build_model():
    """Return a function that builds a tiny ESPnet ASR model, by default `mvq`."""
    from espnet2.tasks.asr import ASRTask

    import espnet_mvq

    espnet_mvq.register()

    def build(mvq_conf=None, model="mvq", **options):
        args = ASRTask.get_parser().parse_args(["--output_dir", "unused"])
        for name, value in {**TINY_MODEL, **options}.items():
            if name.endswith("_conf"):
                value = {**TINY_MODEL.get(name, {}), **value}
                # None takes an option of the tiny model away
                value = {k: v for k, v in value.items() if v is not None}
            setattr(args, name, value)
        args.model = model
        if model == "mvq":
            conf = {**MVQ_CONF, **(mvq_conf or {})}
            args.model_conf = {**args.model_conf, "mvq_conf": conf}
        torch.manual_seed(1)
        return ASRTask.build_model(args)

    return build


@pytest.fixture
def build_recurrent_model(build_model):
    """Return a function that builds a model with an LSTM that subsamples by 4."""
    conf = dict.fromkeys(TINY_MODEL["encoder_conf"])
    conf.update(hidden_size=8, output_size=8, num_layers=2)

    def build(mvq_conf=None, **options):
        return build_model(mvq_conf, encoder="rnn", encoder_conf=conf, **options)

    return build


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
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(7)
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    folder = tmp_path_factory.mktemp("teacher") / "tiny_hubert"
    HubertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def teacher_options(teacher_dir):
    return ["--teacher", f"transformers/{teacher_dir}", "--layer", "1"]


@pytest.fixture
def data_dir(tmp_path):
    """Write 6 short wavs, with wav.scp and utt2num_samples as ESPnet's stages do."""
    folder = tmp_path / "data"
    folder.mkdir()
    generator = np.random.default_rng(0)
    scp, lengths = [], []
    for number in range(6):
        samples = 0.1 * generator.standard_normal(6400 + 1600 * number)
        soundfile.write(folder / f"{number}.wav", samples, 16000)
        scp.append(f"utt{number} {folder}/{number}.wav\n")
        lengths.append(f"utt{number} {len(samples)}\n")
    (folder / "wav.scp").write_text("".join(scp))
    (folder / "utt2num_samples").write_text("".join(lengths))
    return folder
