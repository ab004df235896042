"""Which moment a feature frame shows after SpecAug's time warp."""

import contextlib
from typing import Any, Iterator, List, Optional

import torch

from espnet_mvq.frame_timing.front_ends import frontend_frames


class WarpedTime:
    """Maps times in the speech that the encoder hears to times in the speech itself.

    Args:
        shown: For each feature frame the (fractional) frame of the unwarped features
            that it shows, float, (B, T).
        shift_samples: Samples between feature frames.
        offset_samples: Centre of feature frame 0.
    """

    def __init__(
        self, shown: torch.Tensor, shift_samples: float, offset_samples: float
    ):
        self._shown = shown
        self._shift = shift_samples
        self._offset = offset_samples

    def __call__(self, times: torch.Tensor) -> torch.Tensor:
        """Map times.

        Args:
            times: In samples, float, (S,).

        Returns:
            In samples, float, (B, S).
        """
        last = self._shown.shape[1] - 1
        places = (times - self._offset) / self._shift
        inside = places.clamp(0, last)
        left = inside.floor().long().clamp(max=max(0, last - 1))
        right = (left + 1).clamp(max=last)
        share = inside - left
        shown = self._shown[:, left] * (1 - share) + self._shown[:, right] * share
        return self._offset + self._shift * (shown + (places - inside))


class TimeWarpListener:
    """Finds out what SpecAug's time warp does, without changing it.

    The warp is random. When it has run, it runs again, with the random state that it
    had, on a ramp: features that hold the number of their frame. What comes out tells
    for each frame which one it shows, whatever the warp's method.

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
        self._listening = False
        self._random_state: Optional[torch.Tensor] = None
        self._shown: Optional[torch.Tensor] = None
        warp = getattr(specaug, "time_warp", None)
        if warp is None:
            return
        frames = frontend_frames(frontend)
        if frames is None:
            raise ValueError(
                f"specaug: its time warp moves the speech, but the frame shift of the "
                f"front end {type(frontend).__name__} is not known, so that codebook "
                "indexes cannot be moved with it; set specaug_conf: "
                "{apply_time_warp: false}"
            )
        self._shift, self._offset = frames
        warp.register_forward_pre_hook(self._before)
        warp.register_forward_hook(self._after)

    @contextlib.contextmanager
    def listening(self) -> Iterator["TimeWarpListener"]:
        """Find out what the warp does while the block runs."""
        self._listening, self._shown = True, None
        try:
            yield self
        finally:
            self._listening = False

    def take(self) -> Optional[WarpedTime]:
        """Hand over what was found out, once; None if nothing was warped."""
        shown, self._shown = self._shown, None
        if shown is None:
            return None
        return WarpedTime(shown, self._shift, self._offset)

    def _before(self, module: torch.nn.Module, args: Any) -> None:
        if self._listening:
            self._random_state = torch.get_rng_state()

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if not self._listening:
            return
        features, *lengths = args
        batch, num_frames = features.shape[:2]
        ramp = torch.arange(num_frames, dtype=torch.float32)
        ramp = ramp.expand(batch, -1).unsqueeze(2).clone()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random_state)
            shown, _ = module.forward(ramp, *_to_cpu(lengths))
        shown = shown.squeeze(2)
        if lengths and lengths[0] is not None:
            # Beyond an utterance's end ESPnet pads with zeros, which name frame 0.
            own = torch.arange(shown.shape[1], dtype=torch.float32)
            shown = torch.where(own < lengths[0].cpu().unsqueeze(1), shown, own)
        self._shown = shown.to(features.device)


def refuse_warp_inside(encoder: torch.nn.Module) -> None:
    """Refuse an encoder with a SpecAug of its own, as Whisper's, that warps time.

    Raises:
        ValueError: Saying how to switch it off.
    """
    specaug = getattr(encoder, "specaug", None)
    if getattr(specaug, "time_warp", None) is not None:
        raise ValueError(
            f"encoder {type(encoder).__name__}: its own SpecAug warps time, and "
            "codebook indexes cannot be moved with it; set apply_time_warp: false in "
            "the specaug_conf (or specaug_config) of encoder_conf"
        )


def _to_cpu(values: List[Any]) -> List[Any]:
    return [v.cpu() if isinstance(v, torch.Tensor) else v for v in values]
