#!/usr/bin/env python3
"""Turn one job's share of a corpus into codebook indexes."""

import argparse
import logging
import time
from typing import Callable, Dict, List, Tuple

import numpy as np
import torch
from tqdm import tqdm

from espnet_mvq import __version__
from espnet_mvq.bin.options import (
    add_logging_options,
    add_on_error_option,
    add_teacher_options,
    command,
    setup_logging,
    teacher_from_options,
)
from espnet_mvq.extraction.embedding_stream import (
    embed_batches,
    plan_batches,
    read_num_samples,
    to_level,
)
from espnet_mvq.files.scp import read_scp
from espnet_mvq.indexes import IndexMetadata, ShardWriter
from espnet_mvq.indexes.metadata import LEVELS, EmbeddingMetadata, FrameMetadata
from espnet_mvq.indexes.shard import finished_shard, shard_paths
from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.search import default_pair_candidates
from espnet_mvq.teachers import Teacher

# What the metadata tell of the search: options of `Quantizer.encode`
ENCODE_OPTIONS = (
    "beam_size",
    "refine_passes",
    "pair_candidates",
    "perturbation_rounds",
)
# From the embeddings (T, D) of a batch of utterances to what is stored of each
Convert = Callable[[List[torch.Tensor]], List[np.ndarray]]


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Run the teacher over one job's share of a corpus and write its "
        "codebook indexes. Embeddings are quantized at once and never reach the disk. "
        "A shard that is there whole, of the same teacher and quantizer, is kept; one "
        "that broke off keeps its whole utterances and goes on with the others.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--wav_scp", required=True, help="the job's share of wav.scp")
    parser.add_argument(
        "--utt2num_samples",
        help="samples of each utterance, by which batches are made (default: the file "
        "of this name beside wav.scp, else the headers of the audio)",
    )
    parser.add_argument(
        "--target",
        default="indexes",
        choices=("indexes", "embeddings"),
        help="embeddings: store them as they are, as float16: 2 D bytes a frame, for "
        "inspection and for classic distillation",
    )
    parser.add_argument(
        "--level",
        default="frame",
        choices=LEVELS,
        help="utterance: one row for each utterance, of the mean over its frames, as "
        "DeCoR has it; the quantizer must be trained so too",
    )
    parser.add_argument(
        "--quantizer", help="quantizer.safetensors; needed but for --target embeddings"
    )
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
        "take 1 %% (8 codebooks) to 4 %% (16) off the error and leave a third to a "
        "tenth of the speed",
    )
    add_on_error_option(parser)
    parser.add_argument(
        "--num_workers", type=int, default=2, help="threads that read and decode audio"
    )
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    for option in ("job", "num_workers"):
        if getattr(args, option) < 1:
            raise ValueError(
                f"--{option}: got {getattr(args, option)}, expected at least 1"
            )
    if (args.quantizer is None) != (args.target == "embeddings"):
        raise ValueError(
            f"--quantizer: got {args.quantizer}; expected a file with --target indexes "
            "and none with --target embeddings"
        )
    places = read_scp(args.wav_scp)
    if not places:
        raise ValueError(f"{args.wav_scp}: got no utterance, expected at least one")
    quantizer = None if args.quantizer is None else Quantizer.load(args.quantizer)
    teacher, device = teacher_from_options(args)
    if quantizer is None:
        metadata, convert = embedding_target(teacher, args.level)
    else:
        check_quantizer(quantizer, teacher, args.quantizer, args.level)
        metadata, convert = index_target(args, teacher, quantizer.to(device))
    if is_finished(args, teacher, metadata, places):
        logging.info(f"job {args.job} in {args.outdir} is done already")
        return
    if teacher.reads_audio:
        num_samples = read_num_samples(places, args.utt2num_samples, args.wav_scp)
    else:
        num_samples = dict.fromkeys(places, 0)
    with ShardWriter(args.outdir, args.job, metadata, resume_for=places) as shard:
        extract(args, teacher, convert, places, num_samples, shard)


def embedding_target(teacher: Teacher, level: str) -> Tuple[FrameMetadata, Convert]:
    """Return the metadata of stored embeddings, and what makes them float16."""

    def convert(embeddings: List[torch.Tensor]) -> List[np.ndarray]:
        vectors = (to_level(frames, level) for frames in embeddings)
        return [part.half().cpu().numpy() for part in vectors]

    metadata = EmbeddingMetadata(dim=teacher.dim, level=level, **frames_of(teacher))
    return metadata, convert


def index_target(
    args: argparse.Namespace, teacher: Teacher, quantizer: Quantizer
) -> Tuple[FrameMetadata, Convert]:
    """Return the metadata of codebook indexes, and what finds them."""
    if args.pair_candidates is None:
        args.pair_candidates = default_pair_candidates(quantizer.num_codebooks)
    options = {name: getattr(args, name) for name in ENCODE_OPTIONS}
    metadata = IndexMetadata(
        quantizer_id=quantizer.id,
        num_codebooks=quantizer.num_codebooks,
        codebook_size=quantizer.codebook_size,
        encode=options,
        level=args.level,
        **frames_of(teacher),
    )

    def convert(embeddings: List[torch.Tensor]) -> List[np.ndarray]:
        vectors = [to_level(frames, args.level) for frames in embeddings]
        indexes = quantizer.encode(torch.cat(vectors), **options).cpu()
        return [part.numpy() for part in indexes.split([len(v) for v in vectors])]

    return metadata, convert


def frames_of(teacher: Teacher) -> Dict[str, object]:
    """Return what metadata say of a teacher's frames."""
    return dict(
        teacher=teacher.id,
        layer=teacher.layer,
        sample_rate=teacher.sample_rate,
        frame_shift_samples=teacher.frame_shift_samples,
        frame_offset_samples=teacher.frame_offset_samples,
        espnet_mvq_version=__version__,
    )


def check_quantizer(
    quantizer: Quantizer, teacher: Teacher, path: str, level: str = "frame"
) -> None:
    """Refuse a quantizer that was trained on another teacher, layer or level."""
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
    there = made_from.get("level", "frame")  # older ones do not say it
    if there != level:
        raise ValueError(
            f"quantizer {path}: made for --level {there}, got --level {level}; train a "
            "quantizer for this level, or extract at the one it was trained on"
        )


def is_finished(
    args: argparse.Namespace,
    teacher: Teacher,
    metadata: FrameMetadata,
    places: Dict[str, str],
) -> bool:
    """Say whether the shard is there, whole, and of these settings and utterances.

    Utterances that were skipped count as done while they still cannot be used.
    """
    try:
        found = finished_shard(args.outdir, args.job, type(metadata))
    except ValueError as error:
        logging.warning(f"{error}: the shard is made again")
        return False
    if found is None:
        return False
    differences = found.differences(metadata)
    _, scp, _ = shard_paths(args.outdir, args.job, metadata.STEM)
    if differences:
        logging.info(f"{scp} is of other settings, made again: {differences}")
        return False
    skipped = [utt_id for utt_id in found.skipped if utt_id in places]
    if set(read_scp(scp)) != set(places).difference(skipped):
        return False
    tried = embed_batches(teacher, ([utt_id] for utt_id in skipped), places)
    still = [error for batch in tried for error in batch.errors.values()]
    if still and args.on_error == "stop":
        raise still[0]
    if len(still) < len(skipped):
        logging.info(f"{scp}: {len(skipped) - len(still)} skipped before can be used")
        return False
    for error in still:
        logging.warning(f"skipped: {error}")
    return True


def extract(
    args: argparse.Namespace,
    teacher: Teacher,
    convert: Convert,
    places: Dict[str, str],
    num_samples: Dict[str, int],
    shard: ShardWriter,
) -> None:
    """Write all utterances into a shard."""
    kept = set(shard.kept)
    # A batch that broke off runs as a whole again: float sums, and with them a rare
    # index, depend on how many utterances run at once.
    batches = [b for b in plan_batches(teacher, num_samples) if not kept.issuperset(b)]
    hours_left = sum(num_samples[u] for b in batches for u in b) / _per_hour(teacher)
    start, hours = time.perf_counter(), 0.0
    progress = tqdm(
        total=hours_left or None,
        unit="h",
        mininterval=5,
        bar_format=(
            "{percentage:3.0f}% of {total:.2f} h [{elapsed}<{remaining}{postfix}]"
            if hours_left
            else None
        ),
    )
    with progress:
        for batch in embed_batches(teacher, batches, places, args.num_workers):
            for utt_id, error in batch.errors.items():
                if args.on_error == "stop":
                    raise error
                logging.warning(f"skipped: {error}")
                shard.metadata.skipped.append(utt_id)
            if not batch.embeddings:
                continue
            arrays = convert(list(batch.embeddings.values()))
            for utt_id, array in zip(batch.embeddings, arrays):
                if utt_id not in kept:
                    shard.write(utt_id, array)
            frames = sum(map(len, batch.embeddings.values()))
            done = frames * teacher.frame_shift_samples / _per_hour(teacher)
            hours += done
            progress.update(done)
            elapsed = time.perf_counter() - start
            progress.set_postfix_str(f"{elapsed / 3600 / hours:.4f} s per s")
    elapsed = time.perf_counter() - start
    logging.info(
        f"{shard.metadata.num_utterances} utterances, {hours:.2f} h of speech in "
        f"{elapsed:.0f} s ({elapsed / 3600 / max(hours, 1e-9):.4f} s per s), "
        f"{len(shard.metadata.skipped)} skipped"
    )


def _per_hour(teacher: Teacher) -> int:
    """Return the samples of an hour."""
    return 3600 * teacher.sample_rate


if __name__ == "__main__":
    main()
