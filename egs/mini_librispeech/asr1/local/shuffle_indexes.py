#!/usr/bin/env python3
"""Give each utterance the codebook indexes of another one of similar length.

The control of a distillation: indexes that have the statistics of speech, but say
nothing about the utterance they belong to.
"""

import argparse
from pathlib import Path
from typing import Dict, List

import numpy as np

from espnet_mvq.extraction.shard_combination import combine_shards
from espnet_mvq.indexes import IndexMetadata, ShardWriter
from espnet_mvq.indexes.reader import FrameReader


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Write NAME.scp and NAME.json into the data folder",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="Folder of the indexes")
    parser.add_argument("--source", default="codebook_indexes", help="Name to read")
    parser.add_argument("--name", default="codebook_indexes_shuffled", help="Name")
    parser.add_argument("--outdir", required=True, help="Folder of the ark")
    return parser


def partners(lengths: Dict[str, int]) -> Dict[str, str]:
    """Return another utterance for each, the next longer one.

    The longest one gets the second longest. No utterance is its own partner.

    Args:
        lengths: Frames of each utterance; at least two utterances.
    """
    ordered: List[str] = sorted(lengths, key=lambda utt_id: (lengths[utt_id], utt_id))
    pairs = dict(zip(ordered, ordered[1:]))
    pairs[ordered[-1]] = ordered[-2]
    return pairs


def to_length(indexes: np.ndarray, length: int) -> np.ndarray:
    """Cut or repeat indexes (T, N) to a number of frames (length, N)."""
    repeats = -(-length // len(indexes))
    return np.tile(indexes, (repeats, 1))[:length]


def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    folder = Path(args.data_dir)
    reader = FrameReader(folder / f"{args.source}.scp")
    lengths = {utt_id: len(indexes) for utt_id, indexes in reader.items()}
    metadata = IndexMetadata.load(folder / f"{args.source}.json")
    pairs = partners(lengths)
    with ShardWriter(args.outdir, 1, metadata) as shard:
        for utt_id, length in lengths.items():
            indexes = reader[pairs[utt_id]].astype(np.uint8)
            shard.write(utt_id, to_length(indexes, length))
    combine_shards(folder, args.outdir, 1, IndexMetadata, args.name)


if __name__ == "__main__":
    main()
