#!/usr/bin/env python3
"""Take over codebook indexes that other programs extracted, icefall's first of all."""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from tqdm import tqdm

from espnet_mvq import __version__
from espnet_mvq.bin.options import (
    add_logging_options,
    command,
    load_quantizer,
    setup_logging,
)
from espnet_mvq.exchange.lhotse import (
    FIELD,
    ID_SOURCES,
    espnet_speed_id,
    read_manifests,
)
from espnet_mvq.exchange.stored_arrays import (
    ArrayReader,
    StoredIndexes,
    find_arrays,
    to_uint8,
)
from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.write_text import write_text
from espnet_mvq.indexes import IndexMetadata, ShardWriter
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME, check_number
from espnet_mvq.indexes.shard import shard_paths
from espnet_mvq.indexes.validation import without_samples, wrong_lengths

# Fields of the metadata that options, quantizer, metadata or manifests give. The level
# is the quantizer's or the metadata's; indexes from elsewhere are of frames.
_MEANING = tuple(
    name for name in IndexMetadata.MEANING if name not in ("encode", "level")
)
_NUMBERS = tuple(name for name in _MEANING if name not in ("teacher", "quantizer_id"))
# Where nothing gives them: icefall's teachers, HuBERT's family, are centred so
_DEFAULTS = {
    "codebook_size": 256,
    "sample_rate": 16000,
    "frame_offset_samples": 199.5,
}
_SHOWN = 5  # how many of many utterances a message names


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Convert codebook indexes of icefall (lhotse manifests) or plain "
        f"arrays to an ark, {SCP_NAME} and {METADATA_NAME} of a data folder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data_dir",
        required=True,
        help="data folder; its wav.scp says which utterances, in which order",
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
        help="relative storage paths in manifests count from here (icefall: from the "
        "recipe's folder; default: the working directory)",
    )
    parser.add_argument("--field", default=FIELD, help="custom field of the cuts")
    parser.add_argument(
        "--utt_id",
        default="supervision",
        choices=ID_SOURCES,
        help="whose id in a cut is the utterance's; a cut without a supervision gives "
        "its own. ID_sp0.9 is found as sp0.9-ID too",
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
    add_logging_options(parser)
    return parser


def _add_meaning_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the indexes mean."""
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument(
        "--quantizer",
        help="the quantizer they were made with: quantizer.safetensors, or a "
        "checkpoint of multi_quantization (any other ending)",
    )
    origin.add_argument("--quantizer_id", help="any id, if there is no such file")
    origin.add_argument(
        "--metadata",
        help=f"{METADATA_NAME} of exported indexes; says all that follows",
    )
    parser.add_argument(
        "--num_codebooks", type=int, help="N (default: the quantizer's or the arrays')"
    )
    parser.add_argument(
        "--codebook_size", type=int, help="K (default: the quantizer's, else 256)"
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
        "--sample_rate", type=int, help="of the speech, in Hz (default: 16000)"
    )
    parser.add_argument(
        "--frame_shift_samples",
        type=int,
        help="samples from frame to frame (default: as the manifests say)",
    )
    parser.add_argument(
        "--frame_offset_samples",
        type=float,
        help="centre of frame 0 (default: 199.5 as HuBERT's family at 16 kHz; Whisper "
        "has 0)",
    )


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    for name in _NUMBERS:
        if getattr(args, name) is not None:
            check_number(name, getattr(args, name), f"--{name}")
    data_dir = Path(args.data_dir)
    utt_ids = list(read_scp(data_dir / "wav.scp"))
    if args.manifests:
        stored = read_manifests(
            args.manifests, args.utt_id, args.storage_dir, args.field
        )
    else:
        stored = find_arrays(args.arrays)
    stored = match(utt_ids, stored, args)
    outdir = args.outdir or data_dir / "codebook_indexes"
    with ArrayReader() as reader:
        metadata = make_metadata(args, stored, reader)
        with ShardWriter(outdir, 1, metadata) as shard:
            num_frames = convert(stored, reader, shard)
            wrong = wrong_lengths(data_dir / "utt2num_samples", num_frames, metadata)
            of_frames = metadata.level == "frame"
            if wrong and of_frames:
                raise ValueError(wrong)
            unknown = without_samples(data_dir / "utt2num_samples", num_frames)
            if unknown and of_frames:
                logging.warning(unknown)
            if wrong is None and of_frames:
                logging.warning(
                    f"{data_dir}/utt2num_samples is not there: lengths are not checked"
                )
            # The ark may be the one that the folder's files speak of: from here on
            # they are not valid until both are written again, the metadata last.
            (data_dir / METADATA_NAME).unlink(missing_ok=True)
    scp = shard_paths(outdir, 1)[1].read_text(encoding="utf-8")
    write_text(data_dir / SCP_NAME, scp)
    metadata.save(data_dir / METADATA_NAME)
    logging.info(
        f"{data_dir / SCP_NAME}: {metadata.num_utterances} of {len(utt_ids)} "
        f"utterances, {metadata.num_frames} frames, {metadata.num_codebooks} codebooks "
        f"of {metadata.codebook_size}, quantizer {metadata.quantizer_id}"
    )


def match(
    utt_ids: List[str], stored: Dict[str, StoredIndexes], args: argparse.Namespace
) -> Dict[str, StoredIndexes]:
    """Return the stored indexes of a data folder's utterances, in its order.

    Raises:
        ValueError: If an utterance has no indexes, or indexes have no utterance, and
            this was not accepted; if nothing matches at all.
    """
    source = ", ".join(args.manifests or [args.arrays])
    # An exact match comes before one with the speed moved to the front.
    names = {espnet_speed_id(name): name for name in stored}
    names.update({name: name for name in stored})
    found = {u: stored[names[u]] for u in utt_ids if u in names}
    if not found:
        there = ", ".join(list(stored)[:_SHOWN]) or "none"
        raise ValueError(
            f"no utterance of {args.data_dir}/wav.scp (first "
            f"{', '.join(utt_ids[:_SHOWN])}) is in {source} (got {there}); choose by "
            f"--utt_id, now {args.utt_id}, whose ids are taken. Of icefall's manifests "
            "give those joined with the corpus: the others have no supervisions"
        )
    missing = [u for u in utt_ids if u not in found]
    used = {names[u] for u in found}
    unused = [name for name in stored if name not in used]
    messages = []
    if missing:
        messages.append(
            f"{len(missing)} of {len(utt_ids)} utterances in {args.data_dir}/wav.scp "
            f"have no codebook indexes, first {', '.join(missing[:_SHOWN])}"
        )
    if unused:
        messages.append(
            f"{len(unused)} of {len(stored)} indexes in {source} have no utterance in "
            f"wav.scp, first {', '.join(unused[:_SHOWN])}"
        )
    if messages and args.on_missing == "stop":
        raise ValueError(
            f"{'; '.join(messages)}; accept it by --on_missing skip: utterances "
            "without indexes train without the MVQ loss"
        )
    for message in messages:
        logging.warning(message)
    return found


def make_metadata(
    args: argparse.Namespace, stored: Dict[str, StoredIndexes], reader: ArrayReader
) -> IndexMetadata:
    """Say what the indexes mean, by options, quantizer or metadata, and manifests.

    Raises:
        ValueError: If two of these do not agree, or none says something needed.
    """
    known, origin = described(args)
    values: Dict[str, Any] = {}
    for name in _MEANING:
        given, there = getattr(args, name), known.get(name)
        if None not in (given, there) and given != there:
            raise ValueError(
                f"--{name}: got {given!r}, but {origin} says {there!r}; leave the "
                "option out, or give the file these indexes were made with"
            )
        values[name] = there if given is None else given
        if values[name] is None:
            values[name] = _DEFAULTS.get(name)
    shift = manifests_frame_shift(stored, values["sample_rate"])
    if values["frame_shift_samples"] is None:
        values["frame_shift_samples"] = shift
    elif shift not in (None, values["frame_shift_samples"]):
        raise ValueError(
            f"frame shift: got {values['frame_shift_samples']} samples from options or "
            f"{origin}, but {shift} from the manifests; expected the same"
        )
    if values["num_codebooks"] is None:
        first = next(iter(stored.values()))
        values["num_codebooks"] = reader.load(first).shape[1]
    unknown = [f"--{name}" for name in _MEANING if values[name] is None]
    if unknown:
        raise ValueError(
            f"neither the inputs nor {origin} say what these options do: "
            f"{', '.join(unknown)}; give them"
        )
    return IndexMetadata(
        encode=known.get("encode", {}),
        level=known.get("level", "frame"),
        espnet_mvq_version=__version__,
        **values,
    )


def described(args: argparse.Namespace) -> Tuple[Dict[str, Any], str]:
    """Return what the given file says of the indexes, and that file's name."""
    if args.metadata:
        return dataclasses.asdict(IndexMetadata.load(args.metadata)), args.metadata
    if not args.quantizer:
        return {}, "--quantizer_id"
    quantizer = load_quantizer(args.quantizer)
    known = {name: quantizer.provenance.get(name) for name in ("teacher", "layer")}
    known.update(
        quantizer_id=quantizer.id,
        num_codebooks=quantizer.num_codebooks,
        codebook_size=quantizer.codebook_size,
        level=quantizer.provenance.get("level", "frame"),
    )
    return known, args.quantizer


def manifests_frame_shift(
    stored: Dict[str, StoredIndexes], sample_rate: int
) -> Optional[int]:
    """Return the one frame shift of all manifests in samples; None if none says it."""
    first = next(iter(stored.values()))
    if first.frame_shift_s is None:
        return None
    for other in stored.values():
        if other.frame_shift_s != first.frame_shift_s:
            raise ValueError(
                f"{other.origin} has a frame shift of {other.frame_shift_s} s, "
                f"{first.origin} of {first.frame_shift_s} s; expected one teacher's"
            )
    samples = first.frame_shift_s * sample_rate
    if round(samples) < 1 or abs(samples - round(samples)) > 1e-3:
        raise ValueError(
            f"{first.origin}: frame shift {first.frame_shift_s} s at {sample_rate} Hz "
            f"is {samples} samples, expected a whole number; give --sample_rate"
        )
    return round(samples)


def convert(
    stored: Dict[str, StoredIndexes], reader: ArrayReader, shard: ShardWriter
) -> Dict[str, int]:
    """Write all indexes into a shard; return the frames of each utterance."""
    metadata, num_frames = shard.metadata, {}
    for utt_id, place in tqdm(stored.items(), unit="utt", mininterval=5):
        try:
            indexes = to_uint8(
                reader.load(place), metadata.codebook_size, metadata.num_codebooks
            )
        except ValueError as error:
            raise ValueError(f"utterance {utt_id} ({place.origin}): {error}") from error
        shard.write(utt_id, indexes)
        num_frames[utt_id] = len(indexes)
    return num_frames


if __name__ == "__main__":
    main()
