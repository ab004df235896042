"""Facts of an s3prl upstream that s3prl does not tell: frame places, configuration."""

import hashlib
from pathlib import Path
from typing import Any, Dict, Optional

import torch

_SAMPLES_PER_MS = 16  # all upstreams hear 16 kHz
# Random numbers that filterbanks keep to find out their dimension
_WITHOUT_MEANING = ("_pseudo_wavs",)


def find_frame_offset(
    upstream: torch.nn.Module, frame_shift_samples: int
) -> Optional[float]:
    """Find out where frames lie, from the front end.

    Args:
        upstream: Upstream of s3prl.
        frame_shift_samples: Samples between two of its frames.

    Returns:
        Centre of frame 0, in samples; None: the front end is none of those known here,
        or frames are made of several of its own.
    """
    for module in upstream.modules():
        stft = getattr(module, "_stft_args", None)  # of s3prl's OnlinePreprocessor
        if isinstance(stft, dict) and stft.get("center"):
            hop = getattr(module, "_win_args", {}).get("hop_length")
            return 0.0 if hop == frame_shift_samples else None
        if hasattr(module, "extract_fn") and hasattr(module, "kwargs"):
            return _kaldi_offset(module.kwargs, frame_shift_samples)
    return _convolutions_offset(upstream, frame_shift_samples)


def _kaldi_offset(options: Dict[str, Any], frame_shift: int) -> Optional[float]:
    """Return the centre of frame 0 of features made as Kaldi does."""
    hop = options.get("frame_shift", 10.0) * _SAMPLES_PER_MS
    if hop != frame_shift or not options.get("snip_edges", True):
        return None
    return (options.get("frame_length", 25.0) * _SAMPLES_PER_MS - 1) / 2


def _convolutions_offset(
    upstream: torch.nn.Module, frame_shift: int
) -> Optional[float]:
    """Return the centre of frame 0 of convolutions that read the waveform."""
    shift, centre, channels = 1, 0.0, 1
    for module in upstream.modules():
        if not isinstance(module, torch.nn.Conv1d):
            continue
        if module.in_channels != channels or isinstance(module.padding, str):
            return None
        reach = module.dilation[0] * (module.kernel_size[0] - 1) / 2
        centre += (reach - module.padding[0]) * shift
        shift *= module.stride[0]
        channels = module.out_channels
        if shift >= frame_shift:
            return centre if shift == frame_shift else None
    return None


def weights_of(upstream: torch.nn.Module) -> Dict[str, torch.Tensor]:
    """Return the weights of an upstream by name."""
    weights = upstream.state_dict()
    return {k: v for k, v in weights.items() if not k.endswith(_WITHOUT_MEANING)}


def settings_of(
    upstream: torch.nn.Module, name: str, checkpoint: str
) -> Optional[Dict[str, Any]]:
    """Return what decides on an upstream's results beside name and weights.

    Args:
        upstream: Upstream of s3prl.
        name: Its name.
        checkpoint: File, folder or URL that it was loaded from; empty: its own, whose
            settings are known by the name.

    Returns:
        Settings; None if there are no others.
    """
    if not checkpoint:
        return None
    path = Path(checkpoint)
    if path.is_file():
        # Models as fairseq saves them have their configuration inside, those of ESPnet
        # beside them.
        files = [path]
        if name.startswith("espnet_"):
            files.append(path.with_name("config.yaml"))
        return {"files": [_file_hash(file) for file in files if file.is_file()]}
    expert = getattr(upstream, "upstream", None)
    config = getattr(getattr(expert, "model", None), "config", None)
    extractor = getattr(expert, "extracter", None)
    if config is None or extractor is None:
        return {"place": checkpoint} if "://" in checkpoint else None
    from espnet_mvq.teachers.transformers_settings import config_settings

    names = ("do_normalize", "sampling_rate")
    used = {key: getattr(extractor, key, None) for key in names}
    return {**config_settings(config), **used}


def _file_hash(path: Path) -> str:
    """Hash a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**24), b""):
            digest.update(block)
    return digest.hexdigest()
