#!/usr/bin/env python3
"""Report the quality of a quantizer, as text and JSON."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import torch

from espnet_mvq import __version__
from espnet_mvq.bin.extract import check_quantizer
from espnet_mvq.bin.options import (
    add_logging_options,
    add_on_error_option,
    add_teacher_options,
    command,
    setup_logging,
    teacher_from_options,
)
from espnet_mvq.exchange.importing import load_quantizer
from espnet_mvq.extraction.frame_sampling import embed_utterances, shuffle_over_speakers
from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.classifier_quantizer import ClassifierQuantizer
from espnet_mvq.quantization.frames import Reservoir
from espnet_mvq.quantization.quality import QualityReport, measure_quality
from espnet_mvq.quantization.quality_text import text_report
from espnet_mvq.teachers.feature_files import read_features

FILE_FORMAT = "espnet_mvq.quality_report"
FILE_VERSION = 1
_CHUNK_FRAMES = 8192  # frames of a memory map that are read at once


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Report how good a quantizer is on embeddings it was not trained "
        "on: what it loses, how its codebooks are used, and whether its indexes can be "
        "predicted. Prints the report and writes quantizer_report.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "quantizer",
        help="quantizer.safetensors, or a checkpoint of multi_quantization (any other "
        "ending)",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--feats",
        help="embeddings: .npy (all frames), .scp of .npy files or of Kaldi's "
        "ARK:OFFSET, .h5 or .hdf5",
    )
    source.add_argument(
        "--wav_scp", help="audio in place of embeddings; needs --teacher"
    )
    add_teacher_options(parser, required=False)
    parser.add_argument(
        "--max_frames",
        type=int,
        default=20_000,
        help="frames measured at most, a random sample; take 2000 for a quantizer of "
        "multi_quantization, whose search is slow",
    )
    parser.add_argument(
        "--output_dir", help="folder of the report (default: the quantizer's)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all that is random"
    )
    add_on_error_option(parser)
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    if args.wav_scp and not args.teacher:
        parser.error("--wav_scp needs --teacher and --layer")
    if args.max_frames < 2:
        parser.error(f"--max_frames: got {args.max_frames}, expected at least 2")
    setup_logging(args)
    folder = Path(args.output_dir or Path(args.quantizer).parent)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir: got the file {folder}, expected a folder")
    quantizer = load_quantizer(args.quantizer)
    source = args.feats or args.wav_scp
    if args.feats:
        utterances = features_of(args.feats, quantizer)
        stop_after = float("inf")
    else:
        utterances = embeddings_of(args, quantizer)
        stop_after = 2 * args.max_frames
    frames, utt_ids, num_seen = sample(
        utterances, args.max_frames, args.seed, stop_after
    )
    if not num_seen:
        raise ValueError(f"{source}: got no frames, expected at least 2")
    logging.info(f"frames: {len(frames)} measured of {num_seen} seen")
    try:
        quality = measure_quality(quantizer, frames, utt_ids=utt_ids, seed=args.seed)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    content = describe(args, quantizer, quality)
    content["frames"].update(seen=num_seen, utterances=len(set(utt_ids)))
    print(text_report(content), flush=True)
    write_report(content, folder)


def features_of(path: str, quantizer: Quantizer) -> Iterator[Tuple[str, torch.Tensor]]:
    """Yield (utt_id, embeddings (T, D)) of a file, big arrays in pieces.

    Raises:
        ValueError: If the embeddings' dimension is not the quantizer's.
    """
    for utt_id, embeddings in read_features(path):
        if embeddings.shape[1] != quantizer.dim:
            raise ValueError(
                f"utterance {utt_id} in {path}: got dimension {embeddings.shape[1]}, "
                f"expected {quantizer.dim} as the quantizer has; give embeddings of "
                "the teacher and layer it was trained on"
            )
        for start in range(0, len(embeddings), _CHUNK_FRAMES):
            part = embeddings[start : start + _CHUNK_FRAMES]
            yield utt_id, torch.from_numpy(np.array(part, dtype=np.float32))


def embeddings_of(
    args: argparse.Namespace, quantizer: Quantizer
) -> Iterator[Tuple[str, torch.Tensor]]:
    """Yield (utt_id, embeddings (T, D)) of a teacher, utterances in random order."""
    places = read_scp(args.wav_scp)
    teacher, _ = teacher_from_options(args)
    level = quantizer.provenance.get("level", "frame")
    check_quantizer(quantizer, teacher, args.quantizer, level)
    utt_ids = shuffle_over_speakers(list(places), None, args.seed)
    yield from embed_utterances(teacher, utt_ids, places, level, args.on_error)


def sample(
    utterances: Iterator[Tuple[str, torch.Tensor]],
    max_frames: int,
    seed: int,
    stop_after: float,
) -> Tuple[torch.Tensor, List[str], int]:
    """Sample frames, and remember their utterances.

    Args:
        utterances: (utt_id, embeddings (T, D)).
        max_frames: Frames kept.
        seed: Seed of the choice.
        stop_after: Utterances are read until so many frames were seen.

    Returns:
        Frames, float, (F, D), the utterance of each, and how many frames were seen.
    """
    # Both draw the same keys, so they keep the same frames.
    frames, numbers = Reservoir(max_frames, seed), Reservoir(max_frames, seed)
    names: Dict[str, int] = {}
    for utt_id, embeddings in utterances:
        number = names.setdefault(utt_id, len(names))
        frames.add(embeddings)
        numbers.add(torch.full((len(embeddings), 1), number))
        if frames.num_seen >= stop_after:
            break
    if not names:
        return torch.empty(0), [], 0
    utt_ids = list(names)
    chosen = [utt_ids[number] for number in numbers.frames().flatten().tolist()]
    return frames.frames(), chosen, frames.num_seen


def describe(
    args: argparse.Namespace, quantizer: Quantizer, quality: QualityReport
) -> Dict[str, Any]:
    """Return all that the report says, for JSON."""
    return {
        "format": FILE_FORMAT,
        "version": FILE_VERSION,
        "espnet_mvq_version": __version__,
        "quantizer": {
            "file": args.quantizer,
            "id": quantizer.id,
            "num_codebooks": quantizer.num_codebooks,
            "codebook_size": quantizer.codebook_size,
            "dim": quantizer.dim,
            "has_classifier": isinstance(quantizer, ClassifierQuantizer),
            "provenance": quantizer.provenance,
        },
        "frames": {
            "source": args.feats or args.wav_scp,
            "measured": quality.num_frames,
        },
        "seed": args.seed,
        "quality": quality.to_dict(),
    }


def write_report(content: Dict[str, Any], folder: Path) -> None:
    """Write the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False)
    write_text(folder / "quantizer_report.json", text + "\n")


if __name__ == "__main__":
    main()
