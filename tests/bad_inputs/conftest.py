"""A small world of good and bad files for the table of bad inputs."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from builders import SAMPLE_RATE, TINY_MODEL
from corpus_builders import (
    QUANTIZER_SIZES,
    MakeFile,
    save_ctc,
    save_espnet,
    save_transformers,
    write_speech,
    write_table,
)
from safetensors.numpy import load_file, save_file

STUDENT = {
    **TINY_MODEL,
    "model": "mvq",
    "model_conf": {"ctc_weight": 0.5, "mvq_conf": {"layer": 1}},
    "use_preprocessor": False,
    "batch_type": "unsorted",
    "batch_size": 4,
    "num_workers": 0,
    "max_epoch": 1,
    "optim": "adam",
    "best_model_criterion": [["valid", "loss", "min"]],
    "num_att_plot": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "allow_variable_data_keys": True,
}


@pytest.fixture(autouse=True)
def keep_argv(monkeypatch):
    """Restore the options of this process, which the launcher replaces."""
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Return a folder with a corpus, teachers, a quantizer, indexes and bad files.

    The commands themselves make what they need, so the good rows of the table work.
    """
    folder = tmp_path_factory.mktemp("world")
    utt_ids = [f"u{n}" for n in range(4)]
    data = write_speech(folder / "data", dict.fromkeys(utt_ids, 8000))
    write_table(data / "text", dict.fromkeys(utt_ids, "2 3"))
    write_table(data / "utt2spk", dict.fromkeys(utt_ids, "s"))
    save_transformers(folder / "hubert", "Hubert")
    save_transformers(folder / "whisper", "Whisper")
    save_ctc(folder / "ctc", ["<pad>", "<unk>", "a", "b"])
    _run_commands(folder)
    _write_training(folder)
    for name in ("bad", "out", "recipe"):
        (folder / name).mkdir()
    raw = folder / "recipe" / "dump" / "raw"
    shutil.copytree(folder / "data", raw / "train")
    _write_bad_lists(folder)
    _write_bad_audio(folder)
    _write_bad_models(folder)
    _write_bad_indexes(folder)
    _write_bad_students(folder)
    return folder


def _run_commands(folder):
    from espnet_mvq.bin import combine_indexes, extract, train_quantizer
    from espnet_mvq.quantization import Quantizer

    teacher = ["--teacher", f"transformers/{folder}/hubert", "--layer", "1"]
    speech = ["--wav_scp", f"{folder}/data/wav.scp", *teacher]
    quantizer = f"{folder}/quantizer.safetensors"
    train_quantizer.main([*speech, "--quantizer", quantizer, *QUANTIZER_SIZES])
    shards = f"{folder}/shards"
    extract.main([*speech, "--quantizer", quantizer, "--outdir", shards])
    data = ["--data_dir", f"{folder}/data"]
    combine_indexes.main([*data, "--shards", shards, "--nj", "1"])
    teacher = ["--teacher", f"transformers/{folder}/ctc", "--target", "posteriors"]
    wav_scp = ["--wav_scp", f"{folder}/data/wav.scp"]
    extract.main([*wav_scp, *teacher, "--top_k", "2", "--outdir", shards])
    combine_indexes.main(
        [*data, "--shards", shards, "--nj", "1", "--target", "posteriors"]
    )
    np.save(folder / "feats.npy", np.random.default_rng(2).normal(size=(200, 16)))
    (folder / "npy").mkdir()
    for n in range(4):
        np.save(folder / "npy" / f"u{n}.npy", np.full((24, 2), n, np.uint8))
    checkpoint = folder / "multi_quantization.pt"
    Quantizer.load(quantizer).to_multi_quantization(checkpoint)


def _write_training(folder):
    data = folder / "data"
    (data / "speech_shape").write_text("".join(f"u{n} 8000\n" for n in range(4)))
    stock = [
        [f"{data}/wav.scp", "speech", "sound"],
        [f"{data}/text", "text", "text_int"],
    ]
    ours = [f"{data}/codebook_indexes.scp", "codebook_indexes", "mvq_ark"]
    config = {
        **STUDENT,
        "train_data_path_and_name_and_type": [*stock, ours],
        "valid_data_path_and_name_and_type": stock,
        "train_shape_file": [f"{data}/speech_shape"],
        "valid_shape_file": [f"{data}/speech_shape"],
        "output_dir": f"{folder}/exp",
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    (folder / "baseline.yaml").write_text(yaml.safe_dump(TINY_MODEL))
    (folder / "lm.yaml").write_text("lm: transformer\n")


def _write_bad_lists(folder):
    bad, good = folder / "bad", (folder / "data" / "wav.scp").read_text()
    texts = {
        "empty.scp": b"",
        "latin1.scp": f"{good}\xe9l\xe8ve x.wav\n".encode("latin-1"),
        "twice.scp": (good + good.splitlines(True)[0]).encode(),
        "one_column.scp": f"{good}u9\n".encode(),
        "no_audio.scp": f"u0 {folder}/no.wav\n".encode(),
        "pipe.scp": f"u0 touch {folder}/executed |\n".encode(),
        "num_samples_words": b"u0 many\nu1 8000\nu2 8000\nu3 8000\n",
        "no_losses": b"",
        "nan_losses": b"u0 nan\nu1 1\nu2 1\nu3 1\n",
        "word_losses": b"u0 low\nu1 1\nu2 1\nu3 1\n",
        "few_losses": b"u0 1.5\n",
        "no_json.json": b"{",
        "list.json": b"[]",
        "other.json": b'{"format": "x", "version": 1}',
        "text.npy": b"no array",
    }
    for name, content in texts.items():
        (bad / name).write_bytes(content)
    for name in ("empty_data", "few", "no_audio", "other_ids", "recordings"):
        shutil.copytree(folder / "data", bad / name)
    lines = good.splitlines(True)
    (bad / "few" / "wav.scp").write_text("".join(lines[:3]))
    shutil.copy(bad / "no_audio.scp", bad / "no_audio" / "wav.scp")
    (bad / "empty_data" / "wav.scp").write_text("")
    text = (folder / "data" / "text").read_text()
    (bad / "other_ids" / "text").write_text(text.replace("u", "v"))
    (bad / "recordings" / "segments").write_text("a u0 0 0.2\n")


def _write_bad_audio(folder):
    bad, noise = folder / "bad", 0.1 * np.random.default_rng(1).standard_normal(8000)
    soundfile.write(bad / "stereo.wav", np.stack([noise, noise], 1), SAMPLE_RATE)
    soundfile.write(bad / "8k.wav", noise, 8000)
    soundfile.write(bad / "none.wav", noise[:0], SAMPLE_RATE)
    noise[7] = np.nan
    soundfile.write(bad / "nan.wav", noise, SAMPLE_RATE, subtype="FLOAT")
    (bad / "text.wav").write_text("no audio")
    record = b"u0 PKL" + pickle.dumps(MakeFile(folder / "executed"))
    (bad / "malice.ark").write_bytes(record)
    for name in ("stereo", "8k", "none", "nan", "text"):
        (bad / f"{name}.scp").write_text(f"u0 {bad}/{name}.wav\n")
    (bad / "malice.scp").write_text(f"u0 {bad}/malice.ark:3\n")
    (bad / "malice_pipe.scp").write_text(f"u0 touch {folder}/executed |\n")


def _write_bad_models(folder):
    bad = folder / "bad"
    for name in ("no_weights", "cut_weights", "no_json", "other_type"):
        shutil.copytree(folder / "hubert", bad / name)
    (bad / "no_weights" / "model.safetensors").unlink()
    weights = (folder / "hubert" / "model.safetensors").read_bytes()
    (bad / "cut_weights" / "model.safetensors").write_bytes(weights[:-100])
    (bad / "no_json" / "config.json").write_text("{")
    config = json.loads((folder / "hubert" / "config.json").read_text())
    other = json.dumps({**config, "model_type": "bert"})
    (bad / "other_type" / "config.json").write_text(other)
    path = folder / "quantizer.safetensors"
    content = path.read_bytes()
    (bad / "cut.safetensors").write_bytes(content[: len(content) // 2])
    (bad / "text.safetensors").write_text("no quantizer")
    tensors = load_file(path)
    save_file({"a": tensors["mean"]}, bad / "other.safetensors")
    from espnet_mvq.quantization import Quantizer

    quantizer = Quantizer.load(path)
    save_quantizer = {
        "other_teacher": {"teacher": "transformers/other@0"},
        "other_layer": {"layer": 2},
        "utterance": {"level": "utterance"},
    }
    for name, changed in save_quantizer.items():
        other = Quantizer.load(path)
        other.provenance.update(changed)
        other.save(bad / f"{name}.safetensors")
    narrow = Quantizer(
        quantizer.codebooks[..., :8], quantizer.mean[:8], quantizer.scale[:8]
    )
    narrow.save(bad / "narrow.safetensors")
    for name, key, value in (
        ("nan", "to_logits.weight", np.nan),
        ("huge", "centers", 1e300),
    ):
        state = torch.load(folder / "multi_quantization.pt", weights_only=True)
        state = state.get("quantizer", state)
        state[key] = state[key].double()
        state[key].view(-1)[0] = value
        torch.save(state, bad / f"{name}.pt")
    np.save(bad / "narrow.npy", np.zeros((50, 8), np.float32))
    np.save(bad / "flat.npy", np.zeros(50, np.float32))
    np.save(bad / "objects.npy", np.array([{}], object), allow_pickle=True)


def _write_bad_indexes(folder):
    bad, data = folder / "bad", folder / "data"
    described = json.loads((data / "codebook_indexes.json").read_text())
    for name, changed in (
        ("shift_0", {"frame_shift_samples": 0}),
        ("shift_null", {"frame_shift_samples": None}),
        ("version", {"version": 99}),
        ("level", {"level": "word"}),
        ("unknown_field", {"colour": "red"}),
    ):
        text = json.dumps({**described, **changed})
        (bad / f"{name}.json").write_text(text)
        shutil.copy(data / "codebook_indexes.scp", bad / f"{name}.scp")
    for name in ("no_metadata", "no_json", "list", "other"):
        shutil.copy(data / "codebook_indexes.scp", bad / f"{name}.scp")
    shutil.copy(data / "codebook_indexes.json", bad / "malice.json")
    shutil.copy(data / "codebook_indexes.json", bad / "malice_pipe.json")
    lines = (data / "codebook_indexes.scp").read_text().splitlines()
    (bad / "no_ark.scp").write_text(f"u0 {bad}/no.ark:3\n")
    shutil.copy(data / "codebook_indexes.json", bad / "no_ark.json")
    (u0, p0), (u1, p1) = (line.split() for line in lines[:2])
    (bad / "stale.scp").write_text(f"{u0} {p1}\n{u1} {p0}\n")
    shutil.copy(data / "codebook_indexes.json", bad / "stale.json")
    shutil.copytree(folder / "shards", bad / "damaged_shards")
    ark = bad / "damaged_shards" / "codebook_indexes.1.ark"
    content = bytearray(ark.read_bytes())
    content[-1] ^= 1
    ark.write_bytes(bytes(content))
    shutil.copytree(folder / "shards", bad / "unfinished_shards")
    (bad / "unfinished_shards" / "codebook_indexes.1.json").unlink()


def _write_bad_students(folder):
    save_espnet(folder / "asr", TINY_MODEL)
    malice = MakeFile(folder / "executed")
    torch.save({"encoder.after_norm.weight": malice}, folder / "asr" / "malice.pth")
    for name, changed in (
        ("conformer", {"encoder": "conformer"}),
        ("wide", {"encoder_conf": {"output_size": 16, "attention_heads": 2}}),
        ("deep", {"encoder_conf": {**TINY_MODEL["encoder_conf"], "num_blocks": 3}}),
        ("started", {"init_param": ["a.pth"]}),
    ):
        text = yaml.safe_dump({**TINY_MODEL, **changed})
        (folder / "bad" / f"{name}.yaml").write_text(text)
