"""Where the frames of an ESPnet encoder lie in time."""

from typing import Optional

import torch

from espnet_mvq.distillation import FrameGrid

# Input layer -> (feature frames per encoder frame, feature frame on which encoder
# frame 0 is centred). By class name: the classes have moved between ESPnet versions.
SUBSAMPLING = {
    "Conv2dSubsampling": (4, 3),
    "Conv2dSubsampling1": (1, 2),
    "Conv2dSubsampling2": (2, 3),
    "Conv2dSubsampling6": (6, 5),
    "Conv2dSubsampling8": (8, 7),
    "Conv1dSubsampling1": (1, 2),
    "Conv1dSubsampling2": (2, 2),
    "Conv1dSubsampling3": (3, 3),
    "Sequential": (1, 0),  # input_layer: linear, embed
    "Linear": (1, 0),
    "NoneType": (1, 0),  # input_layer: null
}

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
    embed = getattr(encoder, "embed", None)
    name = type(embed).__name__
    if name not in SUBSAMPLING:
        raise ValueError(
            f"encoder {type(encoder).__name__} with input layer {name}: its "
            "subsampling is not known; give mvq_conf: {student_frame_shift_samples: "
            "..., student_frame_offset_samples: ...}"
        )
    factor, centre = SUBSAMPLING[name]
    return FrameGrid(hop * factor, _frontend_offset_samples(frontend) + hop * centre)


def _frontend_offset_samples(frontend: torch.nn.Module) -> float:
    """Return the centre of the front end's frame 0, in samples."""
    if type(frontend).__name__ == "S3prlFrontend":
        return _S3PRL_OFFSET_SAMPLES
    stft = getattr(frontend, "stft", None)
    if stft is not None and not getattr(stft, "center", True):
        return stft.n_fft / 2
    return 0.0
