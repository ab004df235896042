"""Teachers with a CTC head: their embeddings are its logits, for posterior KD."""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch

from espnet_mvq.teachers.base import Teacher, TeacherError
from espnet_mvq.teachers.build import build_from
from espnet_mvq.teachers.espnet import ESPnetTeacher
from espnet_mvq.teachers.model_id import weights_hash
from espnet_mvq.teachers.transformers import read_model_config
from espnet_mvq.teachers.transformers_task_loss import (
    LogitTeacher,
    has_ctc_head,
    load_tokenizer,
)

# Back end -> file and class. A new back end is a line in this table.
BACKENDS = {
    "transformers": "ctc.TransformersCTCTeacher",
    "espnet": "ctc.ESPnetCTCTeacher",
}
_EXPECTED = (
    "espnet/EXP_DIR of an ASR model with CTC (ctc_weight above 0), or "
    "transformers/NAME_OR_DIR of one with a CTC head (HubertForCTC, Wav2Vec2ForCTC, "
    "WavLMForCTC ...)"
)


class CTCTeacher(Teacher):
    """A teacher whose embeddings are logits of tokens, D = V.

    Attributes:
        token_list: Its V tokens, under the names that ESPnet gives to special ones.
    """

    token_list: List[str]


class ESPnetCTCTeacher(ESPnetTeacher, CTCTeacher):
    """Encoder and CTC head of a model in an ESPnet experiment folder.

    Args:
        spec, name, device, checkpoint, frame_shift_samples, frame_offset_samples: See
            `ESPnetTeacher`.
    """

    def __init__(
        self,
        spec: str,
        name: str,
        device: torch.device,
        checkpoint: Optional[str] = None,
        frame_shift_samples: Optional[int] = None,
        frame_offset_samples: Optional[float] = None,
    ):
        grid = frame_shift_samples, frame_offset_samples
        super().__init__(spec, name, -1, device, checkpoint, *grid)

    def _build(
        self, config: Dict[str, Any], state: Dict[str, torch.Tensor]
    ) -> torch.nn.ModuleDict:
        """See `ESPnetTeacher._build`; the CTC head is one of the parts."""
        weight = state.get("ctc.ctc_lo.weight")
        if weight is None or config.get("postencoder"):
            raise _without_ctc(self.spec)
        vocab_size, dim = weight.shape
        # The task st has CTC on the text in the language of the speech.
        self.token_list = list(config.get("src_token_list") or config["token_list"])
        if len(self.token_list) != vocab_size:
            raise TeacherError(
                f"teacher {self.spec}: got {len(self.token_list)} tokens in the token "
                f"list of config.yaml, expected {vocab_size}, as its CTC head has"
            )
        parts = super()._build(config, state)
        if "ctc" not in parts:
            head = {"ctc_lo": torch.nn.Linear(dim, vocab_size)}
            parts["ctc"] = torch.nn.ModuleDict(head)
        return parts

    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher._forward`."""
        output, lengths = super()._forward(speech, speech_lengths)
        return self._parts["ctc"].ctc_lo(output), lengths


class TransformersCTCTeacher(LogitTeacher, CTCTeacher):
    """A model of transformers with a CTC head.

    Args:
        spec: The whole name, for messages and the id.
        name: Name on the hub, or a local folder.
        device: Device of the model.
    """

    def __init__(self, spec: str, name: str, device: torch.device):
        name, config = read_model_config(spec, name)
        if not has_ctc_head(config):
            raise _without_ctc(spec)
        super().__init__(spec, name, device, config)
        tokenizer = load_tokenizer(spec, name)
        tokens = {number: token for token, number in tokenizer.get_vocab().items()}
        names = {
            tokenizer.unk_token: "<unk>",
            getattr(tokenizer, "word_delimiter_token", None): "<space>",
            tokens.get(config.pad_token_id): "<blank>",
        }
        # A number without a token has an empty name, as no token of a student.
        in_order = [tokens.get(number, "") for number in range(self.dim)]
        self.token_list = [names.get(token, token) for token in in_order]


def build_ctc_teacher(
    spec: str,
    device: Union[str, torch.device] = "cpu",
    dtype: str = "float32",
    batch_s: float = 0.0,
    **teacher_conf: Any,
) -> CTCTeacher:
    """Build a teacher with its CTC head.

    Args:
        spec: `transformers/NAME_OR_DIR` or `espnet/EXP_DIR`.
        device: Device of the teacher.
        dtype: See `build_teacher`.
        batch_s: See `build_teacher`.
        **teacher_conf: Options of the back end.

    Returns:
        The teacher, in eval mode. Its id stands for its tokens too.

    Raises:
        TeacherError: If there is no such model, or it has no CTC head.
    """
    teacher = build_from(
        BACKENDS,
        _without_ctc(spec),
        spec,
        torch.device(device),
        dtype=dtype,
        batch_s=batch_s,
        conf=teacher_conf,
    )
    tokens = weights_hash([], {"tokens": teacher.token_list})
    teacher.id += f",ctc,tokens={tokens}"
    return teacher


def _without_ctc(spec: str) -> TeacherError:
    """Error of a teacher that has no CTC head on its encoder."""
    return TeacherError(
        f"teacher {spec}: has no CTC head, hence no posteriors; expected {_EXPECTED}"
    )
