"""Base classes of teachers: sources of embeddings, and models that compute them."""

import contextlib
from abc import abstractmethod
from typing import Any, Callable, Iterator, List, Sequence, Tuple

import torch
from torch.nn.utils.rnn import pad_sequence

from espnet_mvq.errors import one_line
from espnet_mvq.frame_timing.encoders import first_tensor
from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.batching import Segment, cut_into_segments, group_by_length
from espnet_mvq.teachers.speech_model import SpeechModel, SpeechSource, TeacherError

# Padded speech (B, S) and its lengths (B,) -> embeddings (B, T, *) and their lengths
Forward = Callable[[torch.Tensor, torch.Tensor], Tuple[torch.Tensor, torch.Tensor]]


class EmbeddingError(AudioError):
    """A teacher has no embeddings, or no finite ones, for an utterance."""


class FrameSource(SpeechSource):
    """Embeddings of the utterances of a corpus.

    Attributes:
        layer: Layer of the embeddings, counted from 1; 0 = input of the first block.
        dim: Dimension D of the embeddings.
        frame_shift_samples: Samples between the centres of two frames.
        frame_offset_samples: Centre of frame 0, in samples from the start.
        reads_audio: It needs the audio files of the corpus.
    """

    layer: int
    dim: int
    frame_shift_samples: int
    frame_offset_samples: float
    reads_audio: bool = True

    @abstractmethod
    def embed_batch(self, inputs: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Embed utterances; none depends on the others.

        Args:
            inputs: Results of `read`.

        Returns:
            Embeddings, float32, on the teacher's device, [(T_1, D), ...].
        """


class Teacher(SpeechModel, FrameSource):
    """A frozen model that turns speech into teacher embeddings.

    A back end sets the attributes and runs a batch in `_forward`. Cutting of long
    speech, batches whose utterances stay independent, and reduced precision are done
    here.

    Attributes:
        segment_s: Longest speech that runs whole, in seconds; longer speech is cut into
            segments of this length.
        overlap_s: Context in seconds on both sides of each frame where speech is cut.
        blocks: Blocks of the model from the first to that of `layer`, for the layers
            below it; none if the model has no numbered blocks.
    """

    segment_s: float = 40.0
    overlap_s: float = 2.0
    blocks: Sequence[torch.nn.Module] = ()

    @abstractmethod
    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Run the model on a batch; called without gradients, under `dtype`'s autocast.

        Args:
            speech: Waveforms on the teacher's device, float32, (B, S), zero beyond
                their lengths. All are of length S unless `mixes_lengths`.
            speech_lengths: Samples of each, int64, (B,), on the CPU.

        Returns:
            Embeddings, (B, T, D), anything beyond their lengths; and the number of
            frames of each utterance, (B,).
        """

    @property
    def layers(self) -> List[int]:
        """Layers of `embed_layers`: those below the teacher's, from 0, and its own."""
        return [*range(len(self.blocks)), self.layer]

    def _forward_layers(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Run the model as `_forward` does, and return the embeddings of all `layers`.

        Returns:
            Embeddings, (B, T, L, D), and the number of frames of each utterance, (B,).

        Raises:
            TeacherError: If the layers differ in shape.
        """
        below: List[torch.Tensor] = []

        def keep_input(block: torch.nn.Module, args: Any) -> None:
            below.append(first_tensor(args))

        def keep_output(block: torch.nn.Module, args: Any, output: Any) -> None:
            below.append(first_tensor(output))

        hooks = [b.register_forward_pre_hook(keep_input) for b in self.blocks[:1]]
        hooks += [b.register_forward_hook(keep_output) for b in self.blocks[:-1]]
        try:
            embeddings, frames = self._forward(speech, speech_lengths)
        finally:
            for hook in hooks:
                hook.remove()
        return stack_layers(self.spec, [*below, embeddings]), frames

    def _prepare(self, waveform: torch.Tensor) -> torch.Tensor:
        """Prepare a whole utterance (S,) before it is cut, for example normalise it."""
        return waveform

    @torch.inference_mode()
    def embed_batch(self, waveforms: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Embed utterances; none depends on the others.

        Args:
            waveforms: Results of `read`, [(S_1,), ...].

        Returns:
            Embeddings, float32, on the teacher's device, [(T_1, D), ...].

        Raises:
            EmbeddingError: If the model cannot run on one of them.
        """
        return self._embed(waveforms, self._forward)

    @torch.inference_mode()
    def embed_layers(self, waveforms: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Embed utterances at all `layers`, in one run of the model.

        Args:
            waveforms: Results of `read`, [(S_1,), ...].

        Returns:
            Embeddings, float32, on the teacher's device, [(T_1, L, D), ...]; those of
            `embed_batch` are the last layer.

        Raises:
            EmbeddingError: If the model cannot run on one of them.
            TeacherError: If the layers differ in their frames or dimension.
        """
        return self._embed(waveforms, self._forward_layers)

    def _embed(
        self, waveforms: Sequence[torch.Tensor], forward: Forward
    ) -> List[torch.Tensor]:
        """Embed utterances (S,) by a method that runs a batch; [(T, *), ...]."""
        prepared = [self._prepare(w.detach().cpu().float()) for w in waveforms]
        segments = [self._cut(len(waveform)) for waveform in prepared]
        pieces = [
            waveform[segment.start : segment.stop]
            for waveform, parts in zip(prepared, segments)
            for segment in parts
        ]
        embeddings = iter(self._embed_pieces(pieces, forward))
        return [self._join(parts, embeddings) for parts in segments]

    def _cut(self, num_samples: int) -> List[Segment]:
        """Cut speech into segments short enough for the model."""
        return cut_into_segments(
            num_samples,
            int(self.segment_s * self.sample_rate),
            int(self.overlap_s * self.sample_rate),
            self.frame_shift_samples,
        )

    def _embed_pieces(
        self, pieces: List[torch.Tensor], forward: Forward
    ) -> List[torch.Tensor]:
        """Embed pieces of speech (S,), batched by length; [(T, *), ...]."""
        results: List[torch.Tensor] = [torch.empty(0)] * len(pieces)
        for group in group_by_length(
            [len(piece) for piece in pieces], self.batch_samples, not self.mixes_lengths
        ):
            batch = [pieces[position] for position in group]
            lengths = torch.tensor([len(piece) for piece in batch])
            padded = pad_sequence(batch, batch_first=True).to(self.device)
            with self._autocast():
                embeddings, frames = forward(padded, lengths)
            for position, row, count in zip(group, embeddings, frames.tolist()):
                results[position] = row[:count].float()
        return results

    def _join(
        self, segments: List[Segment], embeddings: Iterator[torch.Tensor]
    ) -> torch.Tensor:
        """Join the embeddings of an utterance's segments, without their context."""
        parts = []
        for segment, frames in zip(segments, embeddings):
            first = segment.start // self.frame_shift_samples
            end = None if segment.end_frame is None else segment.end_frame - first
            parts.append(frames[segment.first_frame - first : end])
        return torch.cat(parts)

    def embed(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Compute embeddings, in eval mode and without gradients.

        An utterance's embeddings do not depend on the other utterances of its batch.

        Args:
            speech: Waveforms in [-1, 1], float, (B, S), padded with any values.
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


def resolve_layer(layer: int, num_layers: int, spec: str) -> int:
    """Return the number of a layer counted from 1; -1 means the last.

    A teacher without blocks has 0 layers; its only layer is 0.

    Raises:
        TeacherError: If the teacher has no such layer.
    """
    resolved = num_layers if layer == -1 else layer
    if not 0 <= resolved <= num_layers:
        expected = (
            f"1 to {num_layers} (0: input of the first block, -1: the last layer)"
        )
        if num_layers == 0:
            expected = "0 or -1, as it has no blocks"
        raise TeacherError(f"teacher {spec}: got layer {layer}, expected {expected}")
    return resolved


def stack_layers(spec: str, states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack the embeddings of layers, each (B, T, D), to (B, T, L, D).

    Raises:
        TeacherError: If they differ in shape.
    """
    shapes = sorted({tuple(state.shape) for state in states})
    if len(shapes) > 1:
        raise TeacherError(
            f"teacher {spec}: got layers of the shapes {shapes[0]} and {shapes[-1]}, "
            "expected the same of all; use one layer only"
        )
    return torch.stack(list(states), dim=2)


def check_frames(spec: str, shift_samples: int, offset_samples: float) -> None:
    """Check frame shift and offset.

    Raises:
        TeacherError: If the shift is not above 0 or the centre of frame 0 below 0.
    """
    if shift_samples <= 0 or offset_samples < 0:
        raise TeacherError(
            f"teacher {spec}: got frame_shift_samples {shift_samples} and "
            f"frame_offset_samples {offset_samples}, expected a shift above 0 and an "
            "offset of 0 or more"
        )


@contextlib.contextmanager
def embedding_errors(spec: str, num_samples: int, hint: str = "") -> Iterator[None]:
    """Context in which a model embeds speech; its errors become EmbeddingError.

    Errors of the device or its memory stay as they are.

    Args:
        spec: The whole name of the teacher, for messages.
        num_samples: Samples of each waveform.
        hint: Likely causes, added to the message.
    """
    try:
        yield
    except Exception as error:  # any, from the model's own code
        if _is_fault_of_device(error):
            raise
        raise EmbeddingError(
            f"the teacher {spec} cannot embed {num_samples} samples "
            f"({type(error).__name__}: {one_line(error)}){hint}: leave the utterance "
            "out, in an extraction by --on_error skip"
        ) from error


def _is_fault_of_device(error: Exception) -> bool:
    """Whether an error comes from a device or its memory, not from the input."""
    kinds = (
        torch.cuda.OutOfMemoryError,
        getattr(torch, "AcceleratorError", MemoryError),
    )
    # Older torch raises errors of CUDA, cuDNN and cuBLAS as RuntimeError.
    named = any(name in str(error).upper() for name in ("CUDA", "CUDNN", "CUBLAS"))
    return named or isinstance(error, (MemoryError, *kinds))
