"""Error rates: alignment of hypotheses with references, and its counts.

Counts come from the alignment with the fewest edits. NIST's sclite, which ESPnet's
``asr.sh`` uses, weights a substitution 4 and an insertion or deletion 3, so that its
counts of each kind, and in rare cases their sum, can differ slightly.
"""

import logging
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple, Union

import jiwer

from espnet_mvq.files.scp import first_few, read_scp

SPACE = "<space>"  # a space in character error rates, as in ESPnet
SPLIT = jiwer.Compose([jiwer.ReduceToListOfListOfWords()])

Tokenizer = Callable[[str], List[str]]


class Utterance(NamedTuple):
    """Counts of one utterance and its aligned columns (edit, reference, hypothesis).

    The edit is "C", "S", "D" or "I"; a missing token is "".
    """

    utt_id: str
    columns: List[Tuple[str, str, str]]

    @property
    def reference(self) -> List[str]:
        """The tokens of the reference."""
        return [ref for edit, ref, _ in self.columns if edit != "I"]

    def count(self, edit: str) -> int:
        """Return the number of columns of one kind of edit."""
        return sum(column[0] == edit for column in self.columns)


def read_text(path: Union[str, Path]) -> Dict[str, str]:
    """Read words by utterance id; an id alone has empty words.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an id occurs twice, or the file is not UTF-8.
    """
    texts = read_scp(path, empty_values=True)
    return {utt_id: " ".join(text.split()) for utt_id, text in texts.items()}


def match(refs: Dict[str, str], hyps: Dict[str, str]) -> Dict[str, str]:
    """Return a hypothesis for each reference, empty if there is none.

    Raises:
        ValueError: If the references have no words, or if a hypothesis has no
            reference.
    """
    extra = [utt_id for utt_id in hyps if utt_id not in refs]
    if extra:
        raise ValueError(
            f"{len(extra)} hypotheses have no reference: {first_few(extra)}; expected "
            "the references of the set that was decoded"
        )
    if not any(refs.values()):
        raise ValueError("the references have no words: there is nothing to score")
    missing = [utt_id for utt_id in refs if utt_id not in hyps]
    if missing:
        logging.warning(
            f"{len(missing)} of {len(refs)} utterances have no hypothesis and count "
            f"as empty: {first_few(missing)}"
        )
    return {utt_id: hyps.get(utt_id, "") for utt_id in refs}


def get_tokenizers(bpemodel: Optional[str]) -> Dict[str, Tokenizer]:
    """Return metric -> function from words to tokens.

    Raises:
        ValueError: If the sentencepiece model cannot be loaded.
    """
    tokenizers: Dict[str, Tokenizer] = {
        "wer": str.split,
        "cer": lambda text: [SPACE if c == " " else c for c in text],
    }
    if bpemodel:
        import sentencepiece

        try:
            processor = sentencepiece.SentencePieceProcessor(model_file=bpemodel)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot load --bpemodel {bpemodel}: {error}") from error
        tokenizers["ter"] = processor.encode_as_pieces
    return tokenizers


def align(
    refs: Dict[str, str], hyps: Dict[str, str], tokenize: Tokenizer
) -> List[Utterance]:
    """Align every hypothesis with its reference."""
    output = jiwer.process_words(
        [" ".join(tokenize(text)) for text in refs.values()],
        [" ".join(tokenize(hyps[utt_id])) for utt_id in refs],
        reference_transform=SPLIT,
        hypothesis_transform=SPLIT,
    )
    letters = {"equal": "C", "substitute": "S", "delete": "D", "insert": "I"}
    utterances = []
    for utt_id, ref, hyp, chunks in zip(
        refs, output.references, output.hypotheses, output.alignments
    ):
        columns = []
        for chunk in chunks:
            ref_part = ref[chunk.ref_start_idx : chunk.ref_end_idx]
            hyp_part = hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
            length = max(len(ref_part), len(hyp_part))
            ref_part = ref_part or [""] * length
            hyp_part = hyp_part or [""] * length
            edit = letters[chunk.type]
            columns += [(edit, r, h) for r, h in zip(ref_part, hyp_part)]
        utterances.append(Utterance(utt_id, columns))
    return utterances


def summarize(metric: str, utterances: List[Utterance]) -> dict:
    """Sum the counts; ``error_rate`` and ``sentence_error_rate`` are in percent."""
    correct, substitutions, deletions, insertions = (
        sum(u.count(edit) for u in utterances) for edit in "CSDI"
    )
    num_tokens = correct + substitutions + deletions
    errors = substitutions + deletions + insertions
    sentence_errors = sum(any(c[0] != "C" for c in u.columns) for u in utterances)
    return {
        "metric": metric,
        "num_sentences": len(utterances),
        "num_tokens": num_tokens,
        "correct": correct,
        "substitutions": substitutions,
        "deletions": deletions,
        "insertions": insertions,
        "errors": errors,
        "sentence_errors": sentence_errors,
        "error_rate": 100 * errors / num_tokens,
        "sentence_error_rate": 100 * sentence_errors / len(utterances),
    }
