"""Where the frames of an ESPnet encoder lie in time."""

from typing import Optional, Tuple

import torch

from espnet_mvq.distillation import FrameGrid

# Centre of the first frame of front ends whose STFT is not centred on the frame's
# start; s3prl's wave models have windows of 400 samples.
_S3PRL_OFFSET_SAMPLES = 199.5


def student_frame_grid(
    frontend: Optional[torch.nn.Module],
    encoder: torch.nn.Module,
    shift_samples: Optional[float] = None,
    offset_samples: Optional[float] = None,
) -> FrameGrid:
    """Work out centre and distance of encoder frames.

    Args:
        frontend: ESPnet front end; None for `feats_type: extracted`.
        encoder: ESPnet encoder.
        shift_samples: Given by the user, not worked out.
        offset_samples: Likewise.

    Returns:
        The frames of all layers of the encoder.

    Raises:
        ValueError: If front end or input layer are unknown and nothing is given.
    """
    if shift_samples is not None:
        return FrameGrid(shift_samples, offset_samples or 0)
    hop = getattr(frontend, "hop_length", None)
    if hop is None:
        raise ValueError(
            f"front end {type(frontend).__name__}: its frame shift is not known; give "
            "mvq_conf: {student_frame_shift_samples: ..., "
            "student_frame_offset_samples: ...}"
        )
    try:
        factor, centre = subsampling(encoder)
    except ValueError as error:
        raise ValueError(
            f"encoder {type(encoder).__name__}: {error}; give mvq_conf: "
            "{student_frame_shift_samples: ..., student_frame_offset_samples: ...}"
        ) from error
    return FrameGrid(hop * factor, _frontend_offset_samples(frontend) + hop * centre)


def subsampling(encoder: torch.nn.Module) -> Tuple[int, float]:
    """Work out how an encoder's input layer subsamples feature frames.

    ESPnet's convolutional input layers are a stack of convolutions without padding
    named `conv`; what it calls linear, embed or null keeps the frames as they are.

    Args:
        encoder: ESPnet encoder.

    Returns:
        Feature frames per encoder frame; and the feature frame on which encoder frame
        0 is centred.

    Raises:
        ValueError: If the encoder has no input layer of these kinds.
    """
    if not hasattr(encoder, "embed"):
        raise ValueError("it has no input layer 'embed', so its subsampling is unknown")
    embed = encoder.embed
    if embed is None or isinstance(embed, (torch.nn.Linear, torch.nn.Sequential)):
        return 1, 0
    factor, centre = 1, 0.0
    convolutions = (torch.nn.Conv1d, torch.nn.Conv2d)
    layers = [m for m in getattr(embed, "conv", []) if isinstance(m, convolutions)]
    if not layers or any(any(layer.padding) for layer in layers):
        raise ValueError(
            f"input layer {type(embed).__name__}: its subsampling is unknown"
        )
    for layer in layers:
        centre += factor * (layer.kernel_size[0] - 1) / 2
        factor *= layer.stride[0]
    return factor, centre


def _frontend_offset_samples(frontend: torch.nn.Module) -> float:
    """Return the centre of the front end's frame 0, in samples."""
    if type(frontend).__name__ == "S3prlFrontend":
        return _S3PRL_OFFSET_SAMPLES
    stft = getattr(frontend, "stft", None)
    if stft is not None and not getattr(stft, "center", True):
        return stft.n_fft / 2
    return 0.0
