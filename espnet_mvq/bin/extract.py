#!/usr/bin/env python3
"""Turn one job's share of a corpus into codebook indexes."""

import argparse
import functools

import torch

from espnet_mvq.bin.options import (
    add_num_workers_option,
    add_on_error_option,
    add_teacher_options,
    command,
    command_parser,
    defaults_of,
    load_ctc_teacher,
    load_teacher,
    setup_logging,
)
from espnet_mvq.extraction.pipeline import extract_shard
from espnet_mvq.indexes.metadata import LEVELS
from espnet_mvq.quantization import Quantizer

# Options of `Quantizer.encode`, which the metadata store
ENCODE_OPTIONS = (
    "beam_size",
    "refine_passes",
    "pair_candidates",
    "perturbation_rounds",
)


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Run the teacher over one job's share of a corpus and write its "
        "codebook indexes. Embeddings are quantized at once and never reach the disk. "
        "A complete shard of the same teacher and quantizer is kept; an interrupted "
        "one keeps its complete utterances and is resumed.",
    )
    parser.add_argument("--wav_scp", required=True, help="the job's share of wav.scp")
    parser.add_argument(
        "--utt2num_samples",
        help="number of samples of each utterance, from which batches are formed "
        "(default: the file of this name beside wav.scp, else the audio's headers)",
    )
    parser.add_argument(
        "--target",
        default="indexes",
        choices=("indexes", "embeddings", "posteriors"),
        help="kind of the arrays; embeddings: float16, 2 D bytes per frame, for "
        "inspection and for distillation from embeddings; posteriors: the most likely "
        "tokens of a teacher with a CTC head, for posterior KD",
    )
    parser.add_argument(
        "--top_k",
        type=int,
        default=8,
        help="tokens of a frame that posteriors have one by one, in 4 k + 2 bytes; all "
        "others together are one class",
    )
    parser.add_argument(
        "--level",
        choices=LEVELS,
        help="rows of an array; utterance: one row, the mean over the frames, as in "
        "DeCoR; the quantizer must be trained at the same level",
    )
    parser.add_argument(
        "--quantizer", help="quantizer.safetensors; with --target indexes alone"
    )
    parser.add_argument("--outdir", required=True, help="folder of the shards")
    parser.add_argument("--job", type=int, help="number of the job, counted from 1")
    add_teacher_options(parser)
    parser.add_argument(
        "--beam_size", type=int, help="beam of the code search; 1 = greedy"
    )
    parser.add_argument(
        "--refine_passes", type=int, help="maximum number of refinement passes"
    )
    parser.add_argument(
        "--pair_candidates",
        type=int,
        help="entries of a codebook that refinement combines with entries of a second "
        "one; 0: one codebook at a time (default: 1 for up to 8 codebooks, else 0)",
    )
    parser.add_argument(
        "--perturbation_rounds",
        type=int,
        help="restarts of refinement from randomly changed indexes; 16 restarts reduce "
        "the error by 1 %% (8 codebooks) to 4 %% (16 codebooks), at a third to a tenth "
        "of the speed",
    )
    add_on_error_option(parser)
    add_num_workers_option(parser)
    parser.add_argument(
        "--num_threads",
        type=int,
        default=1,
        help="CPU threads of teacher and code search; for more speed, run more jobs",
    )
    parser.set_defaults(
        **defaults_of(extract_shard, "level", "job"),
        **defaults_of(Quantizer.encode, *ENCODE_OPTIONS),
    )
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    if (args.quantizer is None) == (args.target == "indexes"):
        raise ValueError(
            f"--quantizer: got {args.quantizer}; expected a file with --target indexes "
            f"and none with --target {args.target}"
        )
    of_posteriors = args.target == "posteriors"
    if of_posteriors and args.layer != -1:
        raise ValueError(
            f"--layer: got {args.layer}, expected none (-1) with --target posteriors, "
            "which are those of the CTC head"
        )
    if args.num_threads < 1:
        raise ValueError(f"--num_threads: got {args.num_threads}, expected at least 1")
    # With torch's default, each of several jobs would use all cores.
    torch.set_num_threads(args.num_threads)
    extract_shard(
        functools.partial(load_ctc_teacher if of_posteriors else load_teacher, args),
        args.quantizer,
        args.wav_scp,
        args.outdir,
        job=args.job,
        level=args.level,
        top_k=args.top_k if of_posteriors else None,
        encode_options={name: getattr(args, name) for name in ENCODE_OPTIONS},
        utt2num_samples=args.utt2num_samples,
        on_error=args.on_error,
        num_workers=args.num_workers,
    )


if __name__ == "__main__":
    main()
