"""Masking the features that an ESPnet encoder reads, without changing the encoder."""

import contextlib
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import torch

from espnet_mvq.distillation import Mask
from espnet_mvq.frame_timing.encoders import reads_speech, subsampling


@dataclass
class MaskedFeatures:
    """Mask of the feature frames in one forward.

    Attributes:
        masked: Bool, (B, T). None until the encoder ran.
    """

    masked: Optional[torch.Tensor] = None


class MaskHook:
    """Masks features on their way into the encoder.

    Masked frames are replaced by one learned vector, masked channels by 0. It is done
    after the normalisation, at the rate of the features: before the encoder's
    subsampling.

    Args:
        mask: Masking; None: there is none.
        model: ESPnet model.
        layers: Student layer of each target.

    Attributes:
        num_features: Features of a frame, F; None without a mask.

    Raises:
        ValueError: If the model is not one of the task ssl, or its features are not
            known.
    """

    def __init__(
        self,
        mask: Optional[Mask],
        model: torch.nn.Module,
        layers: Dict[str, Union[int, str]],
    ):
        self._mask = mask
        self._encoder = model.encoder
        self.num_features: Optional[int] = None
        self._subsampling = {}
        if mask is None:
            return
        if "ESPnetSSLModel" not in [kind.__name__ for kind in type(model).__mro__]:
            raise ValueError(
                f"mvq_conf mask: got one in {type(model).__name__}, expected the task "
                "ssl, whose models learn from the teacher alone; beside another loss "
                "use SpecAug (specaug)"
            )
        if model.frontend is None or reads_speech(model.encoder):
            raise ValueError(
                f"mvq_conf mask: {type(model.encoder).__name__} without a front end "
                "reads no features that could be masked; expected a front end, as "
                "default"
            )
        preencoder = getattr(model, "preencoder", None)
        self.num_features = (preencoder or model.frontend).output_size()
        for name, layer in layers.items():
            self._subsampling[name] = subsampling(model.encoder, layer)
            if self._subsampling[name] is None:
                raise ValueError(
                    f"mvq_conf mask: the subsampling of {type(model.encoder).__name__} "
                    f"is not known, so that masked frames of layer {layer} are not"
                )

    @contextlib.contextmanager
    def record(
        self, vector: Optional[torch.Tensor]
    ) -> Iterator[Optional[MaskedFeatures]]:
        """Mask the features while the block runs one forward; None without a mask.

        Args:
            vector: Learned features of masked frames, (F,).
        """
        if self._mask is None:
            yield None
            return
        recorded = MaskedFeatures()

        def before(
            module: torch.nn.Module, args: Tuple[torch.Tensor, ...], kwargs: Any
        ) -> Tuple[Tuple[torch.Tensor, ...], Any]:
            features, lengths, *others = args
            batch_size, num_frames, num_channels = features.shape
            masked = self._mask.frames(lengths, num_frames).to(features.device)
            channels = self._mask.channels(batch_size, num_channels)
            features = torch.where(
                masked.unsqueeze(2), vector.to(features.dtype), features
            ).masked_fill(channels.to(features.device).unsqueeze(1), 0)
            recorded.masked = masked
            return (features, lengths, *others), kwargs

        hook = self._encoder.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield recorded
        finally:
            hook.remove()

    def frame_weights(
        self, recorded: Optional[MaskedFeatures], name: str, num_frames: int
    ) -> Optional[torch.Tensor]:
        """Return the weights of a target's student frames in the loss.

        A student frame is masked if the feature frame at its centre is.

        Args:
            recorded: Mask of this forward.
            name: Name of the target.
            num_frames: Student frames T.

        Returns:
            Float32, (B, T); None without a mask.
        """
        if recorded is None:
            return None
        stride, centre = self._subsampling[name]  # in feature frames
        centres = centre + stride * torch.arange(num_frames, dtype=torch.float64)
        frames = centres.round().long().clamp(0, recorded.masked.shape[1] - 1)
        frames = frames.to(recorded.masked.device)
        return self._mask.weights(recorded.masked[:, frames])
