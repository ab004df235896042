#!/usr/bin/env python3
"""Hand codebook indexes to other programs, icefall's recipes first of all."""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np
from tqdm import tqdm

from espnet_mvq.bin.options import add_logging_options, command, setup_logging
from espnet_mvq.exchange.lhotse import make_cut, make_recording, write_manifest
from espnet_mvq.exchange.stored_arrays import StoredIndexes, write_hdf5, write_npy
from espnet_mvq.files.scp import read_counts, read_scp
from espnet_mvq.indexes import FrameReader, IndexMetadata
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME

_SHOWN = 5  # how many of many utterances a message names


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Write codebook indexes as .npy files or HDF5, if wanted with a "
        "cut manifest of lhotse. Their metadata are written too, so that "
        "import_indexes --metadata takes them back.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--scp", required=True, help=f"{SCP_NAME}, {METADATA_NAME} beside it"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--hdf5",
        help="file to write, .h5: a dataset for each utterance, uint8 (T, N); its "
        "metadata go beside it as .json",
    )
    target.add_argument(
        "--npy_dir",
        help=f"folder to write: UTT_ID.npy, npy.scp and {METADATA_NAME}",
    )
    parser.add_argument(
        "--manifest",
        help="cuts to write, .jsonl.gz: utterance ids as cut ids, the indexes as "
        "TemporalArray codebook_indexes",
    )
    parser.add_argument(
        "--data_dir",
        help="data folder with wav.scp and utt2num_samples: the manifest's cuts get "
        "recordings of it",
    )
    add_logging_options(parser)
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
    reader = FrameReader(args.scp)
    if not isinstance(reader.metadata, IndexMetadata):
        raise ValueError(
            f"{args.scp}: got embeddings, expected codebook indexes; those here are "
            "read by kaldiio as they are"
        )
    recordings = find_recordings(args.data_dir, reader) if args.data_dir else {}
    num_frames: Dict[str, int] = {}
    if args.hdf5:
        Path(args.hdf5).parent.mkdir(parents=True, exist_ok=True)
        write_hdf5(args.hdf5, utterances(reader, num_frames))
        described = Path(args.hdf5).with_suffix(".json")
    else:
        write_npy(args.npy_dir, utterances(reader, num_frames))
        described = Path(args.npy_dir) / METADATA_NAME
    # The checksums are those of arks, which stay behind.
    metadata = dataclasses.replace(reader.metadata, shards={})
    metadata.save(described)
    logging.info(
        f"{args.hdf5 or args.npy_dir}: {len(num_frames)} utterances, "
        f"{sum(num_frames.values())} frames; metadata in {described}"
    )
    if args.manifest:
        write_cuts(args, reader, num_frames, recordings)


def find_recordings(
    data_dir: str, reader: FrameReader
) -> Dict[str, Optional[Dict[str, Any]]]:
    """Describe the audio of all utterances; None where lhotse cannot read it."""
    places = read_scp(Path(data_dir) / "wav.scp")
    num_samples = read_counts(Path(data_dir) / "utt2num_samples")
    missing = [u for u in reader if u not in places or u not in num_samples]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(reader)} utterances with codebook indexes are not "
            f"in wav.scp or utt2num_samples of {data_dir}, first "
            f"{', '.join(missing[:_SHOWN])}; give their data folder, or none"
        )
    sample_rate = reader.metadata.sample_rate
    return {
        utt_id: make_recording(utt_id, places[utt_id], num_samples[utt_id], sample_rate)
        for utt_id in reader
    }


def utterances(
    reader: FrameReader, num_frames: Dict[str, int]
) -> Iterator[Tuple[str, np.ndarray]]:
    """Yield (utt_id, indexes, uint8 (T, N)), noting the number of frames."""
    for utt_id in tqdm(reader, unit="utt", mininterval=5):
        indexes = reader[utt_id].astype(np.uint8)
        num_frames[utt_id] = len(indexes)
        yield utt_id, indexes


def write_cuts(
    args: argparse.Namespace,
    reader: FrameReader,
    num_frames: Dict[str, int],
    recordings: Dict[str, Optional[Dict[str, Any]]],
) -> None:
    """Write the manifest of the exported arrays."""
    metadata = reader.metadata
    without = [u for u, recording in recordings.items() if recording is None]
    if without:
        logging.warning(
            f"{len(without)} cuts get no recording: lhotse reads no audio from arks, "
            f"first {', '.join(without[:_SHOWN])}"
        )
    # Whole paths: the recipe that joins these cuts runs somewhere else.
    storage = ("numpy_hdf5", str(Path(args.hdf5).resolve())) if args.hdf5 else None
    storage = storage or ("numpy_files", str(Path(args.npy_dir).resolve()))
    cuts = (
        make_cut(
            utt_id,
            StoredIndexes(
                *storage,
                storage_key=utt_id if args.hdf5 else f"{utt_id}.npy",
                origin=args.scp,
                shape=(count, metadata.num_codebooks),
                frame_shift_s=metadata.frame_shift_samples / metadata.sample_rate,
            ),
            recordings.get(utt_id),
        )
        for utt_id, count in num_frames.items()
    )
    Path(args.manifest).parent.mkdir(parents=True, exist_ok=True)
    write_manifest(args.manifest, cuts)
    logging.info(f"{args.manifest}: {len(num_frames)} cuts")


if __name__ == "__main__":
    main()
