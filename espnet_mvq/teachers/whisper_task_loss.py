"""Task loss of Whisper: cross entropy of its decoder with teacher forcing."""

from typing import Any, List, Optional, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.model_id import (
    tokenizer_settings,
    transformers_settings,
    whisper_features_settings,
)
from espnet_mvq.teachers.speech_model import TeacherError
from espnet_mvq.teachers.task_loss import TaskLoss, TextError
from espnet_mvq.teachers.transformers import load_model, model_id
from espnet_mvq.teachers.transformers_task_loss import check_case, load_tokenizer
from espnet_mvq.teachers.whisper import load_whisper_features

_IGNORED = -100  # label of padding
# Smallest vocabulary of OpenAI's multilingual models; the English-only have one less.
_MULTILINGUAL_VOCABULARY = 51_865


def find_prefix(
    spec: str,
    model: torch.nn.Module,
    tokenizer: Any,
    language: Optional[str] = None,
    task: str = "transcribe",
) -> List[int]:
    """Return the tokens that Whisper's decoder gets before every text.

    Args:
        spec: The whole name of the teacher, for messages.
        model: A whole Whisper model.
        tokenizer: Its tokenizer.
        language: Language of the texts, as `en`; required for multilingual models.
        task: transcribe or translate, for multilingual models.

    Raises:
        TeacherError: If language or task do not fit the model, or the tokenizer does
            not.
    """
    multilingual = getattr(model.generation_config, "is_multilingual", None)
    vocabulary = model.config.vocab_size
    if multilingual is None:
        multilingual = vocabulary >= _MULTILINGUAL_VOCABULARY
    if multilingual == (language is None):
        expected = "an English-only model; expected none"
        if multilingual:
            expected = (
                "a multilingual model; give that of the texts by --teacher_conf "
                "language=..."
            )
        raise TeacherError(f"teacher {spec}: got language {language!r} for {expected}")
    options = {"language": language, "task": task} if multilingual else {}
    try:
        tokenizer.set_prefix_tokens(predict_timestamps=False, **options)
        prefix = list(tokenizer.prefix_tokens)
    except ValueError as error:
        raise TeacherError(
            f"teacher {spec}: language {language!r}, task {task!r}: {error}"
        ) from error
    if not all(i is not None and 0 <= i < vocabulary for i in prefix):
        raise TeacherError(
            f"teacher {spec}: its tokenizer gives the tokens {prefix} before a text, "
            f"but the model has {vocabulary}; expected the tokenizer that belongs to "
            "the model"
        )
    return prefix


class WhisperTaskLoss(TaskLoss):
    """Cross entropy of a whole Whisper model, on 30 s of speech padded with silence.

    The prefix (start, language, task, no timestamps) is given, so the loss is over the
    tokens of the text and the end of the text. Longer speech is refused: its text
    cannot be cut at the same place.

    Args:
        spec, name, device, config: See `build_transformers_task_loss`.
        language: Language of all texts, as `en`; required for multilingual models.
        task: transcribe or translate, for multilingual models.
        case: Case of texts: keep, lower or upper; auto: lower for texts wholly in
            capitals, which Whisper rarely writes, keep for others.
        leading_space: Texts begin with a space, as in Whisper's training; models
            fine-tuned with transformers' examples were trained without it.
    """

    kind = "attention"
    label = "token of the model's text vocabulary, the end of the text too"
    mixes_lengths = True

    def __init__(
        self,
        spec: str,
        name: str,
        device: torch.device,
        config: Any,
        language: Optional[str] = None,
        task: str = "transcribe",
        case: str = "auto",
        leading_space: bool = True,
    ):
        from transformers import WhisperForConditionalGeneration

        self.spec = spec
        self.device = device
        self._case = check_case(spec, case)
        self._leading_space = leading_space
        model = load_model(spec, WhisperForConditionalGeneration, name)
        self._model = model.to(device)
        self._features = load_whisper_features(spec, name, config)
        self.sample_rate = self._features.sampling_rate
        # The encoder halves the frames of the spectrogram.
        hop_length = self._features.hop_length
        self._window_samples = 2 * hop_length * config.max_source_positions
        self._max_tokens = config.max_target_positions
        self._tokenizer = load_tokenizer(spec, name)
        self._prefix = find_prefix(spec, self._model, self._tokenizer, language, task)
        self._end: int = self._tokenizer.eos_token_id
        settings = {
            **transformers_settings(config),
            "decoder_attention_heads": config.decoder_attention_heads,
            "features": whisper_features_settings(self._features),
            "tokenizer": tokenizer_settings(self._tokenizer),
        }
        self.id = f"{model_id(name, self._model, settings)},ForConditionalGeneration"
        prefix = "".join(self._tokenizer.convert_ids_to_tokens(self._prefix))
        self.id += f",prefix={prefix},case={case},leading_space={self._leading_space}"

    def encode(self, text: str) -> torch.Tensor:
        """See `TaskLoss.encode`."""
        words = " ".join(text.split())
        if self._case == "upper":
            words = words.upper()
        elif self._case == "lower" or (self._case == "auto" and words == words.upper()):
            words = words.lower()
        if not words:
            raise TextError(f"text {text!r}: contains no label, expected at least one")
        words = f" {words}" if self._leading_space else words
        tokens = self._tokenizer(words, add_special_tokens=False).input_ids
        room = self._max_tokens - len(self._prefix)
        if len(tokens) > room:
            raise TextError(
                f"text {text[:40]!r}...: has {len(tokens)} tokens, expected at most "
                f"{room}, for which {self.spec} has positions"
            )
        return torch.tensor([*tokens, self._end])

    def read(self, utt_id: str, place: str) -> torch.Tensor:
        """See `TaskLoss.read`."""
        waveform = super().read(utt_id, place)
        if len(waveform) > self._window_samples:
            raise AudioError(
                f"utterance {utt_id}: {place} lasts "
                f"{len(waveform) / self.sample_rate:.1f} s, expected at most "
                f"{self._window_samples / self.sample_rate:g} s, the length of "
                "Whisper's window; cut it, or leave it out with --on_error skip"
            )
        return waveform

    def _losses(
        self, waveforms: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> List[float]:
        """See `TaskLoss._losses`."""
        size = max(1, self.batch_samples // self._window_samples)
        losses: List[float] = []
        for start in range(0, len(waveforms), size):
            end = start + size
            losses += self._losses_of_batch(waveforms[start:end], labels[start:end])
        return losses

    def _losses_of_batch(
        self, waveforms: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> List[float]:
        """Compute the losses of one batch."""
        features = self._features(
            [waveform.numpy() for waveform in waveforms],
            sampling_rate=self.sample_rate,
            padding="max_length",
            max_length=self._window_samples,
            return_tensors="pt",
        ).input_features
        prefix = torch.tensor(self._prefix)
        # Padding after a text has no effect: the decoder is causal.
        tokens = pad_sequence(
            [torch.cat([prefix, row[:-1]]) for row in labels],
            batch_first=True,
            padding_value=self._end,
        )
        targets = pad_sequence(labels, batch_first=True, padding_value=_IGNORED)
        with self._autocast():
            logits = self._model(
                features.to(self.device), decoder_input_ids=tokens.to(self.device)
            ).logits
        # The last token of the prefix predicts the first of the text.
        logits = logits[:, len(prefix) - 1 :].float().transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(
            logits,
            targets.to(self.device),
            reduction="none",
            ignore_index=_IGNORED,
        )
        return losses.double().sum(1).tolist()
