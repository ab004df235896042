#!/usr/bin/env python3
"""Train a quantizer on a teacher's embeddings of random utterances."""

import argparse
import functools

from espnet_mvq.bin.options import (
    add_on_error_option,
    add_teacher_options,
    command,
    command_parser,
    defaults_of,
    load_teacher,
    setup_logging,
)
from espnet_mvq.extraction.quantizer_training import train_quantizer
from espnet_mvq.indexes.metadata import LEVELS
from espnet_mvq.quantization import QuantizerTrainer

# Options of `QuantizerTrainer`, with its defaults
TRAINER_OPTIONS = (
    "codebook_size",
    "max_frames",
    "num_iterations",
    "normalize",
    "seed",
)


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Train a quantizer on a teacher's embeddings of random utterances. "
        "The embeddings stay in memory; only the quantizer is written.",
    )
    parser.add_argument("--wav_scp", required=True, help="wav.scp of the training set")
    parser.add_argument(
        "--utt2spk",
        help="speaker of each utterance; the training frames cover all speakers "
        "(default: the file of this name beside wav.scp, if it exists)",
    )
    parser.add_argument("--quantizer", required=True, help="safetensors file to write")
    add_teacher_options(parser)
    parser.add_argument(
        "--level",
        choices=LEVELS,
        help="training vectors; utterance: one for each utterance, the mean over its "
        "frames, as in DeCoR",
    )
    parser.add_argument(
        "--num_codebooks",
        type=int,
        help="number of codebooks, bytes per frame (default: 16; utterance level: 1)",
    )
    parser.add_argument(
        "--codebook_size", type=int, help="number of entries of a codebook"
    )
    parser.add_argument(
        "--max_frames", type=int, help="maximum number of training frames"
    )
    parser.add_argument(
        "--oversampling",
        type=float,
        help="ratio of frames that the teacher computes to frames that are kept, at "
        "least 1: a higher value takes fewer frames from each of more utterances",
    )
    parser.add_argument(
        "--num_iterations", type=int, help="number of rounds of search and refit"
    )
    parser.add_argument(
        "--normalize",
        choices=("mean", "mean_std"),
        help="normalisation; mean_std: all channels are scaled to unit variance",
    )
    parser.add_argument(
        "--seed", type=int, help="seed of utterances, frames and training"
    )
    parser.set_defaults(
        **defaults_of(train_quantizer, "level", "oversampling"),
        **defaults_of(QuantizerTrainer, *TRAINER_OPTIONS),
    )
    add_on_error_option(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    train_quantizer(
        functools.partial(load_teacher, args),
        args.wav_scp,
        args.quantizer,
        {name: getattr(args, name) for name in TRAINER_OPTIONS},
        num_codebooks=args.num_codebooks,
        level=args.level,
        oversampling=args.oversampling,
        utt2spk=args.utt2spk,
        on_error=args.on_error,
    )


if __name__ == "__main__":
    main()
