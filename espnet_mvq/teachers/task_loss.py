"""Task loss of a teacher: its loss on the transcript of each utterance.

AdaKD (Ganguly et al. 2024, arXiv:2405.08019) weighs the distillation of an utterance by
it: the x_i of the instance weight alpha_i = exp(-1 / sqrt(exp(-k (x_i - t)))).
Differs: here it can be divided by the number of labels, so that it does not depend on
the length of an utterance.
"""

from abc import abstractmethod
from typing import Any, List, Sequence, Tuple, Union

import torch

from espnet_mvq.teachers.build import build_from
from espnet_mvq.teachers.speech_model import SpeechModel, TeacherError

# Back end -> file and class. A new back end is a new file and a line in this table.
BACKENDS = {
    "transformers": "transformers_task_loss.build_transformers_task_loss",
    "espnet": "espnet_task_loss.ESPnetTaskLoss",
}
WITH_TASK_HEAD = (
    "transformers/NAME_OR_DIR of a model with a CTC head (HubertForCTC, "
    "Wav2Vec2ForCTC, WavLMForCTC ...) or of a whole Whisper model "
    "(WhisperForConditionalGeneration), or espnet/EXP_DIR of an ASR model"
)


class TextError(ValueError):
    """The teacher has no labels for the text of an utterance."""


class TaskLoss(SpeechModel):
    """A frozen teacher with its task head.

    Attributes:
        kind: Kind of loss: ctc, attention, or espnet (the model's own sum of both).
        label: Unit of the labels, in words.
    """

    kind: str
    label: str

    @abstractmethod
    def encode(self, text: str) -> torch.Tensor:
        """Return the labels of a text, int64, (L,), L > 0.

        Raises:
            TextError: If it has none, or contains something without a label.
        """

    @abstractmethod
    def _losses(
        self, waveforms: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> List[float]:
        """Compute the loss of each utterance, in nats, summed over its labels.

        Args:
            waveforms: [(S_1,), ...], float32, on the CPU.
            labels: Results of `encode`, [(L_1,), ...].
        """

    @torch.inference_mode()
    def loss(
        self, waveforms: Sequence[torch.Tensor], texts: Sequence[str]
    ) -> Tuple[List[float], List[int]]:
        """Compute the loss of utterances; none depends on the others.

        Args:
            waveforms: Results of `read`, [(S_1,), ...].
            texts: Their transcripts.

        Returns:
            The loss of each utterance in nats, summed over its labels, infinite if its
            speech is too short for its labels; and the number of labels.

        Raises:
            TextError: See `encode`.
        """
        labels = [self.encode(text) for text in texts]
        prepared = [w.detach().cpu().float() for w in waveforms]
        return self._losses(prepared, labels), [len(row) for row in labels]


def build_task_loss(
    spec: str,
    device: Union[str, torch.device] = "cpu",
    dtype: str = "float32",
    batch_s: float = 0.0,
    **teacher_conf: Any,
) -> TaskLoss:
    """Build a teacher with its task head.

    Args:
        spec: `transformers/NAME_OR_DIR` or `espnet/EXP_DIR`.
        device: Device of the model.
        dtype: See `build_teacher`.
        batch_s: See `build_teacher`.
        **teacher_conf: Options of the back end.

    Returns:
        The teacher, in eval mode.

    Raises:
        TeacherError: If there is no such model, or it has no task head.
    """
    refusal = TeacherError(
        f"teacher {spec}: has no task head, hence no loss of its own on a text; "
        f"expected {WITH_TASK_HEAD}"
    )
    return build_from(
        BACKENDS,
        refusal,
        spec,
        torch.device(device),
        dtype=dtype,
        batch_s=batch_s,
        conf=teacher_conf,
    )
