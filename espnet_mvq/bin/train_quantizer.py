#!/usr/bin/env python3
"""Train a quantizer on a teacher's embeddings of random utterances."""

import argparse
import logging
import random
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import torch
from tqdm import tqdm

from espnet_mvq.bin.options import (
    add_logging_options,
    add_teacher_options,
    command,
    setup_logging,
    teacher_from_options,
)
from espnet_mvq.indexes.scp import read_scp
from espnet_mvq.quantization import Quantizer, QuantizerTrainer
from espnet_mvq.quantization.frames import Reservoir
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.audio import read_audio


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Train a quantizer on a teacher's embeddings of random utterances. "
        "The embeddings stay in memory; nothing but the quantizer is written.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--wav_scp", required=True, help="wav.scp of the training set")
    parser.add_argument("--quantizer", required=True, help="safetensors file to write")
    add_teacher_options(parser)
    parser.add_argument(
        "--num_codebooks", type=int, default=16, help="codebooks: bytes per frame"
    )
    parser.add_argument(
        "--codebook_size", type=int, default=256, help="entries of each codebook"
    )
    parser.add_argument(
        "--max_frames", type=int, default=160_000, help="training frames at most"
    )
    parser.add_argument(
        "--num_iterations", type=int, default=12, help="rounds of search and refit"
    )
    parser.add_argument(
        "--normalize",
        default="mean",
        choices=("mean", "mean_std"),
        help="mean_std: all channels count alike",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all that is random"
    )
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    places = read_scp(args.wav_scp)
    teacher, device = teacher_from_options(args)
    path = Path(args.quantizer)
    provenance = {
        "teacher": teacher.id,
        "layer": teacher.layer,
        "num_codebooks": args.num_codebooks,
        "codebook_size": args.codebook_size,
        "max_frames": args.max_frames,
        "num_iterations": args.num_iterations,
        "normalize": args.normalize,
        "seed": args.seed,
        "corpus_utterances": len(places),
    }
    if path.is_file() and is_made_from(path, provenance):
        logging.info(f"{path} is there already, trained with these options")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = path.with_suffix(".checkpoint.pt")
    trainer = QuantizerTrainer(
        teacher.dim,
        args.num_codebooks,
        codebook_size=args.codebook_size,
        seed=args.seed,
        num_iterations=args.num_iterations,
        normalize=args.normalize,
        device=device,
        checkpoint=checkpoint,
    )
    frames, held_out = collect_frames(teacher, places, args.max_frames, args.seed)
    quantizer = trainer.fit(frames, held_out, provenance)
    quantizer.save(path)
    checkpoint.unlink(missing_ok=True)
    logging.info(f"wrote {path}: {quantizer}")


def is_made_from(path: Path, provenance: Dict[str, object]) -> bool:
    """Say whether a quantizer file is whole and was trained with these options."""
    try:
        stored = Quantizer.load(path).provenance
    except ValueError as error:
        logging.warning(f"{error}: trained anew")
        return False
    other = [key for key, value in provenance.items() if stored.get(key) != value]
    if other:
        logging.warning(
            f"{path} was trained with another {', '.join(other)}; it is replaced when "
            "the training is done"
        )
    return not other


def collect_frames(
    teacher: Teacher, places: Dict[str, str], max_frames: int, seed: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Embed random utterances of the whole corpus and sample their frames.

    The teacher runs on about twice as much audio as frames are kept, so that these
    come from many utterances. One utterance in twenty (at least one) is held out.

    Args:
        teacher: The teacher.
        places: Audio by utterance.
        max_frames: Training frames kept.
        seed: Seed of the choice.

    Returns:
        Training and held-out frames, float, (F, D).
    """
    if len(places) < 2:
        raise ValueError(
            f"got {len(places)} utterances, expected at least 2: one is held out"
        )
    utt_ids = sorted(places)
    random.Random(seed).shuffle(utt_ids)
    num_held_out = max(1, len(utt_ids) // 20)
    held_out = Reservoir(max(1, min(10_000, max_frames // 10)), seed)
    training = Reservoir(max_frames, seed)
    for reservoir, chosen in (
        (held_out, utt_ids[:num_held_out]),
        (training, utt_ids[num_held_out:]),
    ):
        wanted = 2 * reservoir.max_frames
        progress = tqdm(total=wanted, unit="frame", mininterval=5)
        for embeddings in embed_utterances(teacher, chosen, places):
            reservoir.add(embeddings)
            progress.update(len(embeddings))
            if reservoir.num_seen >= wanted:
                break
        progress.close()
    logging.info(
        f"frames: {training.num_seen} seen for training and {held_out.num_seen} held "
        f"out, of {len(utt_ids)} utterances in the corpus"
    )
    return training.frames(), held_out.frames()


def embed_utterances(
    teacher: Teacher, utt_ids: List[str], places: Dict[str, str]
) -> Iterator[torch.Tensor]:
    """Yield the embeddings (T, D) of one utterance after the other."""
    for utt_id in utt_ids:
        speech = read_audio(utt_id, places[utt_id], teacher.sample_rate)
        embeddings = teacher.embed_utterance(speech)
        if not embeddings.isfinite().all():
            raise ValueError(
                f"utterance {utt_id}: the teacher {teacher.spec} gives NaN or infinity "
                f"at layer {teacher.layer}; check the audio and the teacher's precision"
            )
        yield embeddings.cpu()


if __name__ == "__main__":
    main()
