"""What every teacher back end offers."""

import hashlib
from abc import ABC, abstractmethod
from typing import Iterable, Tuple

import torch

from espnet_mvq.teachers.audio import read_audio


class TeacherError(ValueError):
    """A teacher could not be found, loaded or used as asked."""


class Teacher(ABC):
    """A frozen model that turns speech into teacher embeddings.

    Attributes:
        spec: The name it was built from, `BACKEND/NAME`.
        id: Back end, name and a hash of the weights: equal id, equal embeddings.
        layer: Layer of the embeddings, counted from 1; 0 = input of the first block.
        dim: Dimension D of the embeddings.
        sample_rate: Sample rate of the speech, in Hz.
        frame_shift_samples: Samples between the centres of two frames.
        frame_offset_samples: Centre of frame 0, in samples from the start.
    """

    spec: str
    id: str
    layer: int
    dim: int
    sample_rate: int
    frame_shift_samples: int
    frame_offset_samples: float

    @abstractmethod
    def embed(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Compute embeddings, in eval mode and without gradients.

        An utterance's embeddings do not depend on what else is in its batch.

        Args:
            speech: Waveforms in [-1, 1], float, (B, S), padded with anything.
            speech_lengths: Samples of each utterance, int64, (B,).

        Returns:
            Embeddings, float32, (B, T, D), zero beyond their lengths; and the number
            of frames of each utterance, int64, (B,).
        """

    def embed_utterance(self, speech: torch.Tensor) -> torch.Tensor:
        """Embed one utterance.

        Args:
            speech: Waveform in [-1, 1], float, (S,).

        Returns:
            Embeddings, float32, (T, D).
        """
        embeddings, _ = self.embed(speech.unsqueeze(0), torch.tensor([len(speech)]))
        return embeddings[0]

    def embed_file(self, utt_id: str, place: str) -> torch.Tensor:
        """Embed an utterance of a corpus.

        Args:
            utt_id: The utterance.
            place: Its audio file, as in `wav.scp`.

        Returns:
            Embeddings, float32, (T, D).

        Raises:
            AudioError: If the audio cannot be used.
        """
        return self.embed_utterance(read_audio(utt_id, place, self.sample_rate))


def resolve_layer(layer: int, num_layers: int, spec: str) -> int:
    """Turn a layer number into one counted from 1, -1 meaning the last.

    Raises:
        TeacherError: If the teacher has no such layer.
    """
    resolved = num_layers if layer == -1 else layer
    if not 0 <= resolved <= num_layers:
        raise TeacherError(
            f"teacher {spec}: got layer {layer}, expected 1 to {num_layers} (0: input "
            "of the first block, -1: the last layer)"
        )
    return resolved


def weights_hash(named_tensors: Iterable[Tuple[str, torch.Tensor]]) -> str:
    """Hash names and values of a model's weights, 12 hex digits."""
    digest = hashlib.sha256()
    for name, value in sorted(named_tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        value = value.detach().cpu().contiguous()
        # A view as bytes: numpy knows no bfloat16.
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def pad_embeddings(
    embeddings: Iterable[torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Stack embeddings [(T_1, D), ...] into zero-padded (B, T, D) and lengths (B,)."""
    embeddings = list(embeddings)
    lengths = torch.tensor([len(e) for e in embeddings])
    padded = torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True)
    return padded.float(), lengths
