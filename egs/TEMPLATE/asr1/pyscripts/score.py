#!/usr/bin/env python3
"""Score hypotheses: word, character and token error rate with alignments.

Counts come from the alignment with the fewest edits. NIST's sclite, which ESPnet's
``asr.sh`` uses, weights a substitution 4 and an insertion or deletion 3, so that its
counts of each kind, and in rare cases their sum, can differ slightly.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import jiwer

from espnet_mvq.files.whole_file import write_text

NUM_LISTED = 5
SPACE = "<space>"  # a space in character error rates, as in ESPnet
SPLIT = jiwer.Compose([jiwer.ReduceToListOfListOfWords()])

Tokenizer = Callable[[str], List[str]]


class ScoreError(Exception):
    """Invalid references or hypotheses; the text is the message to the user."""


class Utterance(NamedTuple):
    """Counts of one utterance and its aligned columns (edit, reference, hypothesis).

    The edit is "C", "S", "D" or "I"; a missing token is "".
    """

    utt_id: str
    columns: List[Tuple[str, str, str]]

    def count(self, edit: str) -> int:
        """Return the number of columns of one kind of edit."""
        return sum(column[0] == edit for column in self.columns)


def get_parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    parser = argparse.ArgumentParser(
        description="Score hypotheses against references",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ref", required=True, help="Kaldi-style text, references")
    parser.add_argument("--hyp", required=True, help="Kaldi-style text, hypotheses")
    parser.add_argument("--bpemodel", help="Model of the token error rate")
    parser.add_argument(
        "--outdir", required=True, help="Folder of score_wer/, score_cer/ ..."
    )
    return parser


def read_text(path: Path) -> Dict[str, str]:
    """Read utterance id -> words; an id alone has empty words.

    Raises:
        ScoreError: If the file is missing or an id occurs twice.
    """
    if not path.is_file():
        raise ScoreError(f"no text file {path}")
    texts: Dict[str, str] = {}
    with path.open(encoding="utf-8") as f:
        for utt_id, *words in filter(None, map(str.split, f)):
            if utt_id in texts:
                raise ScoreError(f"{path}: utterance {utt_id} occurs twice")
            texts[utt_id] = " ".join(words)
    return texts


def shorten(utt_ids: List[str]) -> str:
    """List the first few ids."""
    return ", ".join(utt_ids[:NUM_LISTED]) + (", ..." if utt_ids[NUM_LISTED:] else "")


def match(refs: Dict[str, str], hyps: Dict[str, str]) -> Dict[str, str]:
    """Return a hypothesis for each reference, empty if there is none.

    Raises:
        ScoreError: If the references have no words, or if a hypothesis has no
            reference.
    """
    extra = [utt_id for utt_id in hyps if utt_id not in refs]
    if extra:
        raise ScoreError(
            f"{len(extra)} hypotheses have no reference: {shorten(extra)}; give the "
            "--ref that was decoded"
        )
    if not any(refs.values()):
        raise ScoreError("the references have no words: there is nothing to score")
    missing = [utt_id for utt_id in refs if utt_id not in hyps]
    if missing:
        logging.warning(
            f"{len(missing)} of {len(refs)} utterances have no hypothesis and count "
            f"as empty: {shorten(missing)}"
        )
    return {utt_id: hyps.get(utt_id, "") for utt_id in refs}


def get_tokenizers(bpemodel: Optional[str]) -> Dict[str, Tokenizer]:
    """Return metric -> function from words to tokens.

    Raises:
        ScoreError: If the sentencepiece model cannot be loaded.
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
            raise ScoreError(f"cannot load --bpemodel {bpemodel}: {error}") from error
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


def format_utterance(utterance: Utterance) -> str:
    """Format the alignment as three lines with aligned columns."""
    counts = " ".join(f"{edit}={utterance.count(edit)}" for edit in "CSDI")
    rows = {"REF": "", "HYP": "", "EDIT": ""}
    for edit, ref, hyp in utterance.columns:
        width = max(len(ref), len(hyp), 1)
        rows["REF"] += f" {ref or '*' * width:<{width}}"
        rows["HYP"] += f" {hyp or '*' * width:<{width}}"
        rows["EDIT"] += f" {'' if edit == 'C' else edit:<{width}}"
    lines = [f"{name + ':':<5}{row}".rstrip() for name, row in rows.items()]
    return "\n".join([f"{utterance.utt_id} {counts}", *lines]) + "\n"


def write_result(result: dict, utterances: List[Utterance], outdir: Path) -> None:
    """Write ``result.txt``, then ``result.json``."""
    head = (
        "{metric}: {error_rate:.2f} % = {errors} of {num_tokens} "
        "({substitutions} S, {deletions} D, {insertions} I); "
        "{sentence_errors} of {num_sentences} sentences wrong\n"
    ).format(**result)
    body = "\n".join(format_utterance(u) for u in utterances)
    outdir.mkdir(parents=True, exist_ok=True)
    write_text(outdir / "result.txt", f"{head}\n{body}")
    write_text(outdir / "result.json", json.dumps(result, indent=2) + "\n")
    logging.info(head.rstrip())


def main(cmd: Optional[List[str]] = None) -> None:
    """Run the command line."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    args = get_parser().parse_args(cmd)
    try:
        refs = read_text(Path(args.ref))
        hyps = match(refs, read_text(Path(args.hyp)))
        for metric, tokenize in get_tokenizers(args.bpemodel).items():
            utterances = align(refs, hyps, tokenize)
            result = summarize(metric, utterances)
            write_result(result, utterances, Path(args.outdir) / f"score_{metric}")
    except (ScoreError, OSError, UnicodeDecodeError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
