"""Stored embeddings in place of a teacher: `feats/SCP`."""

from pathlib import Path
from typing import List, Optional, Sequence, Union

import numpy as np
import torch

from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.base import FrameSource, TeacherError, check_frames
from espnet_mvq.teachers.build import check_options
from espnet_mvq.teachers.feature_files import FeatureFile, read_embeddings_json
from espnet_mvq.teachers.model_id import weights_hash

_HASHED_UTTERANCES = 8
_WINDOW_S = 0.025  # of nearly every speech model


class FeatureError(AudioError):
    """An utterance's embeddings cannot be used."""


class StoredFeatures(FrameSource):
    """Embeddings in files, looked up by utterance.

    Audio is not read; only the utterance ids of `wav.scp` are used.

    Args:
        spec: The whole name, for messages and the id.
        name: File of embeddings (T, D), of the kinds `read_features` knows. It must
            have all utterances of the corpus, those held out for validation too.
        layer: Layer they were taken from: a note for the metadata, -1 = not known.
        device: Device of the embeddings.
        frame_shift_samples: Samples between the centres of two frames. Required, unless
            an `embeddings.json` of `mvq.sh --target embeddings` beside the file gives
            it; this file gives defaults for the next two options also.
        frame_offset_samples: Centre of frame 0; default: half of a window of 25 ms.
        sample_rate: Sample rate of the speech, in Hz; default: 16000.
        teacher_id: Name of the teacher that made them. Files with the same name can
            share a quantizer. Default: a hash of some of the embeddings, so that
            another file, or one with other utterances, counts as another teacher.

    Raises:
        TeacherError: If the frame shift is missing or an option is invalid.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind or damaged.
    """

    reads_audio = False

    def __init__(
        self,
        spec: str,
        name: str,
        layer: int,
        device: torch.device,
        frame_shift_samples: Optional[int] = None,
        frame_offset_samples: Optional[float] = None,
        sample_rate: Optional[int] = None,
        teacher_id: Union[None, str, int] = None,
    ):
        if layer < -1:
            raise TeacherError(
                f"teacher {spec}: got layer {layer}, expected -1 or more"
            )
        path = Path(name).expanduser()
        given = {
            "frame_shift_samples": frame_shift_samples,
            "frame_offset_samples": frame_offset_samples,
            "sample_rate": sample_rate,
        }
        stored = read_embeddings_json(path)
        stored = {k: stored[k] for k in given if stored.get(k) is not None}
        beside = f"{spec}, {path.stem}.json beside it"
        check_options(beside, StoredFeatures, stored)
        given = {k: value for k, value in given.items() if value is not None}
        frames = {"sample_rate": 16_000, **stored, **given}
        if frames.get("frame_shift_samples") is None:
            raise TeacherError(
                f"teacher {spec}: the frame shift of its embeddings is not known; "
                "give --teacher_conf frame_shift_samples=... (320 for 50 frames a "
                "second at 16 kHz)"
            )
        self.sample_rate = frames["sample_rate"]
        self.frame_shift_samples = frames["frame_shift_samples"]
        if min(self.frame_shift_samples, self.sample_rate) <= 0:
            raise TeacherError(
                f"teacher {spec}: got frame_shift_samples {self.frame_shift_samples} "
                f"and sample_rate {self.sample_rate}, expected both above 0"
            )
        self.frame_offset_samples = frames.get(
            "frame_offset_samples", (_WINDOW_S * self.sample_rate - 1) / 2
        )
        self._features = FeatureFile(path)
        check_frames(spec, self.frame_shift_samples, self.frame_offset_samples)
        self.device = device
        self.spec = spec
        self.layer = layer
        self._first = next(iter(self._features.places))
        self.dim = self._features.load(self._first).shape[1]
        self.id = f"feats/{teacher_id or f'{path.name}@{self._hash()}'}"

    def read(self, utt_id: str, place: str) -> torch.Tensor:
        """Look up the embeddings of an utterance.

        Args:
            utt_id: The utterance.
            place: Its value in `wav.scp`; not used.

        Returns:
            Embeddings, float32, (T, D).

        Raises:
            FeatureError: If it has none, no frames, or another dimension.
        """
        if utt_id not in self._features.places:
            raise FeatureError(
                f"utterance {utt_id}: not in {self._features.path} (which has "
                f"{len(self._features.places)} utterances); write its embeddings or "
                "take it out of wav.scp"
            )
        try:
            array = self._features.load(utt_id)
        except (ValueError, FileNotFoundError) as error:
            raise FeatureError(str(error)) from error
        if array.shape[1] != self.dim or not len(array):
            raise FeatureError(
                f"utterance {utt_id} in {self._features.path}: got shape "
                f"{array.shape}, expected (T, {self.dim}) as of utterance "
                f"{self._first}, T at least 1; write it again or take it out of wav.scp"
            )
        # A copy: the array may be a read-only map of the file.
        return torch.from_numpy(np.array(array, np.float32))

    def embed_batch(self, features: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Move embeddings to the device, [(T_1, D), ...]."""
        return [array.to(self.device) for array in features]

    def _hash(self) -> str:
        """Hash the embeddings of some utterances: all would take hours."""
        utt_ids = sorted(self._features.places)
        step = -(-len(utt_ids) // _HASHED_UTTERANCES)
        arrays = ((u, np.array(self._features.load(u))) for u in utt_ids[::step])
        return weights_hash((u, torch.from_numpy(array)) for u, array in arrays)
