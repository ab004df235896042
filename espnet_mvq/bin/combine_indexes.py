#!/usr/bin/env python3
"""Check the shards of an extraction and put them into the data folder."""

import argparse
import logging
from pathlib import Path
from typing import Dict, List

import kaldiio

from espnet_mvq.bin.options import add_logging_options, command, setup_logging
from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME, write_text
from espnet_mvq.indexes.scp import read_scp
from espnet_mvq.indexes.shard import file_sha256, finished_shard, shard_paths

# Frames by which an utterance's indexes may differ from what its samples give:
# models drop up to two frames at the end, none adds more than one.
_TOLERANCE_FRAMES = 3


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Check the shards of an extraction against the corpus and write "
        f"{SCP_NAME} and {METADATA_NAME} into the data folder, in wav.scp's order.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data_dir", required=True, help="data folder with wav.scp, utt2num_samples"
    )
    parser.add_argument("--shards", required=True, help="folder of the shards")
    parser.add_argument("--nj", type=int, required=True, help="number of shards")
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
    data_dir = Path(args.data_dir)
    utt_ids = list(read_scp(data_dir / "wav.scp"))
    metadata = combine_metadata(args.shards, args.nj)
    places: Dict[str, str] = {}
    for job in range(1, args.nj + 1):
        _, scp, _ = shard_paths(args.shards, job)
        places.update(read_scp(scp))
    check_complete(utt_ids, places, args)
    # Only what wav.scp still has, in its order
    places = {utt_id: places[utt_id] for utt_id in utt_ids if utt_id in places}
    num_frames = {u: len(kaldiio.load_mat(place)) for u, place in places.items()}
    check_lengths(data_dir / "utt2num_samples", num_frames, metadata)
    metadata.num_utterances = len(places)
    metadata.num_frames = sum(num_frames.values())
    lines = [f"{utt_id} {place}\n" for utt_id, place in places.items()]
    # The metadata last: a folder that has them has the scp they speak of.
    (data_dir / METADATA_NAME).unlink(missing_ok=True)
    write_text(data_dir / SCP_NAME, "".join(lines))
    metadata.save(data_dir / METADATA_NAME)
    num_bytes = sum(Path(args.shards, ark).stat().st_size for ark in metadata.shards)
    logging.info(
        f"{data_dir / SCP_NAME}: {metadata.num_utterances} of {len(utt_ids)} "
        f"utterances, {metadata.num_frames} frames, {num_bytes} bytes in "
        f"{args.nj} arks ({num_bytes / max(1, metadata.num_frames):.2f} bytes a frame)"
    )


def combine_metadata(shards: str, nj: int) -> IndexMetadata:
    """Add up the shards' metadata, refusing missing, damaged or unlike shards."""
    combined = None
    for job in range(1, nj + 1):
        ark, _, json_path = shard_paths(shards, job)
        metadata = finished_shard(shards, job)
        if metadata is None:
            raise ValueError(
                f"shard {job} of {nj} in {shards} is not there or not whole; run the "
                "extraction again, finished shards are kept"
            )
        if metadata.shards.get(ark.name) != file_sha256(ark):
            raise ValueError(
                f"{ark}: its bytes are not those that were written (checksum differs); "
                f"delete {json_path} and run the extraction again"
            )
        if combined is None:
            combined = metadata
            continue
        differences = combined.differences(metadata)
        if differences:
            raise ValueError(
                f"{json_path}: not made like shard 1: {'; '.join(differences)}; run "
                "the extraction again"
            )
        combined.skipped += metadata.skipped
        combined.shards.update(metadata.shards)
    return combined


def check_complete(
    utt_ids: List[str], places: Dict[str, str], args: argparse.Namespace
) -> None:
    """Refuse utterances without indexes, unless told to skip them."""
    missing = [utt_id for utt_id in utt_ids if utt_id not in places]
    if not missing:
        return
    message = (
        f"{len(missing)} of {len(utt_ids)} utterances in {args.data_dir}/wav.scp have "
        f"no codebook indexes, first {', '.join(missing[:5])}"
    )
    if args.on_error == "stop":
        raise ValueError(
            f"{message}; run the extraction again, or accept that they train without "
            "the MVQ loss: --on_error skip"
        )
    logging.warning(message)


def check_lengths(
    utt2num_samples: Path, num_frames: Dict[str, int], metadata: IndexMetadata
) -> None:
    """Refuse indexes whose number does not fit the samples of their speech."""
    if not utt2num_samples.is_file():
        logging.warning(f"{utt2num_samples} is not there: lengths are not checked")
        return
    num_samples = read_scp(utt2num_samples)
    wrong = []
    for utt_id, found in num_frames.items():
        if utt_id not in num_samples:
            continue
        expected = int(num_samples[utt_id]) / metadata.frame_shift_samples
        if abs(found - expected) > _TOLERANCE_FRAMES:
            wrong.append(f"{utt_id} has {found}, expected {expected:.1f}")
    if wrong:
        raise ValueError(
            f"{len(wrong)} utterances have another number of frames than "
            f"{utt2num_samples} gives: {'; '.join(wrong[:5])}. Was the audio changed "
            "after the extraction? Extract again"
        )


if __name__ == "__main__":
    main()
