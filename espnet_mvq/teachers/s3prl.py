"""Teachers of s3prl: HuBERT, WavLM, wav2vec 2.0, data2vec, filterbanks ..."""

import difflib
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch

from espnet_mvq.teachers.base import (
    Teacher,
    TeacherError,
    check_frames,
    embedding_errors,
    resolve_layer,
    stack_layers,
)
from espnet_mvq.teachers.model_id import s3prl_settings, weights_hash
from espnet_mvq.teachers.speech_model import loading

_SAMPLE_RATE = 16_000  # of all upstreams, in Hz
_SAMPLES_PER_MS = 16
# Half of a window of 25 ms, for front ends that are not known here
_DEFAULT_FRAME_OFFSET_SAMPLES = 199.5
_WHOLE_S = 1e6  # longer than any speech
# Random numbers by which filterbanks determine their dimension
_NO_WEIGHT = "_pseudo_wavs"
_HINT = (
    "; many upstreams fail on very short speech, and filterbanks on speech that ends "
    "in digital silence"
)


class S3PRLTeacher(Teacher):
    """An upstream of s3prl, through `s3prl.nn.S3PRLUpstream`.

    Only utterances of equal length share a batch: in many upstreams, those with group
    norm above all, padding changes the results.

    Args:
        spec: The whole name, for messages and the id.
        name: Upstream name, or `NAME:CHECKPOINT` with a local file or folder for
            the upstreams that take one (`hubert_local`, `hf_hubert_custom` ...).
        layer: Layer number, counted from 1; 0 = input of the first block; -1 = last.
        device: Device of the upstream.
        frame_offset_samples: Centre of frame 0; needed for upstreams whose front end is
            not known here, for which a warning is logged.

    Raises:
        TeacherError: If s3prl is missing, knows no such upstream, cannot load it, or
            the layer does not exist.
    """

    def __init__(
        self,
        spec: str,
        name: str,
        layer: int,
        device: torch.device,
        frame_offset_samples: Optional[float] = None,
    ):
        upstream, _, checkpoint = name.partition(":")
        self._upstream = _load_upstream(spec, upstream, checkpoint)
        self._upstream.to(device).eval().requires_grad_(False)
        self.device = device
        self.spec = spec
        # hidden_states[0] is the input of the first block
        self.layer = resolve_layer(layer, self._upstream.num_layers - 1, spec)
        self.dim = self._upstream.hidden_sizes[self.layer]
        self.sample_rate = _SAMPLE_RATE
        self.frame_shift_samples = self._upstream.downsample_rates[self.layer]
        if frame_offset_samples is None:
            frame_offset_samples = self._find_frame_offset()
        self.frame_offset_samples = frame_offset_samples
        check_frames(spec, self.frame_shift_samples, frame_offset_samples)
        if not any(True for _ in self._upstream.parameters()):
            # Filterbanks normalise over the utterance, and need little memory.
            self.segment_s = _WHOLE_S
        label = upstream + (f":{Path(checkpoint).name}" if checkpoint else "")
        settings = s3prl_settings(self._upstream, upstream, checkpoint)
        if self.segment_s == _WHOLE_S:
            # Earlier versions cut long speech for filterbanks, too.
            settings = {**(settings or {}), "cut": False}
        weights = self._upstream.state_dict().items()
        weights = [(k, v) for k, v in weights if not k.endswith(_NO_WEIGHT)]
        self.id = f"s3prl/{label}@{weights_hash(weights, settings)}"

    def _find_frame_offset(self) -> float:
        """Return the centre of frame 0 in samples; warn if it is a default."""
        offset = find_frame_offset(self._upstream, self.frame_shift_samples)
        if offset is None:
            offset = _DEFAULT_FRAME_OFFSET_SAMPLES
            logging.warning(
                f"teacher {self.spec}: the position of its frames is not known; the "
                f"centre of the first is assumed at {offset} samples, as with windows "
                "of 25 ms; give --teacher_conf frame_offset_samples=... if it is not"
            )
        return offset

    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher._forward`."""
        states, lengths = self._run(speech, speech_lengths)
        return states[self.layer], lengths[self.layer]

    @property
    def layers(self) -> List[int]:
        """See `Teacher.layers`."""
        return list(range(self.layer + 1))

    def _forward_layers(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher._forward_layers`."""
        states, lengths = self._run(speech, speech_lengths)
        return stack_layers(self.spec, states[: self.layer + 1]), lengths[self.layer]

    def _run(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
        """Return embeddings (B, T, D) and numbers of frames (B,) of all layers."""
        with embedding_errors(self.spec, speech.shape[1], _HINT):
            return self._upstream(speech, speech_lengths.to(self.device))


def _load_upstream(spec: str, upstream: str, checkpoint: str) -> torch.nn.Module:
    """Load an upstream; every failure of s3prl becomes a TeacherError."""
    remedy = (
        ". Without a network, download its checkpoint elsewhere and name it: "
        "s3prl/hubert_local:FILE, s3prl/hf_hubert_custom:DIR and the like"
    )
    with loading(spec, "s3prl cannot be imported"):
        from s3prl.nn import S3PRLUpstream
    known = S3PRLUpstream.available_names()
    if upstream not in known:
        close = difflib.get_close_matches(upstream, known, n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "see s3prl's docs"
        raise TeacherError(
            f"teacher {spec}: s3prl has no upstream {upstream!r}; {hint}"
        )
    needs_checkpoint = upstream.endswith(("_local", "_custom", "_url"))
    if needs_checkpoint != bool(checkpoint):
        expected = f"s3prl/{upstream}:CHECKPOINT" if needs_checkpoint else "no ':'"
        raise TeacherError(f"teacher {spec}: expected {expected}")
    if needs_checkpoint and "://" not in checkpoint and not Path(checkpoint).exists():
        raise TeacherError(f"teacher {spec}: no such checkpoint: {checkpoint}")
    with loading(spec, "s3prl could not load it", remedy):
        return S3PRLUpstream(upstream, path_or_url=checkpoint or None)


def find_frame_offset(
    upstream: torch.nn.Module, frame_shift_samples: int
) -> Optional[float]:
    """Derive the centre of frame 0 from the front end.

    Args:
        upstream: Upstream of s3prl.
        frame_shift_samples: Samples between two of its frames.

    Returns:
        Centre of frame 0, in samples; None if the front end is not known here, or if a
        frame combines several frames of the front end.
    """
    for module in upstream.modules():
        stft = getattr(module, "_stft_args", None)  # of s3prl's OnlinePreprocessor
        if isinstance(stft, dict) and stft.get("center"):
            hop = getattr(module, "_win_args", {}).get("hop_length")
            return 0.0 if hop == frame_shift_samples else None
        if hasattr(module, "extract_fn") and hasattr(module, "kwargs"):
            return _kaldi_offset(module.kwargs, frame_shift_samples)
    return _convolutions_offset(upstream, frame_shift_samples)


def _kaldi_offset(options: Dict[str, Any], frame_shift: int) -> Optional[float]:
    """Return the centre of frame 0 of Kaldi features."""
    hop = options.get("frame_shift", 10.0) * _SAMPLES_PER_MS
    if hop != frame_shift or not options.get("snip_edges", True):
        return None
    return (options.get("frame_length", 25.0) * _SAMPLES_PER_MS - 1) / 2


def _convolutions_offset(
    upstream: torch.nn.Module, frame_shift: int
) -> Optional[float]:
    """Return the centre of frame 0 of convolutions on the waveform."""
    shift, centre, channels = 1, 0.0, 1
    for module in upstream.modules():
        if not isinstance(module, torch.nn.Conv1d):
            continue
        if module.in_channels != channels or isinstance(module.padding, str):
            return None
        reach = module.dilation[0] * (module.kernel_size[0] - 1) / 2
        centre += (reach - module.padding[0]) * shift
        shift *= module.stride[0]
        channels = module.out_channels
        if shift >= frame_shift:
            return centre if shift == frame_shift else None
    return None
