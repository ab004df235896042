#!/usr/bin/env python3
"""Train a sentencepiece model and write the token list of an ESPnet ASR model.

The model equals that of stage 5 of ESPnet's ``asr.sh`` with default options.
"""

import argparse
import io
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Optional

import sentencepiece

# Pieces of the model that ESPnet replaces by its own.
SPECIAL_PIECES = ("<unk>", "<s>", "</s>")


class TrainingError(Exception):
    """The model cannot be trained; the text is the message to the user."""


def get_parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    parser = argparse.ArgumentParser(
        description="Train a sentencepiece model and write its token list",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--text", required=True, help="Kaldi-style text: UTT_ID WORDS..."
    )
    parser.add_argument("--nbpe", type=int, default=100, help="Number of pieces")
    parser.add_argument("--mode", choices=["unigram", "bpe", "char"], default="unigram")
    parser.add_argument(
        "--outdir", required=True, help="Folder of bpe.model, bpe.vocab and tokens.txt"
    )
    return parser


def read_sentences(path: Path) -> List[str]:
    """Return the words of each utterance, without the utterance ids.

    Raises:
        TrainingError: If the file is missing or has no words.
    """
    if not path.is_file():
        raise TrainingError(f"no text {path}: prepare the data first")
    with path.open(encoding="utf-8") as f:
        rows = [line.split(maxsplit=1) for line in f]
    sentences = [row[1].strip() for row in rows if len(row) == 2]
    if not sentences:
        raise TrainingError(f"{path} has no words: expected lines of 'UTT_ID WORDS...'")
    return sentences


def explain(error: RuntimeError, nbpe: int) -> str:
    """Return a one-line message with a remedy for sentencepiece's error."""
    message = " ".join(str(error).split())
    limit = re.search(r"set it to a value <= (\d+)", message)
    if limit:
        return (
            f"--nbpe {nbpe} is too high for this text: the largest number that works "
            f"is {limit.group(1)}"
        )
    needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if needed:
        return (
            f"--nbpe {nbpe} is too low for this text: the characters alone need "
            f"{needed.group(1)}"
        )
    return f"sentencepiece refused --nbpe {nbpe}: {message}"


def train(sentences: List[str], nbpe: int, mode: str) -> bytes:
    """Return a serialized sentencepiece model.

    Sentences and model stay in memory: trained from files, the model would contain
    their names, and equal text would not give equal bytes.

    Raises:
        TrainingError: If sentencepiece refuses the number of pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=nbpe,
            model_type=mode,
            character_coverage=1.0,
            input_sentence_size=100000000,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TrainingError(explain(error, nbpe)) from error
    return model.getvalue()


def make_files(model: bytes) -> Dict[str, bytes]:
    """Return the contents of the three files, by name."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(i) for i in ids]
    vocab = [f"{pieces[i]}\t{processor.get_score(i):g}" for i in ids]
    kept = [piece for piece in pieces if piece not in SPECIAL_PIECES]
    tokens = ["<blank>", "<unk>", *kept, "<sos/eos>"]
    return {
        "bpe.model": model,
        "bpe.vocab": "".join(f"{row}\n" for row in vocab).encode(),
        "tokens.txt": "".join(f"{token}\n" for token in tokens).encode(),
    }


def write_files(files: Dict[str, bytes], outdir: Path) -> None:
    """Write the files beside ``outdir`` and move them in, ``tokens.txt`` last."""
    outdir.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{outdir.name}.", dir=outdir.parent))
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        (outdir / "tokens.txt").unlink(missing_ok=True)
        for name in files:
            os.replace(temporary / name, outdir / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(cmd: Optional[List[str]] = None) -> None:
    """Run the command line."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    args = get_parser().parse_args(cmd)
    try:
        sentences = read_sentences(Path(args.text))
        files = make_files(train(sentences, args.nbpe, args.mode))
        write_files(files, Path(args.outdir).resolve())
    except (TrainingError, OSError, UnicodeDecodeError) as error:
        logging.error(str(error))
        sys.exit(1)
    num_tokens = files["tokens.txt"].count(b"\n")
    logging.info(f"{args.outdir}: {num_tokens} tokens from {len(sentences)} sentences")


if __name__ == "__main__":
    main()
