"""Embeddings that were written elsewhere, in the place of a teacher."""

from pathlib import Path
from typing import List, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.base import (
    Teacher,
    TeacherError,
    check_frames,
    weights_hash,
)
from espnet_mvq.teachers.feature_files import FeatureFile, said_beside
from espnet_mvq.teachers.speech_model import check_options

_HASHED_UTTERANCES = 8
_WINDOW_S = 0.025  # of nearly every model of speech
_SAID = ("frame_shift_samples", "frame_offset_samples", "sample_rate")


class FeatureError(AudioError):
    """An utterance's embeddings cannot be used."""


class FeatureTeacher(Teacher):
    """Embeddings in files, looked up by utterance.

    Audio is not read; of `wav.scp` only the utterances count.

    Args:
        spec: The whole name, for messages and the id.
        name: File of embeddings (T, D), of the kinds `read_features` knows. It must
            have all utterances of the corpus, those held out for validation too.
        layer: Layer they were taken from: a note for the metadata, -1 = not known.
        device: Where embeddings are put.
        frame_shift_samples: Samples between the centres of two frames; must be given,
            as the two below, unless `embeddings.json` of `mvq.sh --target embeddings`
            lies beside the file and says it.
        frame_offset_samples: Centre of frame 0; default: half of a window of 25 ms.
        sample_rate: Of the speech they were made from, in Hz; default: 16000.
        teacher_id: Name of the teacher that made them. Files with the same name can
            share a quantizer. Default: a hash of some of the embeddings, so that
            another file, or one with other utterances, counts as another teacher.

    Raises:
        TeacherError: If the frame shift is missing or an option impossible.
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
        said = said_beside(path)
        beside = f"{spec}, {path.stem}.json beside it"
        check_options(beside, FeatureTeacher, {k: said[k] for k in _SAID if k in said})
        if frame_shift_samples is None:
            frame_shift_samples = said.get("frame_shift_samples")
        if frame_offset_samples is None:
            frame_offset_samples = said.get("frame_offset_samples")
        if sample_rate is None:
            sample_rate = said.get("sample_rate", 16_000)
        if frame_shift_samples is None:
            raise TeacherError(
                f"teacher {spec}: embeddings do not say how far apart their frames "
                "are; give --teacher_conf frame_shift_samples=... (320 for 50 frames a "
                "second at 16 kHz)"
            )
        if min(frame_shift_samples, sample_rate) <= 0:
            raise TeacherError(
                f"teacher {spec}: got frame_shift_samples {frame_shift_samples} and "
                f"sample_rate {sample_rate}, expected both above 0"
            )
        self._features = FeatureFile(path)
        self.device = device
        self.spec = spec
        self.layer = layer
        self.sample_rate = sample_rate
        self.frame_shift_samples = frame_shift_samples
        if frame_offset_samples is None:
            frame_offset_samples = (_WINDOW_S * sample_rate - 1) / 2
        check_frames(spec, frame_shift_samples, frame_offset_samples)
        self.frame_offset_samples = frame_offset_samples
        self._first = self._features.utt_ids[0]
        self.dim = self._features.load(self._first).shape[1]
        self.id = f"feats/{teacher_id or f'{path.name}@{self._hash()}'}"

    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `embed`."""
        return self.embed(speech, speech_lengths)

    def embed(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Refuse: there is no model here.

        Raises:
            TeacherError: Always.
        """
        raise TeacherError(
            f"teacher {self.spec}: it has embeddings of utterances and cannot embed "
            "speech; look them up with embed_file"
        )

    def embed_batch(self, features: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Put embeddings that were read where they are wanted.

        Args:
            features: What `read` gives, [(T_1, D), ...].

        Returns:
            The same, on the device, [(T_1, D), ...].
        """
        return [array.to(self.device) for array in features]

    def read(self, utt_id: str, place: str) -> torch.Tensor:
        """Look up the embeddings of an utterance.

        Args:
            utt_id: The utterance.
            place: Its value in `wav.scp`; not looked at.

        Returns:
            Embeddings, float32, (T, D).

        Raises:
            FeatureError: If it has none, none of this dimension, or no frames.
        """
        if utt_id not in self._features:
            raise FeatureError(
                f"utterance {utt_id}: not in {self._features.path} (which has "
                f"{len(self._features.utt_ids)} utterances); write its embeddings or "
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

    def _hash(self) -> str:
        """Hash the embeddings of some utterances: all would take hours."""
        utt_ids = sorted(self._features.utt_ids)
        step = -(-len(utt_ids) // _HASHED_UTTERANCES)
        arrays = ((u, np.array(self._features.load(u))) for u in utt_ids[::step])
        return weights_hash((u, torch.from_numpy(array)) for u, array in arrays)
