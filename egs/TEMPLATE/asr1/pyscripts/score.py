#!/usr/bin/env python3
"""Score hypotheses: word, character and token error rate with alignments."""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import List, Optional

from espnet_mvq.files.whole_file import write_text
from espnet_mvq.reporting.scoring import (
    Utterance,
    align,
    get_tokenizers,
    match,
    read_text,
    summarize,
)


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
        refs = read_text(args.ref)
        hyps = match(refs, read_text(args.hyp))
        for metric, tokenize in get_tokenizers(args.bpemodel).items():
            utterances = align(refs, hyps, tokenize)
            result = summarize(metric, utterances)
            write_result(result, utterances, Path(args.outdir) / f"score_{metric}")
    except (ValueError, OSError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
