"""What every teacher back end offers."""

import hashlib
import json
from abc import abstractmethod
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from torch.nn.utils.rnn import pad_sequence

from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.batching import cut_into_segments, group_by_length
from espnet_mvq.teachers.speech_model import SpeechModel, TeacherError


class EmbeddingError(AudioError):
    """A teacher has no embeddings, or none that are finite, for an utterance."""


class Teacher(SpeechModel):
    """A frozen model that turns speech into teacher embeddings.

    A back end sets the attributes and says how a batch runs (`_forward`); cutting of
    long speech, batches that keep utterances independent of each other, and reduced
    precision are done here.

    Attributes:
        layer: Layer of the embeddings, counted from 1; 0 = input of the first block.
        dim: Dimension D of the embeddings.
        frame_shift_samples: Samples between the centres of two frames.
        frame_offset_samples: Centre of frame 0, in samples from the start.
        segment_s: Longest piece of speech that runs whole, in seconds; longer speech
            is cut into such pieces.
        overlap_s: Context in seconds that each frame has on both sides where speech
            is cut.
        reads_audio: It needs the audio files of a corpus.
    """

    layer: int
    dim: int
    frame_shift_samples: int
    frame_offset_samples: float
    segment_s: float = 40.0
    overlap_s: float = 2.0
    reads_audio: bool = True

    @abstractmethod
    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Run the model on a batch; without gradients, under autocast if asked for.

        Args:
            speech: Waveforms on the teacher's device, float32, (B, S), zero beyond
                their lengths. All are of length S unless `mixes_lengths`.
            speech_lengths: Samples of each, int64, (B,), on the CPU.

        Returns:
            Embeddings, (B, T, D), anything beyond their lengths; and the number of
            frames of each utterance, (B,).
        """

    def _prepare(self, waveform: torch.Tensor) -> torch.Tensor:
        """Do to a whole utterance (S,) what the model wants done, normalise it say."""
        return waveform

    @torch.inference_mode()
    def embed_batch(self, waveforms: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Embed utterances; none depends on the others.

        Args:
            waveforms: What `read` gives, [(S_1,), ...].

        Returns:
            Embeddings, float32, on the teacher's device, [(T_1, D), ...].

        Raises:
            EmbeddingError: If the model cannot run on one of them.
        """
        prepared = [self._prepare(w.detach().cpu().float()) for w in waveforms]
        segments = [
            (number, segment)
            for number, waveform in enumerate(prepared)
            for segment in cut_into_segments(
                len(waveform),
                int(self.segment_s * self.sample_rate),
                int(self.overlap_s * self.sample_rate),
                self.frame_shift_samples,
            )
        ]
        pieces = [prepared[number][s.start : s.stop] for number, s in segments]
        found: List[torch.Tensor] = [torch.empty(0)] * len(pieces)
        for group in group_by_length(
            [len(piece) for piece in pieces], self.batch_samples, not self.mixes_lengths
        ):
            batch = [pieces[position] for position in group]
            lengths = torch.tensor([len(piece) for piece in batch])
            padded = pad_sequence(batch, batch_first=True).to(self.device)
            with self._autocast():
                embeddings, frames = self._forward(padded, lengths)
            for position, row, count in zip(group, embeddings, frames.tolist()):
                found[position] = row[:count].float()
        joined: List[List[torch.Tensor]] = [[] for _ in prepared]
        for (number, segment), frames_of_segment in zip(segments, found):
            shift = segment.start // self.frame_shift_samples
            end = None if segment.end_frame is None else segment.end_frame - shift
            joined[number].append(frames_of_segment[segment.first_frame - shift : end])
        return [torch.cat(parts) for parts in joined]

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
        embeddings = self.embed_batch(
            [row[:length] for row, length in zip(speech, speech_lengths.tolist())]
        )
        lengths = torch.tensor([len(e) for e in embeddings])
        return pad_sequence(embeddings, batch_first=True), lengths

    def embed_utterance(self, speech: torch.Tensor) -> torch.Tensor:
        """Embed one utterance.

        Args:
            speech: Waveform in [-1, 1], float, (S,).

        Returns:
            Embeddings, float32, (T, D).
        """
        return self.embed(speech.unsqueeze(0), torch.tensor([len(speech)]))[0][0]

    def embed_file(self, utt_id: str, place: str) -> torch.Tensor:
        """Embed an utterance of a corpus.

        Args:
            utt_id: The utterance.
            place: Its audio file, as in `wav.scp`.

        Returns:
            Embeddings, float32, (T, D).

        Raises:
            AudioError: If the audio cannot be used, or the model cannot run on it.
        """
        waveform = self.read(utt_id, place)
        try:
            return self.embed_batch([waveform])[0]
        except EmbeddingError as error:
            raise EmbeddingError(f"utterance {utt_id}: {error}") from error


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


def check_frames(spec: str, shift_samples: int, offset_samples: float) -> None:
    """Refuse frames that lie nowhere.

    Raises:
        TeacherError: If the shift is not above 0 or the centre of frame 0 below 0.
    """
    if shift_samples <= 0 or offset_samples < 0:
        raise TeacherError(
            f"teacher {spec}: got frame_shift_samples {shift_samples} and "
            f"frame_offset_samples {offset_samples}, expected a shift above 0 and an "
            "offset of 0 or more"
        )


def is_fault_of_device(error: Exception) -> bool:
    """Say whether an error is of a device or its memory, not of what ran on it."""
    kinds = (
        torch.cuda.OutOfMemoryError,
        getattr(torch, "AcceleratorError", MemoryError),
    )
    # Older torch raises errors of CUDA, cuDNN and cuBLAS as RuntimeError.
    named = any(name in str(error).upper() for name in ("CUDA", "CUDNN", "CUBLAS"))
    return named or isinstance(error, (MemoryError, *kinds))


def weights_hash(
    named_tensors: Iterable[Tuple[str, torch.Tensor]],
    settings: Optional[Dict[str, Any]] = None,
) -> str:
    """Hash a model.

    Args:
        named_tensors: Its weights by name.
        settings: Plain values, of any depth, that decide on its results too.

    Returns:
        12 hex digits; the order of weights and settings is of no account.
    """
    if settings is not None:
        text = json.dumps(settings, sort_keys=True, default=str)
        content = torch.tensor(list(text.encode()), dtype=torch.uint8)
        named_tensors = [*named_tensors, ("config", content)]
    digest = hashlib.sha256()
    for name, value in sorted(named_tensors, key=lambda item: item[0]):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        value = value.detach().cpu().contiguous()
        # A view as bytes: numpy knows no bfloat16.
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
