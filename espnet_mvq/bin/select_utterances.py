#!/usr/bin/env python3
"""Select the utterances whose frames a quantizer is trained on."""

import argparse
from pathlib import Path

from espnet_mvq.bin.options import (
    command,
    command_parser,
    defaults_of,
    setup_logging,
)
from espnet_mvq.extraction.selection import UNKNOWN_DURATION_S, select_utterances


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Choose random utterances of all speakers, of the given hours of "
        "speech in total, and write their wav.scp and utt2spk.",
    )
    parser.add_argument("--data_dir", required=True, help="data folder with wav.scp")
    parser.add_argument("--outdir", required=True, help="folder of the selection")
    parser.add_argument("--hours", type=float, help="hours of speech to select")
    parser.add_argument(
        "--sample_rate",
        type=int,
        help="sample rate of utt2num_samples, in Hz; without that file, an utterance "
        f"counts as {UNKNOWN_DURATION_S:.0f} s",
    )
    parser.add_argument("--seed", type=int, help="seed of the selection")
    parser.set_defaults(
        **defaults_of(select_utterances, "hours", "sample_rate", "seed")
    )
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    select_utterances(
        Path(args.data_dir), Path(args.outdir), args.hours, args.sample_rate, args.seed
    )


if __name__ == "__main__":
    main()
