"""Where the blocks and frames of ESPnet encoders are; needs no ESPnet itself."""

from typing import Any, Iterable, Optional, Tuple

import torch

# Where encoders keep their blocks
_BLOCK_LISTS = ("encoders", "hubert_pretrain_model.wav2vec2.encoder.transformer.layers")
_HUBERT_CONVOLUTIONS = "hubert_pretrain_model.wav2vec2.feature_extractor.conv_layers"
# Front ends of s3prl: half of the 400 samples their convolutions see
_S3PRL_OFFSET_SAMPLES = 199.5


def first_tensor(output: Any) -> torch.Tensor:
    """Unpack (x, mask), ((x, pos_emb), mask), ((x, intermediate), lengths, ...)."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


def _find(module: torch.nn.Module, path: str) -> Optional[torch.nn.Module]:
    """Return a submodule, None if it is not there."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def find_blocks(encoder: torch.nn.Module) -> Optional[torch.nn.Module]:
    """Return the list of an encoder's blocks, None if it has none."""
    for path in _BLOCK_LISTS:
        blocks = _find(encoder, path)
        if isinstance(blocks, (torch.nn.ModuleList, torch.nn.Sequential)):
            return blocks
    return None


def frame_grid(
    encoder: torch.nn.Module,
    frontend: Optional[torch.nn.Module] = None,
    preencoder: Optional[torch.nn.Module] = None,
    **others: torch.nn.Module,
) -> Optional[Tuple[int, float]]:
    """Work out where the frames of an encoder lie in time.

    Args:
        encoder: ESPnet encoder.
        frontend: ESPnet front end; None: the encoder reads the waveform.
        preencoder: ESPnet pre-encoder.
        **others: Parts of the model that change no frames.

    Returns:
        Frame shift and centre of frame 0, in samples, the same for all layers; None
        if they are not known for parts of these kinds.
    """
    if preencoder is not None and type(preencoder).__name__ != "LinearProjection":
        return None
    kind = type(frontend).__name__
    stft = getattr(frontend, "stft", None)
    if frontend is None:
        outer = (1, 0.0)
    elif kind == "S3prlFrontend" and frontend.tile_factor == 1:
        outer = (frontend.hop_length, _S3PRL_OFFSET_SAMPLES)
    elif kind == "CNNFrontend":
        outer = _stack((c.kernel_size, c.stride) for c in frontend.layers)
    elif kind == "WhisperFrontend" or stft is not None:
        centred = getattr(stft, "center", True)
        outer = (frontend.hop_length, 0.0 if centred else stft.n_fft / 2)
    else:
        return None
    inner = _subsampling(encoder)
    if inner is None:
        return None
    return outer[0] * inner[0], outer[1] + outer[0] * inner[1]


def _subsampling(encoder: torch.nn.Module) -> Optional[Tuple[int, float]]:
    """Return feature frames per encoder frame and the centre of encoder frame 0."""
    convolutions = _find(encoder, _HUBERT_CONVOLUTIONS)
    if convolutions is not None:
        return _stack((c.kernel_size, c.stride) for c in convolutions)
    embed = getattr(encoder, "embed", encoder)
    if embed is None or isinstance(embed, (torch.nn.Linear, torch.nn.Sequential)):
        return 1, 0.0
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d)
    layers = [m for m in getattr(embed, "conv", ()) if isinstance(m, kinds)]
    if not layers or any(any(layer.padding) for layer in layers):
        return None
    return _stack((layer.kernel_size[0], layer.stride[0]) for layer in layers)


def _stack(convolutions: Iterable[Tuple[int, int]]) -> Tuple[int, float]:
    """Return stride and centre of the first output of convolutions (kernel, stride)."""
    factor, centre = 1, 0.0
    for kernel, stride in convolutions:
        centre += factor * (kernel - 1) / 2
        factor *= stride
    return factor, centre


def min_samples(parts: torch.nn.ModuleDict, offset_samples: float) -> int:
    """Return how many samples give one frame: centred on it, or the STFT's padding."""
    n_fft = getattr(_find(parts, "frontend.stft"), "n_fft", 0)
    return max(int(2 * offset_samples) + 1, n_fft // 2 + 1)
