#!/usr/bin/env python3
"""Take over codebook indexes that other programs extracted, such as icefall."""

import argparse

from espnet_mvq.bin.options import command, command_parser, setup_logging
from espnet_mvq.exchange.importing import FIELD_OPTIONS, import_indexes
from espnet_mvq.exchange.lhotse import FIELD, ID_SOURCES
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Convert codebook indexes of icefall (lhotse manifests) or plain "
        f"arrays to an ark, {SCP_NAME} and {METADATA_NAME} of a data folder.",
    )
    parser.add_argument(
        "--data_dir",
        required=True,
        help="data folder; its wav.scp gives the utterances and their order",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--manifests", nargs="+", help="cut manifests of lhotse, .jsonl.gz"
    )
    source.add_argument(
        "--arrays",
        help="arrays without a manifest: folder of UTT_ID.npy, .scp of .npy files, or "
        ".h5 with a dataset for each utterance",
    )
    parser.add_argument(
        "--storage_dir",
        help="folder to which relative storage paths in manifests refer (icefall: the "
        "recipe's folder; default: the working directory)",
    )
    parser.add_argument("--field", default=FIELD, help="custom field of the cuts")
    parser.add_argument(
        "--utt_id",
        default="supervision",
        choices=ID_SOURCES,
        help="origin of the utterance ids in a cut; a cut without a supervision gives "
        "its own id. ID_sp0.9 also matches sp0.9-ID",
    )
    parser.add_argument(
        "--outdir", help="folder of the ark (default: DATA_DIR/codebook_indexes)"
    )
    parser.add_argument(
        "--on_missing",
        default="stop",
        choices=("stop", "skip"),
        help="skip: accept utterances without indexes and indexes without utterances",
    )
    _add_meaning_options(parser)
    return parser


def _add_meaning_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the metadata."""
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument(
        "--quantizer",
        help="quantizer that the indexes were made with: quantizer.safetensors, or a "
        "checkpoint of multi_quantization (any other ending)",
    )
    origin.add_argument(
        "--quantizer_id", help="id of the quantizer, any text, if its file is missing"
    )
    origin.add_argument(
        "--metadata",
        help=f"{METADATA_NAME} of exported indexes; gives all options below",
    )
    parser.add_argument(
        "--num_codebooks",
        type=int,
        help="number of codebooks N (default: the quantizer's or the arrays')",
    )
    parser.add_argument(
        "--codebook_size",
        type=int,
        help="entries of a codebook K (default: the quantizer's, else 256)",
    )
    parser.add_argument(
        "--teacher", help="id of the teacher, any text (default: the quantizer's)"
    )
    parser.add_argument(
        "--layer",
        type=int,
        help="teacher layer, counted from 1 as icefall's --embedding-layer (default: "
        "the quantizer's)",
    )
    parser.add_argument(
        "--sample_rate",
        type=int,
        help="sample rate of the speech, in Hz (default: 16000)",
    )
    parser.add_argument(
        "--frame_shift_samples",
        type=int,
        help="samples between two frames (default: from the manifests)",
    )
    parser.add_argument(
        "--frame_offset_samples",
        type=float,
        help="centre of frame 0, in samples (default: 199.5, as in HuBERT's family at "
        "16 kHz; Whisper: 0)",
    )


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    import_indexes(
        args.data_dir,
        manifests=args.manifests,
        arrays=args.arrays,
        id_source=args.utt_id,
        storage_dir=args.storage_dir,
        field=args.field,
        outdir=args.outdir,
        on_missing=args.on_missing,
        quantizer=args.quantizer,
        metadata=args.metadata,
        **{name: getattr(args, name) for name in FIELD_OPTIONS},
    )


if __name__ == "__main__":
    main()
