"""Builders of tiny corpora, teachers, quantizers and metadata on disk."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import torch
from builders import FRAMES, HUBERT_SIZES, ROOT, SAMPLE_RATE, write_wavs

# Windows of 1 s
WHISPER_SIZES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "vocab_size": 16,
    "max_source_positions": 50,
    "max_target_positions": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
# Before every text of Whisper; English-only models have the tokens, but no languages
PREFIX_TOKENS = [
    "<|startoftranscript|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|notimestamps|>",
]
# Options of a quantizer that trains in a moment
QUANTIZER_SIZES = ["--num_codebooks", "2", "--codebook_size", "4"]
QUANTIZER_SIZES += ["--num_iterations", "2"]
# Begin of a script in the place of another: it notes its options.
NOTING = """#!/usr/bin/env python3
import json, pathlib, sys
words = sys.argv[1:]
options = dict(zip(words[::2], words[1::2]))
with open("calls", "a") as file:
    file.write(json.dumps(options) + "\\n")
"""


class MakeFile:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def end_with_error(caplog, call, *args, **kwargs):
    """Check for exit code 1 and one line of error; return the line."""
    caplog.clear()
    with pytest.raises(SystemExit) as ended:
        call(*args, **kwargs)
    assert ended.value.code == 1
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 1 and "\n" not in errors[0]
    return errors[0]


def run_script(folder, script, *options):
    """Run a script in its folder, with the Python of the tests."""
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    env = {
        **os.environ,
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": str(ROOT),
        "VIRTUAL_ENV": sys.prefix,  # keeps path.sh from looking for another
    }
    return subprocess.run(
        [f"./{script}", *options],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def noted_options(folder):
    """Return the options of each call that `NOTING` has noted in a folder."""
    path = folder / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def load_script(path):
    """Load a recipe's Python script by its path below the repository."""
    spec = importlib.util.spec_from_file_location(ROOT.joinpath(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_table(path, values):
    """Write a value by utterance in Kaldi's two columns."""
    path.write_text("".join(f"{utt_id} {value}\n" for utt_id, value in values.items()))
    return path


def write_speech(folder, lengths):
    """Write noise of a number of samples by utterance, wav.scp and utt2num_samples."""
    folder.mkdir()
    write_wavs(folder, lengths)
    write_table(folder / "utt2num_samples", lengths)
    return folder


def waveforms_of(speech):
    """Return the utterances of a padded batch and its lengths as a list."""
    return [row[:length] for row, length in zip(speech[0], speech[1].tolist())]


def write_shard(outdir, arrays, metadata, job=1):
    """Write arrays by utterance as a whole shard; return its ark, scp and json."""
    from espnet_mvq.indexes import ShardWriter
    from espnet_mvq.indexes.shard import shard_paths

    with ShardWriter(outdir, job, metadata) as shard:
        for utt_id, array in arrays.items():
            shard.write(utt_id, array)
    return shard_paths(outdir, job, metadata.STEM)


def embedding_metadata(dim):
    """Return the metadata of embeddings of a dimension."""
    from espnet_mvq.indexes import EmbeddingMetadata

    return EmbeddingMetadata(teacher="teacher@1", layer=1, dim=dim, **FRAMES)


def posterior_metadata(top_k, token_list):
    """Return the metadata of posteriors of a teacher's tokens."""
    from espnet_mvq.indexes import PosteriorMetadata

    tokens = {"top_k": top_k, "token_list": token_list}
    return PosteriorMetadata(teacher="teacher@1", layer=-1, **tokens, **FRAMES)


def save_transformers(path, kind, model="Model", seed=0, vocabulary=None, **options):
    """Save a tiny model of transformers with random weights.

    Args:
        path: Folder of the model.
        kind: Beginning of the name of the class, such as "Hubert".
        model: End of the name of the class, or "Encoder".
        seed: Seed of the weights.
        vocabulary: Tokens of a CTC head.
        options: Options of the config.
    """
    import transformers

    sizes = WHISPER_SIZES if kind == "Whisper" else HUBERT_SIZES
    if vocabulary:
        sizes = {**sizes, "vocab_size": len(vocabulary), "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **options})
    class_name = f"{kind}{'Model' if model == 'Encoder' else model}"
    torch.manual_seed(seed)
    network = getattr(transformers, class_name)(config)
    if vocabulary:
        # Larger weights: losses of different texts must differ.
        torch.nn.init.normal_(network.lm_head.weight)
    part = network.get_encoder() if model == "Encoder" else network
    part.save_pretrained(path)
    if vocabulary:
        ids = {token: number for number, token in enumerate(vocabulary)}
        (path / "vocab.json").write_text(json.dumps(ids))
    return path


def save_ctc(path, vocabulary, kind="Hubert", tokenizer=(), **options):
    """Save a tiny model of transformers with a CTC head, and its tokenizer."""
    save_transformers(path, kind, "ForCTC", 3, vocabulary, **options)
    saved = {"tokenizer_class": "Wav2Vec2CTCTokenizer", **dict(tokenizer)}
    (path / "tokenizer_config.json").write_text(json.dumps(saved))
    return path


def save_whisper(folder, generation=None, **options):
    """Save a whole tiny Whisper with windows of 1 s; return its folder and tokenizer.

    Its tokenizer knows bytes and a few words.
    """
    from transformers import (
        AddedToken,
        WhisperConfig,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    torch.manual_seed(5)
    folder.mkdir(exist_ok=True)
    start, end = PREFIX_TOKENS[0], "<|endoftext|>"
    tokens = [*bytes_to_unicode().values(), "he", "Ġhe", end, start]
    ids = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nĠ he\n")
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    special = [start, *(f"<|{name}|>" for name in LANGUAGES), *PREFIX_TOKENS[1:]]
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save_pretrained(folder)
    end, start = tokenizer.convert_tokens_to_ids([end, start])
    ids = dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id"], end)
    ids.update(decoder_start_token_id=start, vocab_size=len(tokenizer))
    sizes = {**WHISPER_SIZES, "encoder_layers": 1, "max_target_positions": 24}
    config = WhisperConfig(**{**sizes, **ids, "dropout": 0.5, **options})
    model = WhisperForConditionalGeneration(config)
    # Logits that are not all alike, else losses tell nothing
    torch.nn.init.normal_(model.model.decoder.embed_tokens.weight)
    model.save_pretrained(folder)
    if generation is not None:
        path = folder / "generation_config.json"
        path.write_text(json.dumps({**ids, **generation}))
    return folder, tokenizer


def save_espnet(folder, options, task=None, seed=0, config=None, random_heads=False):
    """Save a model as ESPnet's trainer does; return it.

    Args:
        folder: Experiment folder.
        options: Options of the training.
        task: Class of the task (default: ASR).
        seed: Seed of the weights.
        config: Values of config.yaml that differ from the options of the training.
        random_heads: Whether CTC head and decoder's output get larger weights, so that
            losses of different texts differ.
    """
    from espnet2.tasks.asr import ASRTask
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    task = task or ASRTask
    args = task.get_parser().parse_args(["--output_dir", "unused"])
    vars(args).update(options)
    torch.manual_seed(seed)
    model = task.build_model(args).eval()
    for name, value in model.named_parameters() if random_heads else ():
        if name.startswith(("ctc.", "decoder.output_layer.")):
            torch.nn.init.normal_(value)
    folder.mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder / "valid.acc.ave.pth")
    text = yaml_no_alias_safe_dump({**vars(args), **(config or {})})
    (folder / "config.yaml").write_text(text)
    return model


def whisper_features(waveform):
    """Return the log-Mel spectrogram (1, 80, 100) of at most one window of 1 s."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=80)(
        waveform.numpy(),
        sampling_rate=SAMPLE_RATE,
        padding="max_length",
        max_length=SAMPLE_RATE,
        return_tensors="pt",
    ).input_features


def change_json(path, changes):
    """Change values of a JSON file, or write one."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}))


def write_features(folder, arrays, form="ark", name="feats"):
    """Write arrays (T, D) by utterance as ark, npy or hdf5; return the scp or h5."""
    if form == "hdf5":
        import h5py

        with h5py.File(folder / f"{name}.h5", "w") as file:
            for utt_id, array in arrays.items():
                file[utt_id] = array
        return folder / f"{name}.h5"
    scp = folder / f"{name}.scp"
    if form == "ark":
        with kaldiio.WriteHelper(f"ark,scp:{folder}/{name}.ark,{scp}") as writer:
            for utt_id, array in arrays.items():
                writer(utt_id, array)
        return scp
    for utt_id, array in arrays.items():
        np.save(folder / f"{utt_id}.npy", array)
    return write_table(scp, {utt_id: folder / f"{utt_id}.npy" for utt_id in arrays})
