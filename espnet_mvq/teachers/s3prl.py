"""Teachers out of s3prl's collection: HuBERT, WavLM, wav2vec 2.0, data2vec ..."""

import contextlib
import difflib
import logging
import sys
from pathlib import Path
from typing import Optional, Tuple

import torch

from espnet_mvq.teachers.base import (
    EmbeddingError,
    Teacher,
    TeacherError,
    check_frames,
    is_fault_of_device,
    resolve_layer,
    weights_hash,
)
from espnet_mvq.teachers.s3prl_settings import (
    find_frame_offset,
    settings_of,
    weights_of,
)
from espnet_mvq.teachers.transformers_settings import one_line

# Half of a window of 25 ms, taken for front ends that are not known here
_DEFAULT_FRAME_OFFSET_SAMPLES = 199.5
_WHOLE_S = 1e6  # no speech is longer


class S3PRLTeacher(Teacher):
    """An upstream of s3prl, through `s3prl.nn.S3PRLUpstream`.

    Only utterances of equal length run together: many upstreams (those with group norm
    above all) see the padding of a batch.

    Args:
        spec: The whole name, for messages and the id.
        name: Upstream name, or `NAME:CHECKPOINT` with a local file or folder for
            the upstreams that take one (`hubert_local`, `hf_hubert_custom` ...).
        layer: Layer number, counted from 1; 0 = input of the first block; -1 = last.
        device: Where it runs.
        frame_offset_samples: Centre of frame 0, for upstreams whose front end is not
            known here; a warning says so.

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
        self.sample_rate = 16_000
        self.frame_shift_samples = self._upstream.downsample_rates[self.layer]
        if frame_offset_samples is None:
            frame_offset_samples = self._find_frame_offset()
        self.frame_offset_samples = frame_offset_samples
        check_frames(spec, self.frame_shift_samples, frame_offset_samples)
        if not any(True for _ in self._upstream.parameters()):
            # Filterbanks normalise over the utterance, and need little memory.
            self.segment_s = _WHOLE_S
        label = upstream + (f":{Path(checkpoint).name}" if checkpoint else "")
        settings = settings_of(self._upstream, upstream, checkpoint)
        if self.segment_s == _WHOLE_S:
            # Versions before cut long speech for filterbanks, too.
            settings = {**(settings or {}), "cut": False}
        weights = weights_hash(weights_of(self._upstream).items(), settings)
        self.id = f"s3prl/{label}@{weights}"

    def _find_frame_offset(self) -> float:
        """Return the centre of frame 0 in samples, warn if it is a guess."""
        found = find_frame_offset(self._upstream, self.frame_shift_samples)
        if found is None:
            found = _DEFAULT_FRAME_OFFSET_SAMPLES
            logging.warning(
                f"teacher {self.spec}: where its frames lie is not known here, the "
                f"centre of the first is taken to be at {found} samples, as with "
                "windows of 25 ms; give --teacher_conf frame_offset_samples=... if it "
                "is elsewhere"
            )
        return found

    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher._forward`."""
        try:
            states, lengths = self._upstream(speech, speech_lengths.to(self.device))
        except Exception as error:  # whatever the upstream's own code raises
            if is_fault_of_device(error):
                raise
            raise EmbeddingError(
                f"the teacher {self.spec} cannot embed {speech.shape[1]} samples "
                f"({type(error).__name__}: {one_line(error)}); many upstreams fail on "
                "very short speech, and filterbanks on speech that ends in digital "
                "silence: leave the utterance out, in an extraction by --on_error skip"
            ) from error
        return states[self.layer], lengths[self.layer]


def _load_upstream(spec: str, upstream: str, checkpoint: str) -> torch.nn.Module:
    """Load an upstream, turning s3prl's many ways to fail into one message."""
    try:
        # s3prl prints while it is imported; standard output may be a data pipe.
        with contextlib.redirect_stdout(sys.stderr):
            from s3prl.nn import S3PRLUpstream
    except ImportError as error:
        raise TeacherError(
            f"teacher {spec}: s3prl cannot be imported ({error}); "
            "pip install 'espnet-mvq[s3prl]'"
        ) from error
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
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return S3PRLUpstream(upstream, path_or_url=checkpoint or None)
    except Exception as error:  # whatever the upstream's own code raises
        raise TeacherError(
            f"teacher {spec}: s3prl could not load it ({type(error).__name__}: "
            f"{one_line(error)}). Without a network, download its checkpoint elsewhere "
            "and name it: s3prl/hubert_local:FILE, s3prl/hf_hubert_custom:DIR and the "
            "like"
        ) from error
