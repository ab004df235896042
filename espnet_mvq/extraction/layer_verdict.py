"""What the scores of a teacher's layers mean, in words."""

from dataclasses import dataclass
from typing import List, Optional, Tuple

# The thresholds lie between what was measured: docs/teachers.md has the numbers.
_KNOWN_ERROR, _UNKNOWN_ERROR = 0.8, 0.9  # relative to the errors of log-mel frames
KNOWN_RATIO = 1.5
_UNKNOWN_RATIO, _BACKWARD_RATIO = 1.15, 0.9
_SPEECH_NATS = 0.5
# Layers as good as the best one, within the noise of some minutes of speech
_ERROR_TOLERANCE = 1.1
_RATIO_SHARE = 0.75  # of the logarithm


@dataclass(frozen=True)
class LayerScore:
    """Scores of a layer; all but the ratio are of held-out utterances.

    Attributes:
        layer: Its number.
        error_rate: Character error rate of `text_error_rate`; None without a text.
        reversal_ratio: See the function of this name.
        quantizer_error: Relative reconstruction error, with all channels scaled to unit
            variance.
        unchanged: Fraction of the codebook indexes that stay the same in noise.
        log_mel_nats: Cross entropy in nats that log-mel frames take off the first
            codebook's indexes.
    """

    layer: int
    error_rate: Optional[float]
    reversal_ratio: float
    quantizer_error: float
    unchanged: float
    log_mel_nats: float


@dataclass(frozen=True)
class Verdict:
    """A judgement of a teacher.

    Attributes:
        teacher: "use", "doubt" or "refuse".
        layers: Layers to try, the best one first; none of a refused teacher.
        sentences: The judgement in words, the most important sentence first.
    """

    teacher: str
    layers: List[int]
    sentences: List[str]


def judge(scores: List[LayerScore], log_mel_error_rate: Optional[float]) -> Verdict:
    """Judge a teacher by the scores of its layers.

    With a text, its error rates decide whether the teacher knows the speech and which
    layers to try, else the reversal ratios do.

    Args:
        scores: Scores of the layers.
        log_mel_error_rate: Error rate of the same probe on log-mel frames; None
            without a text.
    """
    if log_mel_error_rate is None:
        teacher, reason = _judge_ratio(scores)
    else:
        teacher, reason = _judge_errors(scores, log_mel_error_rate)
    faults = []
    if log_mel_error_rate is None or teacher != "use":
        # A text that can be read is no text of noise or of reversed speech.
        faults = _no_speech(scores) + _backwards(scores)
    if faults or teacher == "refuse":
        first = "This teacher hardly knows this speech: do not use it."
        return Verdict("refuse", [], [first, reason, *faults])
    layers = _best_layers(scores)
    in_order = [score.layer for score in scores if score.layer in layers]
    first = f"Try {_in_words(in_order)} first"
    if len(layers) > 1:
        first += f"; layer {layers[0]} is the best of them"
    if teacher == "doubt":
        first = (
            "It is not clear whether this teacher knows this speech: look for another "
            f"one. If there is none, t{first[1:]}"
        )
    return Verdict(teacher, layers, [f"{first}.", reason])


def _no_speech(scores: List[LayerScore]) -> List[str]:
    """Return a warning if the speech seems to be noise."""
    nats = max(score.log_mel_nats for score in scores)
    ratio = max(score.reversal_ratio for score in scores)
    # Upper layers of little speech have few nats too, but not the ratio of noise.
    if nats >= _SPEECH_NATS or ratio >= _UNKNOWN_RATIO:
        return []
    return [
        f"Log-mel frames explain {nats:.2f} nats of the indexes at most, expected "
        f"{_SPEECH_NATS} or more: is this speech? Listen to some utterances."
    ]


def _backwards(scores: List[LayerScore]) -> List[str]:
    """Return a warning if the speech seems to run backwards."""
    ranked = sorted(scores, key=lambda score: score.reversal_ratio)
    least, most = ranked[0], ranked[-1]
    # The lowest layers have a ratio near 1 in any case.
    if least.reversal_ratio >= min(_BACKWARD_RATIO, 1 / most.reversal_ratio):
        return []
    return [
        "Played backwards, the speech resists noise better (reversal ratio "
        f"{least.reversal_ratio:.2f} in layer {least.layer}): it seems to be reversed "
        "in time. Listen to some utterances."
    ]


def _judge_errors(
    scores: List[LayerScore], log_mel_error_rate: float
) -> Tuple[str, str]:
    """Judge by the error rates: use, doubt or refuse, and why."""
    best = min(scores, key=lambda score: score.error_rate)
    text = (
        f"A linear probe on layer {best.layer} reads the text with "
        f"{100 * best.error_rate:.1f} % wrong characters, on log-mel frames with "
        f"{100 * log_mel_error_rate:.1f} %."
    )
    if best.error_rate > _UNKNOWN_ERROR * log_mel_error_rate:
        return "refuse", (
            f"{text} The teacher adds next to nothing: the speech is not of its "
            "language, or is no speech, or the text is that of other utterances."
        )
    if best.error_rate > _KNOWN_ERROR * log_mel_error_rate:
        return "doubt", (
            f"{text} The teacher hears sounds, but hardly the language; expected at "
            f"most {_KNOWN_ERROR} times the errors of log-mel. If the text is short, "
            "use more --minutes."
        )
    return "use", text


def _judge_ratio(scores: List[LayerScore]) -> Tuple[str, str]:
    """Judge by the highest reversal ratio: use, doubt or refuse, and why."""
    most = max(scores, key=lambda score: score.reversal_ratio)
    text = (
        "There is no text to read. Noise moves the frames of layer "
        f"{most.layer} {most.reversal_ratio:.2f} times as far if the speech is played "
        "backwards"
    )
    if most.reversal_ratio >= KNOWN_RATIO:
        return "use", (
            f"{text}: the teacher knows how this speech goes on. The text of some "
            "utterances would tell more about the layers."
        )
    if most.reversal_ratio >= _UNKNOWN_RATIO:
        return "doubt", (
            f"{text}: {KNOWN_RATIO} or more is usual for a language that it knows, "
            "less for a foreign one, but for noisy recordings too. The text of some "
            "utterances would tell."
        )
    return "refuse", (
        f"{text}, expected {KNOWN_RATIO} or more: the speech is not of its language, "
        "is no speech, or is recorded unlike all that it knows."
    )


def _best_layers(scores: List[LayerScore]) -> List[int]:
    """List the layers that are as good as the best one, which comes first."""
    if scores[0].error_rate is not None:
        ranked = sorted(scores, key=lambda score: score.error_rate)
        limit = _ERROR_TOLERANCE * ranked[0].error_rate
        return [score.layer for score in ranked if score.error_rate <= limit]
    ranked = sorted(scores, key=lambda score: -score.reversal_ratio)
    limit = ranked[0].reversal_ratio ** _RATIO_SHARE
    return [score.layer for score in ranked if score.reversal_ratio >= limit]


def _in_words(layers: List[int]) -> str:
    """Write layers in order as `layer 5`, `layers 5-6` or `layers 2, 5-6`."""
    ranges: List[List[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][-1] + 1:
            ranges[-1].append(layer)
        else:
            ranges.append([layer])
    parts = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges]
    return f"layer{'s' * (len(layers) > 1)} {', '.join(parts)}"
