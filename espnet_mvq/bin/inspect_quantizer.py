#!/usr/bin/env python3
"""Report the quality of a quantizer, as text and JSON."""

import argparse
import functools
from pathlib import Path

from espnet_mvq.bin.options import (
    add_on_error_option,
    add_teacher_options,
    command,
    command_parser,
    defaults_of,
    load_teacher,
    setup_logging,
)
from espnet_mvq.exchange.importing import load_quantizer
from espnet_mvq.extraction.quantizer_inspection import inspect_quantizer


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Report how good a quantizer is on embeddings it was not trained "
        "on: its error, the use of its codebooks, and the predictability of its "
        "indexes. Prints the report and writes quantizer_report.json.",
    )
    parser.add_argument(
        "quantizer",
        help="quantizer.safetensors, or a checkpoint of multi_quantization (any other "
        "ending)",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--feats",
        help="embeddings: .npy (all frames), .scp of .npy files or of Kaldi's "
        "ARK:OFFSET, .h5 or .hdf5",
    )
    source.add_argument(
        "--wav_scp", help="audio in place of embeddings; needs --teacher"
    )
    add_teacher_options(parser, required=False)
    parser.add_argument(
        "--max_frames",
        type=int,
        help="maximum number of frames, a random sample; use 2000 for a quantizer of "
        "multi_quantization, whose search is slow",
    )
    parser.add_argument(
        "--output_dir", help="folder of the report (default: the quantizer's)"
    )
    parser.add_argument(
        "--seed", type=int, help="seed of the sample and of the measurements"
    )
    parser.set_defaults(**defaults_of(inspect_quantizer, "max_frames", "seed"))
    add_on_error_option(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    if args.wav_scp and not args.teacher:
        parser.error("--wav_scp needs --teacher and --layer")
    if args.max_frames < 2:
        parser.error(f"--max_frames: got {args.max_frames}, expected at least 2")
    setup_logging(args)
    inspect_quantizer(
        load_quantizer(args.quantizer),
        args.quantizer,
        Path(args.output_dir or Path(args.quantizer).parent),
        feats=args.feats,
        wav_scp=args.wav_scp,
        load_teacher=functools.partial(load_teacher, args),
        max_frames=args.max_frames,
        seed=args.seed,
        on_error=args.on_error,
    )


if __name__ == "__main__":
    main()
