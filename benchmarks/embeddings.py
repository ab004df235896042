#!/usr/bin/env python3
"""Dump random teacher embeddings of a corpus, for the other benchmarks.

Example:
    python3 benchmarks/embeddings.py --corpus .../LibriSpeech/train-clean-5 \
        --teacher transformers/openai/whisper-tiny.en --layer 3 \
        --max_frames 162000 --output train_layer3.npy
"""

import argparse
import logging
from pathlib import Path
from typing import Dict

import numpy as np

from espnet_mvq.bin.options import (
    add_logging_options,
    add_teacher_options,
    load_teacher,
    setup_logging,
)
from espnet_mvq.extraction.frame_sampling import sample_frames


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the script's options."""
    parser = argparse.ArgumentParser(
        description="Write random frames of a teacher's embeddings, (F, D) in npy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--corpus", required=True, help="folder with SPEAKER/CHAPTER/*.flac|opus|wav"
    )
    parser.add_argument("--output", required=True, help="npy file to write")
    parser.add_argument("--max_frames", type=int, default=162_000, help="frames kept")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice")
    add_teacher_options(parser)
    add_logging_options(parser)
    return parser


def find_audio(corpus: str) -> Dict[str, str]:
    """Return the audio files below a folder by their names."""
    audio = [
        path
        for path in sorted(Path(corpus).rglob("*"))
        if path.suffix in (".flac", ".opus", ".wav")
    ]
    if not audio:
        raise SystemExit(f"{corpus}: got no audio, expected flac, opus or wav")
    return {path.stem: str(path) for path in audio}


def main(cmd=None) -> None:
    """Run the script."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    places = find_audio(args.corpus)
    speakers = {utt_id: utt_id.split("-")[0] for utt_id in places}
    teacher = load_teacher(args)
    frames = sample_frames(teacher, places, args.max_frames, args.seed, speakers)
    np.save(args.output, frames.numpy())
    logging.info(f"{args.output}: {tuple(frames.shape)} frames")


if __name__ == "__main__":
    main()
