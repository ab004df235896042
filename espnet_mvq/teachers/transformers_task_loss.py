"""Task loss of transformers models with a CTC head: HuBERT, WavLM, wav2vec 2.0 ..."""

from typing import Any, List, Sequence, Tuple

import torch

from espnet_mvq.teachers.build import check_options, load_factory
from espnet_mvq.teachers.model_id import tokenizer_settings, weights_hash
from espnet_mvq.teachers.speech_model import TeacherError, loading
from espnet_mvq.teachers.task_loss import WITH_TASK_HEAD, TaskLoss, TextError
from espnet_mvq.teachers.transformers import WaveModel, read_model_config

_CTC = ("ForCTC", "transformers_task_loss.CTCTaskLoss")
# Model type -> suffix of the transformers class with its task head; file and class here
HEADS = {
    "hubert": _CTC,
    "wav2vec2": _CTC,
    "wavlm": _CTC,
    "data2vec-audio": _CTC,
    "unispeech-sat": _CTC,
    "whisper": ("ForConditionalGeneration", "whisper_task_loss.WhisperTaskLoss"),
}
CASES = ("auto", "keep", "lower", "upper")


def build_transformers_task_loss(
    spec: str, name: str, device: torch.device, **teacher_conf: Any
) -> TaskLoss:
    """Build the task loss of a model's type.

    Args:
        spec: The whole name, for messages and the id.
        name: Name on the hub, or a local folder.
        device: Device of the model.
        **teacher_conf: Options of the class.

    Returns:
        The teacher with its task head.

    Raises:
        TeacherError: If the model does not exist, is incomplete, or has no task head.
    """
    name, config = read_model_config(spec, name)
    suffix, entry = HEADS.get(config.model_type, (None, None))
    if suffix is None or not _may_be(config, suffix):
        saved = config.architectures or []
        raise TeacherError(
            f"teacher {spec}: a {' or '.join(saved) or 'model'} of type "
            f"{config.model_type!r} has no task head; expected {WITH_TASK_HEAD}"
        )
    task_loss_class = load_factory(entry)
    check_options(spec, task_loss_class, teacher_conf)
    return task_loss_class(spec, name, device, config, **teacher_conf)


def has_ctc_head(config: Any) -> bool:
    """Whether a configuration is that of a model with a CTC head."""
    return HEADS.get(config.model_type) == _CTC and _may_be(config, _CTC[0])


def _may_be(config: Any, suffix: str) -> bool:
    """Whether the class that was saved may have a suffix in its name."""
    saved = config.architectures or []
    # A config without a class name may have a head: load_model checks the weights.
    return not saved or any(name.endswith(suffix) for name in saved)


class CTCTaskLoss(TaskLoss):
    """CTC loss of HuBERT, wav2vec 2.0, WavLM and relatives.

    Args:
        spec, name, device, config: See `build_transformers_task_loss`.
        case: Case of texts: keep, lower or upper; auto: the first of keep, upper and
            lower with the fewest characters unknown to the model's vocabulary.
        ignored_characters: Characters removed from texts, such as punctuation.
    """

    kind = "ctc"
    label = "token of the model's CTC vocabulary, word boundaries too"

    def __init__(
        self,
        spec: str,
        name: str,
        device: torch.device,
        config: Any,
        case: str = "auto",
        ignored_characters: str = "",
    ):
        self.spec = spec
        self.device = device
        self._case = check_case(spec, case)
        self._ignored = str.maketrans("", "", ignored_characters)
        self._logits = LogitTeacher(spec, name, device, config)
        self.mixes_lengths = self._logits.mixes_lengths
        self.sample_rate = self._logits.sample_rate
        self._tokenizer = load_tokenizer(spec, name)
        self._blank = config.pad_token_id
        if self._blank is None or not 0 <= self._blank < self._logits.dim:
            raise TeacherError(
                f"teacher {spec}: config.json has pad_token_id {self._blank}, expected "
                f"the number of the blank, 0 to {self._logits.dim - 1}"
            )
        settings = {**tokenizer_settings(self._tokenizer), "blank": self._blank}
        labels = weights_hash([], settings)
        self.id = f"{self._logits.id},ForCTC,labels={labels},case={case}"
        if ignored_characters:
            self.id += f",ignored_characters={''.join(sorted(ignored_characters))}"

    def encode(self, text: str) -> torch.Tensor:
        """See `TaskLoss.encode`."""
        words = " ".join(text.translate(self._ignored).split())
        tried = [self._find_labels(form) for form in _forms(words, self._case)]
        labels, unknown = min(tried, key=lambda result: len(result[1]))
        if unknown:
            raise TextError(
                f"text {text!r}: the vocabulary of {self.spec} does not have "
                f"{' '.join(map(repr, unknown))}; write the text as it knows it, or "
                "leave characters out with --teacher_conf ignored_characters=..."
            )
        if not labels:
            raise TextError(f"text {text!r}: contains no label, expected at least one")
        return torch.tensor(labels)

    def _find_labels(self, text: str) -> Tuple[List[int], List[str]]:
        """Return the labels of a text, and its tokens outside the vocabulary."""
        # In two steps: a call of a tokenizer without `<unk>` fails.
        tokens = self._tokenizer.tokenize(text)
        labels = self._tokenizer.convert_tokens_to_ids(tokens)
        without_meaning = (None, self._tokenizer.unk_token_id, self._blank)
        unknown = {
            token
            for token, label in zip(tokens, labels)
            if label in without_meaning or not 0 <= label < self._logits.dim
        }
        return labels, sorted(unknown)

    def _losses(
        self, waveforms: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> List[float]:
        """See `TaskLoss._losses`."""
        self._logits.dtype = self.dtype
        self._logits.batch_samples = self.batch_samples
        losses = []
        for logits, row in zip(self._logits.embed_batch(waveforms), labels):
            # float64, and on the CPU: the sum over alignments is small work, and the
            # result does not depend on the device's own CTC.
            log_probs = logits.cpu().double().log_softmax(1).unsqueeze(1)
            # Without `zero_infinity`, unlike training: an utterance without an
            # alignment would have the lowest loss of all.
            loss = torch.nn.functional.ctc_loss(
                log_probs,
                row.unsqueeze(0),
                torch.tensor([len(logits)]),
                torch.tensor([len(row)]),
                blank=self._blank,
                reduction="sum",
            )
            losses.append(float(loss))
        return losses


class LogitTeacher(WaveModel):
    """A model with a CTC head; its embeddings are logits, D = size of the vocabulary.

    As a `Teacher`, it cuts long speech into segments and keeps utterances of a batch
    independent of each other.
    """

    def __init__(self, spec: str, name: str, device: torch.device, config: Any):
        from transformers import AutoModelForCTC

        if getattr(config, "add_adapter", False):
            raise TeacherError(
                f"teacher {spec}: it shortens its output (add_adapter), which is not "
                "supported here; expected a CTC model without"
            )
        super().__init__(spec, name, device, config, AutoModelForCTC)
        self.layer = config.num_hidden_layers
        self.dim = config.vocab_size

    def _forward(
        self, speech: torch.Tensor, speech_lengths: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """See `Teacher._forward`."""
        output, frames = self._run(speech, speech_lengths)
        return output.logits, frames


def check_case(spec: str, case: str) -> str:
    """Return the option `case`.

    Raises:
        TeacherError: If it is none of `CASES`.
    """
    if case not in CASES:
        raise TeacherError(
            f"teacher {spec}: got case {case!r}, expected one of {', '.join(CASES)}"
        )
    return case


def load_tokenizer(spec: str, name: str) -> Any:
    """Load a model's tokenizer.

    Not its processor: that of a model with a language model needs more packages.

    Raises:
        TeacherError: If it has none.
    """
    from transformers import AutoTokenizer

    remedy = (
        "; expected the files that its processor saves, vocab.json or tokenizer.json "
        "among them"
    )
    with loading(spec, "could not load its tokenizer", remedy):
        tokenizer = AutoTokenizer.from_pretrained(name)
        numbers = tokenizer.get_vocab().values()
        if not all(isinstance(number, int) for number in numbers):
            raise ValueError("its vocabulary has labels that are no whole numbers")
    return tokenizer


def _forms(text: str, case: str) -> List[str]:
    """Return the forms of a text to try, in order of preference."""
    forms = {"keep": text, "upper": text.upper(), "lower": text.lower()}
    return list(forms.values()) if case == "auto" else [forms[case]]
