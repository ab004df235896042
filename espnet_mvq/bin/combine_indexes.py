#!/usr/bin/env python3
"""Check the shards of an extraction and put them into the data folder."""

import argparse
import logging
from pathlib import Path

from espnet_mvq.bin.options import add_logging_options, command, setup_logging
from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import EmbeddingMetadata
from espnet_mvq.indexes.validation import (
    CheckReport,
    check_arrays,
    check_complete,
    check_lengths,
    check_shards,
    check_text,
    read_places,
)

TARGETS = {"indexes": IndexMetadata, "embeddings": EmbeddingMetadata}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Check the shards of an extraction against the corpus, print what "
        "was found, and write NAME.scp, in wav.scp's order, and NAME.json into the "
        "data folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
        help="what was extracted",
    )
    parser.add_argument(
        "--name",
        help="name of the files (default: codebook_indexes or embeddings); several "
        "teachers or layers need several",
    )
    parser.add_argument(
        "--on_error",
        default="stop",
        choices=("stop", "skip"),
        help="skip: accept utterances without indexes; they train without MVQ loss",
    )
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    if args.nj < 1:
        raise ValueError(f"--nj: got {args.nj}, expected at least 1")
    if args.name and Path(args.name).name != args.name:
        raise ValueError(f"--name: got {args.name}, expected a name without folders")
    data_dir, kind = Path(args.data_dir), TARGETS[args.target]
    name = args.name or kind.STEM
    utt_ids = list(read_scp(data_dir / "wav.scp"))
    report = CheckReport()
    check_text(report, data_dir / "text", utt_ids)
    metadata = check_shards(report, args.shards, args.nj, kind)
    if metadata is not None:
        places = read_places(report, args.shards, args.nj, kind)
        accepted = metadata.skipped if args.on_error == "skip" else []
        check_complete(report, data_dir / "wav.scp", utt_ids, places, accepted)
        # Only what wav.scp still has, in its order
        places = {utt_id: places[utt_id] for utt_id in utt_ids if utt_id in places}
        num_frames = check_arrays(report, places, metadata)
        check_lengths(report, data_dir / "utt2num_samples", num_frames, metadata)
        num_bytes = sum(Path(args.shards, a).stat().st_size for a in metadata.shards)
        per_row = num_bytes / max(1, sum(num_frames.values()))
        text = f"{num_bytes} bytes, {per_row:.2f} for each {metadata.level}"
        report.good("size", text)
    print(report, flush=True)
    if report.problems:
        raise ValueError("; ".join(report.problems))
    metadata.num_utterances = len(places)
    metadata.num_frames = sum(num_frames.values())
    lines = [f"{utt_id} {place}\n" for utt_id, place in places.items()]
    # The metadata last: a folder that has them has the scp they speak of.
    (data_dir / f"{name}.json").unlink(missing_ok=True)
    write_text(data_dir / f"{name}.scp", "".join(lines))
    metadata.save(data_dir / f"{name}.json")
    logging.info(
        f"{data_dir / name}.scp: {metadata.num_utterances} of {len(utt_ids)} utterances"
    )


if __name__ == "__main__":
    main()
