#!/usr/bin/env python3
"""Hand codebook indexes to other programs, such as icefall's recipes."""

import argparse

from espnet_mvq.bin.options import command, command_parser, setup_logging
from espnet_mvq.exchange.exporting import export_indexes
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Write codebook indexes as .npy files or HDF5, and their metadata, "
        "which import_indexes --metadata reads. A cut manifest of lhotse is optional.",
    )
    parser.add_argument(
        "--scp", required=True, help=f"{SCP_NAME}, {METADATA_NAME} beside it"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--hdf5",
        help="file to write, .h5: a dataset for each utterance, uint8 (T, N); the "
        "metadata are written beside it, as .json",
    )
    target.add_argument(
        "--npy_dir",
        help=f"folder to write: UTT_ID.npy, npy.scp and {METADATA_NAME}",
    )
    parser.add_argument(
        "--manifest",
        help="cut manifest to write, .jsonl.gz: the ids of the cuts are the utterance "
        "ids, the indexes are their TemporalArray codebook_indexes",
    )
    parser.add_argument(
        "--data_dir",
        help="data folder with wav.scp and utt2num_samples, whose audio becomes the "
        "recordings of the cuts",
    )
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    if args.hdf5 and not args.hdf5.endswith(".h5"):
        parser.error(f"--hdf5: got {args.hdf5}, expected the ending .h5")
    if args.manifest and not args.manifest.endswith(".jsonl.gz"):
        parser.error(f"--manifest: got {args.manifest}, expected the ending .jsonl.gz")
    if args.data_dir and not args.manifest:
        parser.error("--data_dir: only a --manifest has recordings")
    setup_logging(args)
    export_indexes(
        args.scp,
        hdf5=args.hdf5,
        npy_dir=args.npy_dir,
        manifest=args.manifest,
        data_dir=args.data_dir,
    )


if __name__ == "__main__":
    main()
