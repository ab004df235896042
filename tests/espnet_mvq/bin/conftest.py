"""A tiny teacher and a small corpus for the commands."""

import numpy as np
import pytest
import soundfile
import torch


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


@pytest.fixture
def quantizer(data_dir, teacher_options, tmp_path):
    """Train a quantizer of 2 codebooks with 4 entries by the command."""
    from espnet_mvq.bin.train_quantizer import main

    path = tmp_path / "q" / "quantizer.safetensors"
    sizes = ["--num_codebooks", "2", "--codebook_size", "4", "--num_iterations", "2"]
    scp = ["--wav_scp", f"{data_dir}/wav.scp", "--quantizer", str(path)]
    main([*scp, *sizes, *teacher_options])
    return path


@pytest.fixture
def extract(quantizer, data_dir, teacher_options, tmp_path):
    """Return a function that runs the extraction as one job, and its options."""
    from espnet_mvq.bin.extract import main

    def run(*options, wav_scp=data_dir / "wav.scp", quantizer=quantizer, job=1):
        paths = ["--wav_scp", str(wav_scp), "--quantizer", str(quantizer)]
        paths += ["--outdir", str(tmp_path / "shards"), "--job", str(job)]
        main([*paths, *teacher_options, *options])

    return run


@pytest.fixture
def ends_with_error(caplog):
    """Return a function that expects exit code 1 and one ERROR line; returns it."""

    def check(call, *args, **kwargs):
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            call(*args, **kwargs)
        assert ended.value.code == 1
        errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        assert len(errors) == 1 and "\n" not in errors[0]
        return errors[0]

    return check
