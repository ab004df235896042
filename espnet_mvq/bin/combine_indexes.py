#!/usr/bin/env python3
"""Check the shards of an extraction and put them into the data folder."""

import argparse
from pathlib import Path

from espnet_mvq.bin.options import (
    add_on_error_option,
    command,
    command_parser,
    setup_logging,
)
from espnet_mvq.extraction.shard_combination import combine_shards
from espnet_mvq.indexes.metadata import (
    EmbeddingMetadata,
    IndexMetadata,
    PosteriorMetadata,
)

TARGETS = {
    "indexes": IndexMetadata,
    "embeddings": EmbeddingMetadata,
    "posteriors": PosteriorMetadata,
}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Check the shards of an extraction against the corpus, print the "
        "results, and write NAME.scp, in wav.scp's order, and NAME.json into the "
        "data folder.",
    )
    parser.add_argument(
        "--data_dir", required=True, help="data folder with wav.scp, utt2num_samples"
    )
    parser.add_argument("--shards", required=True, help="folder of the shards")
    parser.add_argument("--nj", type=int, required=True, help="number of shards")
    parser.add_argument(
        "--target",
        default="indexes",
        choices=tuple(TARGETS),
        help="kind of the extracted arrays",
    )
    parser.add_argument(
        "--name",
        help="name of the files (default: codebook_indexes, embeddings or posteriors); "
        "each teacher or layer of a data folder needs its own",
    )
    add_on_error_option(
        parser,
        "skip: accept utterances without indexes; they train without MVQ loss",
    )
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    combine_shards(
        Path(args.data_dir),
        args.shards,
        args.nj,
        TARGETS[args.target],
        args.name,
        args.on_error,
    )


if __name__ == "__main__":
    main()
