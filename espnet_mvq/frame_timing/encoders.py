"""Blocks and time grids of ESPnet's encoders, read off their modules.

`Frames` is a pair (shift, centre): the distance of two frames, and the centre of the
input of frame 0. Both are counted in frames of the input, or in samples.
"""

from typing import Any, Iterable, List, Optional, Tuple, Union

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


def first_tensor(output: Any) -> torch.Tensor:
    """Unpack (x, mask), ((x, pos_emb), mask), ((x, intermediate), lengths, ...)."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


def find_blocks(encoder: torch.nn.Module) -> Optional[torch.nn.Module]:
    """Return the list of an encoder's blocks, None if it has none."""
    return _find_blocks(encoder)[1]


def reads_speech(encoder: torch.nn.Module) -> bool:
    """Whether an encoder takes samples, not feature frames."""
    return _is_whisper(encoder) or _wave_convolutions(encoder) is not None


def subsampling(
    encoder: torch.nn.Module, layer: Union[int, str] = -1
) -> Optional[Frames]:
    """Return the frames of an encoder layer, counted in feature frames.

    Args:
        encoder: ESPnet encoder.
        layer: Block, counted from 1; -1 = encoder output; or the dotted path of a
            submodule. It matters where blocks subsample.

    Returns:
        Feature frames per encoder frame, and the feature frame on which encoder frame
        0 is centred; in samples for encoders that read the waveform. None if not
        known.
    """
    wave_convolutions = _wave_convolutions(encoder)
    if wave_convolutions is not None:
        return chain_frames(*map(convolution_frames, wave_convolutions))
    if _is_whisper(encoder):
        convolutions = encoder.encoders.conv1, encoder.encoders.conv2
        spectrogram = (encoder.hop_length, 0.0)
        return chain_frames(spectrogram, *map(convolution_frames, convolutions))
    if hasattr(encoder, "enc"):
        return _recurrent_frames(encoder.enc)
    convolutions = _convolutions(encoder, layer)
    if convolutions is None:
        return None
    stages = [(*convolution_frames(module), before) for module, before in convolutions]
    return chain_frames(*((shift, centre - n) for shift, centre, n in stages))


def num_frames(
    encoder: torch.nn.Module,
    num_features: torch.Tensor,
    layer: Union[int, str] = -1,
) -> Optional[torch.Tensor]:
    """Compute the number of frames that an encoder gives for an utterance alone.

    In a batch its convolutions give more: the last ones see padding too.

    Args:
        encoder: ESPnet encoder.
        num_features: Feature frames of each utterance, int64, (B,).
        layer: As in `subsampling`.

    Returns:
        Frames of each utterance, int64, (B,); None if not known.
    """
    convolutions = None if reads_speech(encoder) else _convolutions(encoder, layer)
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
    """Whether an encoder returns the lengths of its features as those of its output.

    The input block of the task asr_transducer cuts its mask to the frames of the batch
    and does not subsample it. All frames of padding then count.
    """
    return type(getattr(encoder, "embed", None)).__name__ == "ConvInput"


def chain_frames(*stages: Frames) -> Frames:
    """Combine the frames of stages, each counted in the frames of the one before."""
    shift, centre = 1, 0.0
    for stage_shift, stage_centre in stages:
        centre += shift * stage_centre
        shift *= stage_shift
    return shift, centre


def convolution_frames(module: torch.nn.Module) -> Frames:
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


def _find(module: torch.nn.Module, path: str) -> Optional[torch.nn.Module]:
    """Return a submodule, None if there is none at this path."""
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


def _wave_convolutions(encoder: torch.nn.Module) -> Optional[torch.nn.Module]:
    """Return the convolutions of an encoder that reads the waveform."""
    for path in _WAVE_CONVOLUTIONS:
        convolutions = _find(encoder, path)
        if convolutions is not None:
            return convolutions
    return None


def _is_whisper(encoder: torch.nn.Module) -> bool:
    """Whether this is ESPnet's encoder around that of openai-whisper."""
    return "Whisper" in type(encoder).__name__ and hasattr(encoder, "hop_length")


def _convolutions(
    encoder: torch.nn.Module, layer: Union[int, str]
) -> Optional[List[Tuple[torch.nn.Module, int]]]:
    """Return the convolutions and poolings along time before a layer's output.

    ESPnet's convolutional input layers are a stack named `conv`; the input layers
    linear, embed and null keep the frames as they are.

    Returns:
        Each with the number of frames that are put before its first; None if they are
        not known.
    """
    if not hasattr(encoder, "embed"):
        return None
    embed, convolutions = encoder.embed, []
    if not (embed is None or isinstance(embed, (torch.nn.Linear, torch.nn.Sequential))):
        layers = [m for m in getattr(embed, "conv", ()) if hasattr(m, "kernel_size")]
        if not layers or any(isinstance(m.padding, str) for m in layers):
            return None
        convolutions = [(module, 0) for module in layers]
    for block in _blocks_before(encoder, layer):
        # The one block of the task asr_transducer that may change frames. Causal, it
        # puts frames before the first.
        if type(block).__name__ == "Conv1d" and hasattr(block, "lorder"):
            convolutions.append((block.conv, block.lorder))
    return convolutions


def _recurrent_frames(layers: Iterable[torch.nn.Module]) -> Optional[Frames]:
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
    return chain_frames(*stages)
