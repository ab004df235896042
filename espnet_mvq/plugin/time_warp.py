"""SpecAug's time warp: the moment of the speech that each warped frame shows."""

import contextlib
from dataclasses import dataclass
from typing import Any, Iterator, Optional

import torch

from espnet_mvq.frame_timing.front_ends import frontend_frames


@dataclass
class WarpedTime:
    """Map of times in warped features to times in the speech.

    Attributes:
        shift_samples: Samples between feature frames.
        offset_samples: Centre of feature frame 0.
        source_frames: For each feature frame the (fractional) frame of the unwarped
            features that it shows, float, (B, T). None: nothing was warped.
    """

    shift_samples: float
    offset_samples: float
    source_frames: Optional[torch.Tensor] = None

    def __call__(self, times: torch.Tensor) -> torch.Tensor:
        """Map times in the warped features to times in the speech.

        Args:
            times: In samples, float, (S,).

        Returns:
            In samples, float, (B, S).
        """
        frames = self.source_frames
        last = frames.shape[1] - 1
        places = (times - self.offset_samples) / self.shift_samples
        inside = places.clamp(0, last)
        left = inside.floor().long().clamp(max=max(0, last - 1))
        right = (left + 1).clamp(max=last)
        share = inside - left
        source = frames[:, left] * (1 - share) + frames[:, right] * share
        return self.offset_samples + self.shift_samples * (source + (places - inside))


class TimeWarpHook:
    """Records SpecAug's time warp without changing it.

    The warp is random. When it has run, it runs again, with the same random state, on
    a ramp: features that hold the number of their frame. The output has for each frame
    the number of the frame that it shows, whatever the warp's method.

    Args:
        specaug: ESPnet's SpecAug, or None.
        frontend: ESPnet's front end, or None.

    Raises:
        ValueError: If there is a time warp and the features' place in time is unknown.
    """

    def __init__(
        self,
        specaug: Optional[torch.nn.Module],
        frontend: Optional[torch.nn.Module],
    ):
        self._warp = getattr(specaug, "time_warp", None)
        if self._warp is None:
            return
        frames = frontend_frames(frontend)
        if frames is None:
            raise ValueError(
                f"specaug: its time warp moves the speech, but the frame shift of the "
                f"front end {type(frontend).__name__} is not known, so that codebook "
                "indexes cannot be moved with it; set specaug_conf: "
                "{apply_time_warp: false}"
            )
        self._shift_samples, self._offset_samples = frames

    @contextlib.contextmanager
    def record(self) -> Iterator[Optional[WarpedTime]]:
        """Record the warp while the block runs one forward; None without a warp."""
        if self._warp is None:
            yield None
            return
        recorded = WarpedTime(self._shift_samples, self._offset_samples)
        random_states = []

        def before(module: torch.nn.Module, args: Any) -> None:
            random_states.append(torch.get_rng_state())

        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            recorded.source_frames = _warp_ramp(module, random_states.pop(), *args)

        hooks = [
            self._warp.register_forward_pre_hook(before),
            self._warp.register_forward_hook(after),
        ]
        try:
            yield recorded
        finally:
            for hook in hooks:
                hook.remove()


def _warp_ramp(
    warp: torch.nn.Module,
    random_state: torch.Tensor,
    features: torch.Tensor,
    *lengths: Optional[torch.Tensor],
) -> torch.Tensor:
    """Return the number of the frame that each warped frame shows, (B, T)."""
    batch, num_frames = features.shape[:2]
    ramp = torch.arange(num_frames, dtype=torch.float32)
    ramp = ramp.expand(batch, -1).unsqueeze(2).clone()
    lengths = [None if length is None else length.cpu() for length in lengths]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        source, _ = warp.forward(ramp, *lengths)
    source = source.squeeze(2)
    if lengths and lengths[0] is not None:
        # Beyond an utterance's end ESPnet pads with zeros, the number of frame 0.
        own = torch.arange(source.shape[1], dtype=torch.float32)
        source = torch.where(own < lengths[0].unsqueeze(1), source, own)
    return source.to(features.device)


def refuse_warp_inside(encoder: torch.nn.Module) -> None:
    """Refuse an encoder with a SpecAug of its own, as Whisper's, that warps time.

    Raises:
        ValueError: With the option that switches the warp off.
    """
    specaug = getattr(encoder, "specaug", None)
    if getattr(specaug, "time_warp", None) is not None:
        raise ValueError(
            f"encoder {type(encoder).__name__}: its own SpecAug warps time, and "
            "codebook indexes cannot be moved with it; set apply_time_warp: false in "
            "the specaug_conf (or specaug_config) of encoder_conf"
        )
