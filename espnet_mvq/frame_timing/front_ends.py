"""Time grids of ESPnet's front ends, and of the encoder layers behind them."""

from typing import Callable, Dict, Optional, Union

import torch

from espnet_mvq.distillation import FrameGrid
from espnet_mvq.frame_timing.encoders import (
    Frames,
    chain_frames,
    convolution_frames,
    reads_speech,
    subsampling,
)

# These work on each frame alone.
_PREENCODERS = ("LinearProjection", "LightweightSincConvs")
# Upstreams of s3prl: half of the 400 samples their convolutions see
_S3PRL_OFFSET_SAMPLES = 199.5


def student_frame_grid(
    frontend: Optional[torch.nn.Module],
    encoder: torch.nn.Module,
    shift_samples: Optional[float] = None,
    offset_samples: Optional[float] = None,
    layer: Union[int, str] = -1,
    preencoder: Optional[torch.nn.Module] = None,
) -> FrameGrid:
    """Return the frame grid of a student layer, given by the user or worked out.

    Args:
        frontend: ESPnet front end; None for `feats_type: extracted` and for encoders
            that read the waveform.
        encoder: ESPnet encoder.
        shift_samples: Frame shift given by the user; None: worked out.
        offset_samples: Centre of frame 0 given by the user. None: 0 if the shift is
            given, else worked out.
        layer: Student layer as in `mvq_conf`.
        preencoder: ESPnet pre-encoder.

    Raises:
        ValueError: If no shift is given and the frames of a part are not known.
    """
    if shift_samples is not None:
        return FrameGrid(shift_samples, offset_samples or 0)
    frames = frame_grid(encoder, frontend, preencoder, layer)
    if frames is None:
        raise ValueError(
            f"{_unknown_part(frontend, encoder, layer, preencoder)}; give mvq_conf: "
            "{student_frame_shift_samples: ..., student_frame_offset_samples: ...}"
        )
    shift, offset = frames
    return FrameGrid(shift, offset if offset_samples is None else offset_samples)


def frame_grid(
    encoder: torch.nn.Module,
    frontend: Optional[torch.nn.Module] = None,
    preencoder: Optional[torch.nn.Module] = None,
    layer: Union[int, str] = -1,
    **others: torch.nn.Module,
) -> Optional[Frames]:
    """Work out the time grid of an encoder layer.

    Args:
        encoder: ESPnet encoder.
        frontend: ESPnet front end; None: the encoder reads the waveform.
        preencoder: ESPnet pre-encoder.
        layer: As in `subsampling`.
        **others: Parts of the model that change no frames.

    Returns:
        Frame shift and centre of frame 0, in samples; None if they are not known for
        parts of these kinds.
    """
    if preencoder is not None and type(preencoder).__name__ not in _PREENCODERS:
        return None
    if frontend is None:
        outer = (1, 0.0) if reads_speech(encoder) else None
    else:
        outer = frontend_frames(frontend)
    inner = subsampling(encoder, layer)
    return None if outer is None or inner is None else chain_frames(outer, inner)


def frontend_frames(frontend: torch.nn.Module) -> Optional[Frames]:
    """Return frame shift and centre of frame 0 of a front end, in samples."""
    for kind in type(frontend).__mro__:
        if kind.__name__ in _FRONTENDS:
            return _FRONTENDS[kind.__name__](frontend)
    if hasattr(frontend, "stft") and hasattr(frontend, "hop_length"):
        return _spectrogram_frames(frontend)
    return None


def min_samples(parts: torch.nn.ModuleDict, offset_samples: float) -> int:
    """Return the shortest speech with one frame: its centre, or the STFT's padding."""
    stft = getattr(parts["frontend"], "stft", None) if "frontend" in parts else None
    return max(int(2 * offset_samples) + 1, getattr(stft, "n_fft", 0) // 2 + 1)


def _unknown_part(
    frontend: Optional[torch.nn.Module],
    encoder: torch.nn.Module,
    layer: Union[int, str],
    preencoder: Optional[torch.nn.Module],
) -> str:
    """Name the part whose frames are not known."""
    inner = subsampling(encoder, layer)
    if inner is None:
        embed = getattr(encoder, "embed", None)
        where = f": input layer {type(embed).__name__}" if embed is not None else ""
        return f"encoder {type(encoder).__name__}{where}: its subsampling is not known"
    if frontend is None:
        return (
            "no front end (feats_type extracted): the distance of the feature frames "
            f"is not known. The encoder takes one of {inner[0]} of them, the first "
            f"centred on their frame {inner[1]:g}, so at a feature frame every 160 "
            f"samples give {160 * inner[0]} and {160 * inner[1]:g}"
        )
    if frontend_frames(frontend) is None:
        return f"front end {type(frontend).__name__}: its frame shift is not known"
    return f"pre-encoder {type(preencoder).__name__}: its frames are not known"


def _spectrogram_frames(frontend: torch.nn.Module) -> Frames:
    """Return the frames of a spectrogram."""
    stft = getattr(frontend, "stft", None)
    centred = getattr(stft, "center", True)
    return frontend.hop_length, 0.0 if centred else stft.n_fft / 2


def _sliding_window_frames(frontend: torch.nn.Module) -> Frames:
    """Return the frames of windows without padding."""
    return frontend.hop_length, (frontend.win_length - 1) / 2


def _whisper_frames(frontend: torch.nn.Module) -> Frames:
    """Return the frames of Whisper's encoder as a front end."""
    # hop_length is that of the spectrogram; the encoder behind it halves the rate.
    return 2 * frontend.hop_length, 0.0


def _s3prl_frames(frontend: torch.nn.Module) -> Frames:
    """Return the frames of an upstream of s3prl, tiled or not."""
    hop, tiles = frontend.hop_length, getattr(frontend, "tile_factor", 1)
    if tiles == 1 or getattr(frontend, "layer", -1) != -1:  # then ESPnet tiles nothing
        return hop, _S3PRL_OFFSET_SAMPLES
    return _repeated_frames((hop, _S3PRL_OFFSET_SAMPLES), hop / tiles)


def _fused_frames(frontend: torch.nn.Module) -> Optional[Frames]:
    """Return the frames that all parts' frames are divided into."""
    parts = [frontend_frames(part) for part in frontend.frontends]
    if None in parts:
        return None
    shift = int(frontend.gcd)
    centres = [_repeated_frames(part, shift)[1] for part in parts]
    return shift, sum(centres) / len(centres)


def _repeated_frames(frames: Frames, shift: float) -> Frames:
    """Return the frames of a shorter shift that repeating each frame gives."""
    return shift, frames[1] - (frames[0] - shift) / 2


def _cnn_frames(frontend: torch.nn.Module) -> Frames:
    """Return the frames of a stack of convolutions."""
    return chain_frames(*map(convolution_frames, frontend.layers))


def _espnet_ssl_frames(frontend: torch.nn.Module) -> Optional[Frames]:
    """Return the frames of another ESPnet model's encoder."""
    model = frontend.upstream
    return frame_grid(model.encoder, model.frontend, model.preencoder)


# Classes of ESPnet's front ends
_FRONTENDS: Dict[str, Callable[[torch.nn.Module], Optional[Frames]]] = {
    "DefaultFrontend": _spectrogram_frames,
    "SlidingWindow": _sliding_window_frames,
    "WhisperFrontend": _whisper_frames,
    "S3prlFrontend": _s3prl_frames,
    "FusedFrontends": _fused_frames,
    "CNNFrontend": _cnn_frames,
    "ESPnetSSLFrontend": _espnet_ssl_frames,
}
