#!/usr/bin/env python3
"""Turn one job's share of a corpus into codebook indexes."""

import argparse
import logging
import time
from typing import Dict

from tqdm import tqdm

from espnet_mvq import __version__
from espnet_mvq.bin.options import (
    add_logging_options,
    add_teacher_options,
    command,
    setup_logging,
    teacher_from_options,
)
from espnet_mvq.indexes import IndexMetadata, ShardWriter
from espnet_mvq.indexes.scp import read_scp
from espnet_mvq.indexes.shard import finished_shard, shard_paths
from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.search import default_pair_candidates
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.audio import AudioError

# What the metadata tell of the search: options of `Quantizer.encode`
ENCODE_OPTIONS = (
    "beam_size",
    "refine_passes",
    "pair_candidates",
    "perturbation_rounds",
)


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Run the teacher over one job's share of a corpus and write its "
        "codebook indexes. Embeddings are quantized at once and never reach the disk. "
        "A shard that is there whole, of the same teacher and quantizer, is kept; one "
        "that broke off goes on after its last whole utterance.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--wav_scp", required=True, help="the job's share of wav.scp")
    parser.add_argument("--quantizer", required=True, help="quantizer.safetensors")
    parser.add_argument("--outdir", required=True, help="folder of the shards")
    parser.add_argument("--job", type=int, default=1, help="number of the job, from 1")
    add_teacher_options(parser)
    parser.add_argument(
        "--beam_size", type=int, default=8, help="beam of the code search; 1 = greedy"
    )
    parser.add_argument(
        "--refine_passes", type=int, default=5, help="refinement passes at most"
    )
    parser.add_argument(
        "--pair_candidates",
        type=int,
        help="entries that refinement tries together with a second codebook's answer; "
        "0: one codebook at a time (default: 1 with up to 8 codebooks, else 0)",
    )
    parser.add_argument(
        "--perturbation_rounds",
        type=int,
        default=0,
        help="times that refinement starts again from indexes changed at random; 16 "
        "take 1 %% off the error for a quarter of the speed",
    )
    parser.add_argument(
        "--on_error",
        default="stop",
        choices=("stop", "skip"),
        help="what to do about an utterance whose audio cannot be used",
    )
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    places = read_scp(args.wav_scp)
    quantizer = Quantizer.load(args.quantizer)
    teacher, device = teacher_from_options(args)
    check_quantizer(quantizer, teacher, args.quantizer)
    if args.pair_candidates is None:
        args.pair_candidates = default_pair_candidates(quantizer.num_codebooks)
    metadata = IndexMetadata(
        teacher=teacher.id,
        layer=teacher.layer,
        quantizer_id=quantizer.id,
        num_codebooks=quantizer.num_codebooks,
        codebook_size=quantizer.codebook_size,
        sample_rate=teacher.sample_rate,
        frame_shift_samples=teacher.frame_shift_samples,
        frame_offset_samples=teacher.frame_offset_samples,
        encode={name: getattr(args, name) for name in ENCODE_OPTIONS},
        espnet_mvq_version=__version__,
    )
    if is_finished(args, metadata, places):
        logging.info(f"job {args.job} in {args.outdir} is done already")
        return
    quantizer.to(device)
    with ShardWriter(args.outdir, args.job, metadata, resume_for=places) as shard:
        extract(teacher, quantizer, places, shard, args.on_error)


def check_quantizer(quantizer: Quantizer, teacher: Teacher, path: str) -> None:
    """Refuse a quantizer that was trained on another teacher or layer."""
    made_from = quantizer.provenance
    for name, here in (
        ("dim", teacher.dim),
        ("teacher", teacher.id),
        ("layer", teacher.layer),
    ):
        there = quantizer.dim if name == "dim" else made_from.get(name, here)
        if there != here:
            raise ValueError(
                f"quantizer {path}: made for {name} {there!r}, but the teacher "
                f"{teacher.spec} has {here!r}; train a quantizer for this teacher, or "
                "name the one it was trained on"
            )


def is_finished(
    args: argparse.Namespace, metadata: IndexMetadata, places: Dict[str, str]
) -> bool:
    """Say whether the shard is there, whole, and of these settings and utterances."""
    found = finished_shard(args.outdir, args.job)
    if found is None:
        return False
    differences = found.differences(metadata)
    _, scp, _ = shard_paths(args.outdir, args.job)
    if differences:
        logging.info(f"{scp} is of other settings, made again: {differences}")
        return False
    skipped = set(found.skipped if args.on_error == "skip" else ())
    return list(read_scp(scp)) == [u for u in places if u not in skipped]


def extract(
    teacher: Teacher,
    quantizer: Quantizer,
    places: Dict[str, str],
    shard: ShardWriter,
    on_error: str,
) -> None:
    """Write the codebook indexes of all utterances into a shard."""
    start, seconds = time.perf_counter(), 0.0
    kept = set(shard.kept)
    for utt_id, place in tqdm(places.items(), unit="utt", mininterval=5):
        if utt_id in kept:
            continue
        try:
            embeddings = teacher.embed_file(utt_id, place)
        except AudioError as error:
            if on_error == "stop":
                raise
            logging.warning(f"skipped: {error}")
            shard.metadata.skipped.append(utt_id)
            continue
        try:
            indexes = quantizer.encode(embeddings, **shard.metadata.encode)
        except ValueError as error:
            raise ValueError(f"utterance {utt_id}: {error}") from error
        shard.write(utt_id, indexes.cpu().numpy())
        seconds += len(embeddings) * teacher.frame_shift_samples / teacher.sample_rate
    elapsed = time.perf_counter() - start
    logging.info(
        f"{shard.metadata.num_utterances} utterances, {seconds / 3600:.2f} h of "
        f"speech in {elapsed:.0f} s ({elapsed / max(seconds, 1e-9):.3f} s per s), "
        f"{len(shard.metadata.skipped)} skipped"
    )


if __name__ == "__main__":
    main()
