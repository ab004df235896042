"""Ids of teachers: hashes of weights and of the settings that change results.

The settings of a model are those that neither its name nor the names and shapes of its
weights show. Settings of training are left out, so a model that is saved again, by
another version of its library too, keeps its id.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Tuple

import torch

from espnet_mvq.files.whole_file import file_sha256

# Options of a transformers configuration, by model type
_WHISPER = ("activation_function", "encoder_attention_heads")
_WAVEFORM_MODEL = (
    "conv_stride",
    "do_stable_layer_norm",
    "feat_extract_activation",
    "feat_extract_norm",
    "hidden_act",
    "layer_norm_eps",
    "max_bucket_distance",
    "num_attention_heads",
)
_WHISPER_FEATURES = (
    "dither",
    "feature_size",
    "hop_length",
    "n_fft",
    "padding_value",
    "sampling_rate",
)
# Words, cases, digits and punctuation: tokenizers differ in how they treat these
_PROBE = "The 5 boxing wizards, isn't it? JUMP  quickly - äöü ñ ."
# Parts of an ESPnet model from the speech to the encoder output
ESPNET_PARTS = ("frontend", "normalize", "preencoder", "encoder")


def weights_hash(
    named_tensors: Iterable[Tuple[str, torch.Tensor]],
    settings: Optional[Dict[str, Any]] = None,
) -> str:
    """Hash a model.

    Args:
        named_tensors: Weights by name, in any order.
        settings: Plain values, nested to any depth, that change results too.

    Returns:
        12 hex digits.
    """
    if settings is not None:
        text = json.dumps(settings, sort_keys=True, default=str)
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        named_tensors = [*named_tensors, ("config", content)]
    digest = hashlib.sha256()
    for name, value in sorted(named_tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        value = value.detach().cpu().contiguous()
        # A view as bytes: numpy knows no bfloat16.
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def transformers_settings(config: Any) -> Dict[str, Any]:
    """Return the settings of a transformers configuration."""
    names = _WHISPER if config.model_type == "whisper" else _WAVEFORM_MODEL
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def whisper_features_settings(extractor: Any) -> Dict[str, Any]:
    """Return the settings of a Whisper feature extractor."""
    return {name: getattr(extractor, name, None) for name in _WHISPER_FEATURES}


def tokenizer_settings(tokenizer: Any) -> Dict[str, Any]:
    """Return the vocabulary of a tokenizer, and the labels of probe texts."""
    labels = {}
    for text in (_PROBE, _PROBE.upper(), _PROBE.lower()):
        labels[text] = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    return {"vocabulary": tokenizer.get_vocab(), "labels": labels}


def s3prl_settings(
    upstream: torch.nn.Module, name: str, checkpoint: str
) -> Optional[Dict[str, Any]]:
    """Return the settings of an s3prl upstream.

    Args:
        upstream: Upstream of s3prl.
        name: Its name.
        checkpoint: File, folder or URL that it was loaded from; empty: its own, whose
            settings the name implies.

    Returns:
        Settings; None if there are none.
    """
    if not checkpoint:
        return None
    path = Path(checkpoint)
    if path.is_file():
        # Checkpoints of fairseq contain their configuration, those of ESPnet have it
        # in a file beside them.
        files = [path]
        if name.startswith("espnet_"):
            files.append(path.with_name("config.yaml"))
        return {"files": [file_sha256(file) for file in files if file.is_file()]}
    expert = getattr(upstream, "upstream", None)
    config = getattr(getattr(expert, "model", None), "config", None)
    extractor = getattr(expert, "extracter", None)
    if config is None or extractor is None:
        return {"place": checkpoint} if "://" in checkpoint else None
    names = ("do_normalize", "sampling_rate")
    used = {key: getattr(extractor, key, None) for key in names}
    return {**transformers_settings(config), **used}


def espnet_settings(config: Dict[str, Any]) -> Dict[str, Any]:
    """Return the settings of the parts of an ESPnet model up to its encoder."""
    names = [name for part in ESPNET_PARTS for name in (part, f"{part}_conf")]
    settings = {name: config.get(name) or None for name in names}
    normalize_conf = dict(settings["normalize_conf"] or {})
    normalize_conf.pop("stats_file", None)  # a path; the statistics are weights
    return {**settings, "normalize_conf": normalize_conf}
