"""Where the blocks and frames of ESPnet's encoders are, told from their modules.

A pair (shift, centre) stands for a row of frames: the distance of two frames, and the
centre of what frame 0 depends on, both counted in samples or in the frames before.
"""

from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Union

import torch

Frames = Tuple[float, float]

# Where encoders keep their blocks
_BLOCK_LISTS = (
    "encoders",
    "encoders.blocks",  # Whisper, and the encoder of the task asr_transducer
    "hubert_pretrain_model.wav2vec2.encoder.transformer.layers",
)
# Convolutions of encoders that read the waveform: torchaudio's and fairseq's
_WAVE_CONVOLUTIONS = (
    "hubert_pretrain_model.wav2vec2.feature_extractor.conv_layers",
    "encoders.feature_extractor.conv_layers",
    "encoder.feature_extractor.conv_layers",
)
# These work on each frame alone.
_PREENCODERS = ("LinearProjection", "LightweightSincConvs")
# Upstreams of s3prl: half of the 400 samples their convolutions see
_S3PRL_OFFSET_SAMPLES = 199.5


def first_tensor(output: Any) -> torch.Tensor:
    """Unpack (x, mask), ((x, pos_emb), mask), ((x, intermediate), lengths, ...)."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


def find_blocks(encoder: torch.nn.Module) -> Optional[torch.nn.Module]:
    """Return the list of an encoder's blocks, None if it has none."""
    return _find_blocks(encoder)[1]


def frame_grid(
    encoder: torch.nn.Module,
    frontend: Optional[torch.nn.Module] = None,
    preencoder: Optional[torch.nn.Module] = None,
    layer: Union[int, str] = -1,
    **others: torch.nn.Module,
) -> Optional[Frames]:
    """Work out where the frames of an encoder layer lie in time.

    Args:
        encoder: ESPnet encoder.
        frontend: ESPnet front end; None: the encoder reads the waveform.
        preencoder: ESPnet pre-encoder.
        layer: Block, counted from 1; -1 = encoder output; or the dotted path of a
            submodule. It matters where blocks subsample.
        **others: Parts of the model that change no frames.

    Returns:
        Frame shift and centre of frame 0, in samples; None if they are not known for
        parts of these kinds.
    """
    if preencoder is not None and type(preencoder).__name__ not in _PREENCODERS:
        return None
    if frontend is None:
        outer = (1, 0.0) if _reads_speech(encoder) else None
    else:
        outer = frontend_frames(frontend)
    inner = subsampling(encoder, layer)
    return None if outer is None or inner is None else _one_after_another(outer, inner)


def frontend_frames(frontend: torch.nn.Module) -> Optional[Frames]:
    """Return frame shift and centre of frame 0 of a front end, in samples."""
    for kind in type(frontend).__mro__:
        if kind.__name__ in _FRONTENDS:
            return _FRONTENDS[kind.__name__](frontend)
    if hasattr(frontend, "stft") and hasattr(frontend, "hop_length"):
        return _of_stft(frontend)
    return None


def subsampling(
    encoder: torch.nn.Module, layer: Union[int, str] = -1
) -> Optional[Frames]:
    """Work out how an encoder subsamples what it reads.

    Args:
        encoder: ESPnet encoder.
        layer: As in `frame_grid`.

    Returns:
        Feature frames per encoder frame, and the feature frame on which encoder frame
        0 is centred; in samples for encoders that read the waveform. None if not
        known.
    """
    for path in _WAVE_CONVOLUTIONS:
        convolutions = _find(encoder, path)
        if convolutions is not None:
            return _one_after_another(*map(_of_convolution, convolutions))
    if _is_whisper(encoder):
        first, second = encoder.encoders.conv1, encoder.encoders.conv2
        spectrogram = (encoder.hop_length, 0.0)
        return _one_after_another(
            spectrogram, _of_convolution(first), _of_convolution(second)
        )
    if hasattr(encoder, "enc"):
        return _of_recurrent_layers(encoder.enc)
    if not hasattr(encoder, "embed"):
        return None
    return _of_input_layer(encoder.embed, _blocks_before(encoder, layer))


def num_frames(
    encoder: torch.nn.Module,
    num_features: torch.Tensor,
    layer: Union[int, str] = -1,
) -> Optional[torch.Tensor]:
    """Work out how many frames an encoder makes of an utterance alone.

    In a batch its convolutions make more of it: the last ones hear padding too.

    Args:
        encoder: ESPnet encoder.
        num_features: Feature frames of each utterance, int64, (B,).
        layer: As in `frame_grid`.

    Returns:
        Frames of each utterance, int64, (B,); None if not known.
    """
    if _reads_speech(encoder) or not hasattr(encoder, "embed"):
        return None
    convolutions = _convolutions(encoder.embed, _blocks_before(encoder, layer))
    if convolutions is None:
        return None
    lengths = num_features
    for module, num_before in convolutions:
        kernel, stride, padding, dilation = _sizes(module)
        rest = lengths + num_before + 2 * padding - (kernel - 1) * dilation - 1
        lengths = torch.div(rest, stride, rounding_mode="floor") + 1
        if getattr(module, "ceil_mode", False):
            # One more window, cut off at the end, if it begins before that.
            cut_off = (rest % stride > 0) & (lengths * stride <= rest + kernel - 1)
            lengths = lengths + cut_off
    return lengths.clamp(min=0)


def counts_padding(encoder: torch.nn.Module) -> bool:
    """Say whether an encoder's lengths are wrong: those of its features.

    The input block of the task asr_transducer cuts its mask to the frames of the batch,
    and does not subsample it. All frames of padding then count.
    """
    return type(getattr(encoder, "embed", None)).__name__ == "ConvInput"


def _find(module: torch.nn.Module, path: str) -> Optional[torch.nn.Module]:
    """Return a submodule, None if it is not there."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _find_blocks(encoder: torch.nn.Module) -> Tuple[str, Optional[torch.nn.Module]]:
    """Return path and list of an encoder's blocks."""
    for path in _BLOCK_LISTS:
        blocks = _find(encoder, path)
        if isinstance(blocks, (torch.nn.ModuleList, torch.nn.Sequential)):
            return path, blocks
    return "", None


def _blocks_before(encoder: torch.nn.Module, layer: Union[int, str]) -> list:
    """Return the blocks that run before a layer's output, its own included."""
    path, blocks = _find_blocks(encoder)
    if blocks is None:
        return []
    if isinstance(layer, str):
        if layer.split(".")[0] == "embed":
            return []
        number = layer[len(path) + 1 :].split(".")[0]
        inside = layer.startswith(path + ".") and number.isdigit()
        layer = int(number) + 1 if inside else -1
    return list(blocks)[: len(blocks) if layer == -1 else layer]


def _reads_speech(encoder: torch.nn.Module) -> bool:
    """Say whether an encoder takes samples, not feature frames."""
    convolutions = (_find(encoder, path) for path in _WAVE_CONVOLUTIONS)
    return _is_whisper(encoder) or any(c is not None for c in convolutions)


def _is_whisper(encoder: torch.nn.Module) -> bool:
    """Say whether this is ESPnet's encoder around that of openai-whisper."""
    return "Whisper" in type(encoder).__name__ and hasattr(encoder, "hop_length")


def _one_after_another(*stages: Frames) -> Frames:
    """Combine the frames of stages, each counted in the frames of the one before."""
    shift, centre = 1, 0.0
    for stage_shift, stage_centre in stages:
        centre += shift * stage_centre
        shift *= stage_shift
    return shift, centre


def _of_convolution(module: torch.nn.Module) -> Frames:
    """Return the frames of a convolution or pooling along its first dimension."""
    if not hasattr(module, "kernel_size"):  # fairseq: inside a Sequential
        module = next(m for m in module.modules() if hasattr(m, "kernel_size"))
    kernel, stride, padding, dilation = _sizes(module)
    return stride, (kernel - 1) * dilation / 2 - padding


def _sizes(module: torch.nn.Module) -> List[int]:
    """Return kernel size, stride, padding and dilation along the first dimension."""
    names = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    values = [getattr(module, name, default) for name, default in names.items()]
    return [v[0] if isinstance(v, (tuple, list)) else v for v in values]


def _of_input_layer(
    embed: Optional[torch.nn.Module], blocks: Iterable[torch.nn.Module]
) -> Optional[Frames]:
    """Return the frames behind an input layer and the first blocks."""
    convolutions = _convolutions(embed, blocks)
    if convolutions is None:
        return None
    stages = [(*_of_convolution(module), before) for module, before in convolutions]
    return _one_after_another(*((s, centre - before) for s, centre, before in stages))


def _convolutions(
    embed: Optional[torch.nn.Module], blocks: Iterable[torch.nn.Module]
) -> Optional[List[Tuple[torch.nn.Module, int]]]:
    """Return the convolutions and poolings of an input layer and the first blocks.

    ESPnet's convolutional input layers are a stack named `conv`; what it calls
    linear, embed or null keeps the frames as they are.

    Returns:
        Each with the number of frames that are put before its first; None if they are
        not known.
    """
    found = []
    if not (embed is None or isinstance(embed, (torch.nn.Linear, torch.nn.Sequential))):
        layers = [m for m in getattr(embed, "conv", ()) if hasattr(m, "kernel_size")]
        if not layers or any(isinstance(m.padding, str) for m in layers):
            return None
        found = [(layer, 0) for layer in layers]
    for block in blocks:
        # The one block of the task asr_transducer that may change frames. Causal, it
        # puts frames before the first.
        if type(block).__name__ == "Conv1d" and hasattr(block, "lorder"):
            found.append((block.conv, block.lorder))
    return found


def _of_recurrent_layers(layers: Iterable[torch.nn.Module]) -> Optional[Frames]:
    """Return the frames of ESPnet's RNNs, which may have VGG convolutions before."""
    stages = []
    for layer in layers:
        kind = type(layer).__name__
        if kind == "VGG2L":
            # Two times two convolutions that keep the frames, and a pooling of two
            stages += [(2, 0.5), (2, 0.5)]
        elif kind == "RNNP":
            # Every n-th frame of each layer's output is kept.
            stages += [(int(n), 0.0) for n in layer.subsample[1 : layer.elayers + 1]]
        elif kind != "RNN":
            return None
    return _one_after_another(*stages)


def min_samples(parts: torch.nn.ModuleDict, offset_samples: float) -> int:
    """Return how many samples give one frame: centred on it, or the STFT's padding."""
    stft = getattr(parts["frontend"], "stft", None) if "frontend" in parts else None
    return max(int(2 * offset_samples) + 1, getattr(stft, "n_fft", 0) // 2 + 1)


def _of_stft(frontend: torch.nn.Module) -> Frames:
    """Return the frames of a spectrogram."""
    stft = getattr(frontend, "stft", None)
    centred = getattr(stft, "center", True)
    return frontend.hop_length, 0.0 if centred else stft.n_fft / 2


def _of_sliding_window(frontend: torch.nn.Module) -> Frames:
    """Return the frames of windows without padding."""
    return frontend.hop_length, (frontend.win_length - 1) / 2


def _of_whisper(frontend: torch.nn.Module) -> Frames:
    """Return the frames of Whisper's encoder as a front end."""
    # hop_length is that of the spectrogram; the encoder behind it halves the rate.
    return 2 * frontend.hop_length, 0.0


def _of_s3prl(frontend: torch.nn.Module) -> Frames:
    """Return the frames of an upstream of s3prl, tiled or not."""
    hop, tiles = frontend.hop_length, getattr(frontend, "tile_factor", 1)
    if tiles == 1 or getattr(frontend, "layer", -1) != -1:  # then ESPnet tiles nothing
        return hop, _S3PRL_OFFSET_SAMPLES
    return _divided((hop, _S3PRL_OFFSET_SAMPLES), hop / tiles)


def _of_fused(frontend: torch.nn.Module) -> Optional[Frames]:
    """Return the frames that all parts' frames are divided into."""
    parts = [frontend_frames(part) for part in frontend.frontends]
    if None in parts:
        return None
    shift = int(frontend.gcd)
    centres = [_divided(part, shift)[1] for part in parts]
    return shift, sum(centres) / len(centres)


def _divided(frames: Frames, shift: float) -> Frames:
    """Return the frames that come of writing each frame several times."""
    return shift, frames[1] - (frames[0] - shift) / 2


def _of_cnn(frontend: torch.nn.Module) -> Frames:
    """Return the frames of a stack of convolutions."""
    return _one_after_another(*map(_of_convolution, frontend.layers))


def _of_espnet_ssl(frontend: torch.nn.Module) -> Optional[Frames]:
    """Return the frames of another ESPnet model's encoder."""
    model = frontend.upstream
    return frame_grid(model.encoder, model.frontend, model.preencoder)


# Classes of ESPnet's front ends
_FRONTENDS: Dict[str, Callable[[torch.nn.Module], Optional[Frames]]] = {
    "DefaultFrontend": _of_stft,
    "SlidingWindow": _of_sliding_window,
    "WhisperFrontend": _of_whisper,
    "S3prlFrontend": _of_s3prl,
    "FusedFrontends": _of_fused,
    "CNNFrontend": _of_cnn,
    "ESPnetSSLFrontend": _of_espnet_ssl,
}
