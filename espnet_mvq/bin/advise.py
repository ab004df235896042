#!/usr/bin/env python3
"""Advise on teacher and layer from some minutes of speech."""

import argparse
from pathlib import Path
from typing import List, Optional

from espnet_mvq.bin.options import (
    add_on_error_option,
    add_run_options,
    add_teacher_option,
    command,
    command_parser,
    defaults_of,
    load_teacher,
    setup_logging,
)
from espnet_mvq.extraction.layer_advice import advise
from espnet_mvq.teachers.base import FrameSource

# Options of `advise`, with its defaults
ADVICE_OPTIONS = ("minutes", "num_codebooks", "codebook_size", "seed")


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Compare the layers of a teacher on some minutes of speech, before hours of "
        "extraction and training: what a linear probe reads of the text, whether the "
        "teacher knows this kind of speech, and how well its frames can be quantized "
        "and learnt. Prints a verdict and a table, and writes advice.json, advice.md "
        "and advice.png.",
    )
    parser.add_argument(
        "--data_dir",
        required=True,
        help="data folder with wav.scp; text and utt2spk are used if there",
    )
    add_teacher_option(parser)
    parser.add_argument(
        "--layers",
        nargs="+",
        default=["all"],
        help="layers to compare, such as 3 4 5, counted as in --layer of the other "
        "commands; all: all from 1 on",
    )
    add_run_options(parser)
    parser.add_argument(
        "--output_dir", default="advice", help="folder of the files; made if missing"
    )
    parser.add_argument(
        "--minutes", type=float, help="speech to use, of as many speakers as possible"
    )
    parser.add_argument(
        "--num_codebooks",
        type=int,
        help="codebooks of the quantizer whose error is measured",
    )
    parser.add_argument(
        "--codebook_size", type=int, help="number of entries of a codebook"
    )
    parser.add_argument(
        "--seed", type=int, help="seed of utterances, noise and trainings"
    )
    parser.set_defaults(**defaults_of(advise, *ADVICE_OPTIONS))
    add_on_error_option(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)

    def load(layer: int) -> FrameSource:
        return load_teacher(argparse.Namespace(**{**vars(args), "layer": layer}))

    text = advise(
        load,
        Path(args.data_dir),
        Path(args.output_dir),
        layers=parse_layers(args.layers),
        on_error=args.on_error,
        **{name: getattr(args, name) for name in ADVICE_OPTIONS},
    )
    print(text, end="", flush=True)


def parse_layers(words: List[str]) -> Optional[List[int]]:
    """Return the numbers of layers; None for all.

    Raises:
        ValueError: If the words are neither numbers nor `all`.
    """
    if words == ["all"]:
        return None
    try:
        return [int(word) for word in words]
    except ValueError:
        raise ValueError(
            f"--layers: got {' '.join(words)}, expected all, or numbers such as 3 4 5"
        ) from None


if __name__ == "__main__":
    main()
