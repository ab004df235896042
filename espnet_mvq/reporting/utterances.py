"""Section of a report on utterances whose errors differ most between two arms."""

from typing import List, Optional, Sequence, Tuple

from espnet_mvq.errors import one_line
from espnet_mvq.reporting.arm import Arm
from espnet_mvq.reporting.page import AlignedUtterance, Comparison, Section
from espnet_mvq.reporting.scoring import Utterance

_NUM_UTTERANCES = 3  # shown in each direction


def utterance_section(arms: List[Arm], baseline: Optional[Arm]) -> Section:
    """Return the utterances whose errors differ most from the baseline's."""
    section = Section("Utterances")
    if baseline is None:
        section.notes.append("Utterances are compared with those of a baseline.")
        return section
    for arm in arms:
        for name, decoding in arm.decodings.items():
            theirs = baseline.decodings.get(name)
            if arm is baseline or not decoding.ref or theirs is None or not theirs.ref:
                continue
            try:
                comparison = compare(name, baseline, arm)
            except ValueError as error:  # decoded anew since the scoring
                section.notes.append(f"{one_line(error)}.")
                continue
            if comparison.utterances:
                section.parts.append(comparison)
    if not section.parts:
        section.notes.append(
            "No utterance of a set that is decoded with the baseline and another arm "
            "has a different number of errors in the two."
        )
        return section
    section.notes.append(
        "The utterances with the largest difference of the word errors, in both "
        "directions. Red: another word; blue: a word is missing; yellow with +: an "
        "additional word."
    )
    return section


def compare(name: str, baseline: Arm, arm: Arm) -> Comparison:
    """Choose and align utterances of a set that two arms have decoded.

    An utterance counts if both arms have the same reference of it.

    Raises:
        ValueError: If hypotheses and references are of different sets.
    """
    theirs = {u.utt_id: u for u in baseline.decodings[name].align("wer")}
    pairs = []
    for second in arm.decodings[name].align("wer"):
        first = theirs.get(second.utt_id)
        if first is not None and first.reference == second.reference:
            pairs.append((first, second))
    pairs.sort(key=lambda pair: num_errors(pair[1]) - num_errors(pair[0]))
    chosen = pairs[:_NUM_UTTERANCES] + pairs[_NUM_UTTERANCES:][-_NUM_UTTERANCES:]
    utterances = []
    for first, second in chosen:
        errors = num_errors(first), num_errors(second)
        if errors[0] != errors[1]:
            title = "{} and {} word errors".format(*errors)
            columns = word_columns([first, second])
            utterances.append(AlignedUtterance(first.utt_id, title, columns))
    return Comparison(
        f"{name}: {baseline.name} and {arm.name}",
        ["reference", baseline.name, arm.name],
        utterances,
    )


def num_errors(utterance: Utterance) -> int:
    """Return the number of errors of an utterance."""
    return sum(utterance.count(edit) for edit in "SDI")


def word_columns(
    utterances: Sequence[Utterance],
) -> List[Tuple[str, List[Tuple[str, str]]]]:
    """Align several hypotheses of an utterance with each other.

    Args:
        utterances: Alignments with the same reference.

    Returns:
        For each word, the reference and (edit, word) of each hypothesis. Additional
        words of different hypotheses at the same place share a column.
    """
    columns: List[Tuple[str, List[Tuple[str, str]]]] = []
    for group in zip(*map(split_at_reference, utterances)):
        longest = max(len(inserted) for inserted, *_ in group)
        for i in range(longest):
            words = [inserted[i : i + 1] for inserted, *_ in group]
            columns.append(("", [("I", f"+{w[0]}") if w else ("", "") for w in words]))
        ref = group[0][2]
        if ref:
            hyps = [(edit, hyp or "∗" * len(ref)) for _, edit, _, hyp in group]
            columns.append((ref, hyps))
    return columns


def split_at_reference(
    utterance: Utterance,
) -> List[Tuple[List[str], str, str, str]]:
    """Return additional words before it, edit, word and hypothesis of each word."""
    parts, inserted = [], []
    for edit, ref, hyp in utterance.columns:
        if edit == "I":
            inserted.append(hyp)
        else:
            parts.append((inserted, edit, ref, hyp))
            inserted = []
    return [*parts, (inserted, "", "", "")]
