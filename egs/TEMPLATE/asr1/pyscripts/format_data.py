#!/usr/bin/env python3
"""Copy a Kaldi-style data folder without utterances that are too short or too long."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Dict

from espnet_mvq.files.whole_file import write_text

FILES = ("wav.scp", "text", "utt2spk", "utt2num_samples")


class DataError(Exception):
    """An invalid data folder; the text is the message to the user."""


def get_parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    parser = argparse.ArgumentParser(
        description="Copy a data folder without too short or too long utterances",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="Folder to copy")
    parser.add_argument("--outdir", required=True, help="Folder to write")
    parser.add_argument("--sample_rate", type=int, default=16_000, help="In Hz")
    parser.add_argument(
        "--min_duration", type=float, default=0.0, help="Shortest utterance kept, in s"
    )
    parser.add_argument(
        "--max_duration", type=float, default=1e9, help="Longest utterance kept, in s"
    )
    return parser


def read_table(path: Path) -> Dict[str, str]:
    """Read `utt_id value` lines, the value possibly empty.

    Raises:
        DataError: If the file is missing.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}; run stage 1 (data preparation)")
    lines = path.read_text(encoding="utf-8").splitlines()
    split = (line.split(maxsplit=1) for line in lines if line.strip())
    return {columns[0]: "".join(columns[1:]) for columns in split}


def format_data(args: argparse.Namespace) -> None:
    """Write the copy.

    Raises:
        DataError: If a file is missing, there is a segments file, utterances differ
            between files, or none would be left.
    """
    data_dir, outdir = Path(args.data_dir), Path(args.outdir)
    if (data_dir / "segments").exists():
        raise DataError(
            f"{data_dir}/segments: got recordings with segments, expected a wav.scp of "
            "utterances; cut them in the data preparation"
        )
    tables = {name: read_table(data_dir / name) for name in FILES}
    utt_ids = list(tables["wav.scp"])
    for name, table in tables.items():
        differing = sorted(set(utt_ids) ^ set(table))
        if differing:
            raise DataError(
                f"{data_dir}: {len(differing)} utterances are in only one of wav.scp "
                f"and {name}, first {', '.join(differing[:5])}; run stage 1 again"
            )
    shortest = args.min_duration * args.sample_rate
    longest = args.max_duration * args.sample_rate
    kept = [
        utt_id
        for utt_id in utt_ids
        if shortest <= int(tables["utt2num_samples"][utt_id]) <= longest
    ]
    if not kept:
        raise DataError(
            f"{data_dir}: none of {len(utt_ids)} utterances is between "
            f"{args.min_duration} s and {args.max_duration} s long; change the limits"
        )
    outdir.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write(outdir / name, {utt_id: table[utt_id] for utt_id in kept})
    speakers: Dict[str, str] = {}
    for utt_id in kept:
        speaker = tables["utt2spk"][utt_id]
        speakers[speaker] = f"{speakers.get(speaker, '')} {utt_id}".strip()
    write(outdir / "spk2utt", speakers)
    (outdir / "feats_type").write_text("raw\n", encoding="utf-8")
    seconds = sum(int(tables["utt2num_samples"][u]) for u in kept) / args.sample_rate
    logging.info(
        f"{outdir}: {len(kept)} of {len(utt_ids)} utterances, {seconds / 3600:.2f} h"
    )


def write(path: Path, table: Dict[str, str]) -> None:
    """Write `key value` lines."""
    write_text(path, "".join(f"{key} {value}\n" for key, value in table.items()))


def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level="INFO",
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    try:
        format_data(args)
    except DataError as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
