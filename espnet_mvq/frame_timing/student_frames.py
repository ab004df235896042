"""Where the frames of an ESPnet encoder lie in time."""

from typing import Optional, Union

import torch

from espnet_mvq.distillation import FrameGrid
from espnet_mvq.frame_timing.encoder_frames import (
    frame_grid,
    frontend_frames,
    subsampling,
)


def student_frame_grid(
    frontend: Optional[torch.nn.Module],
    encoder: torch.nn.Module,
    shift_samples: Optional[float] = None,
    offset_samples: Optional[float] = None,
    layer: Union[int, str] = -1,
    preencoder: Optional[torch.nn.Module] = None,
) -> FrameGrid:
    """Work out centre and distance of encoder frames.

    Args:
        frontend: ESPnet front end; None for `feats_type: extracted` and for encoders
            that read the waveform.
        encoder: ESPnet encoder.
        shift_samples: Given by the user, not worked out.
        offset_samples: Likewise; None beside a given shift: 0.
        layer: Student layer as in `mvq_conf`.
        preencoder: ESPnet pre-encoder.

    Returns:
        The frames of the layer.

    Raises:
        ValueError: If the parts' frames are not known and nothing is given.
    """
    if shift_samples is not None:
        return FrameGrid(shift_samples, offset_samples or 0)
    known = frame_grid(encoder, frontend, preencoder, layer)
    if known is None:
        raise ValueError(
            f"{_name_unknown(frontend, encoder, layer, preencoder)}; give mvq_conf: "
            "{student_frame_shift_samples: ..., student_frame_offset_samples: ...}"
        )
    shift, offset = known
    return FrameGrid(shift, offset if offset_samples is None else offset_samples)


def _name_unknown(
    frontend: Optional[torch.nn.Module],
    encoder: torch.nn.Module,
    layer: Union[int, str],
    preencoder: Optional[torch.nn.Module],
) -> str:
    """Say which part's frames are not known."""
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
