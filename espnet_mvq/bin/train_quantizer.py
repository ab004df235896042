#!/usr/bin/env python3
"""Train a quantizer on a teacher's embeddings of random utterances."""

import argparse
import contextlib
import hashlib
import logging
import math
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterable, Optional, Tuple

import torch

from espnet_mvq.bin.options import (
    add_logging_options,
    add_on_error_option,
    add_teacher_options,
    command,
    setup_logging,
    teacher_from_options,
)
from espnet_mvq.extraction.frame_sampling import (
    read_speakers,
    sample_frames,
    shuffle_over_speakers,
)
from espnet_mvq.files.scp import read_scp
from espnet_mvq.indexes.metadata import LEVELS
from espnet_mvq.quantization import Quantizer, QuantizerTrainer
from espnet_mvq.quantization.quantizer_file import DamagedQuantizerError
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.audio import AudioError

# Codebooks, by level
_NUM_CODEBOOKS = {"frame": 16, "utterance": 1}
# What provenance does not say in files that are older than the option
_OLDER = {"level": "frame"}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Train a quantizer on a teacher's embeddings of random utterances. "
        "The embeddings stay in memory; nothing but the quantizer is written.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--wav_scp", required=True, help="wav.scp of the training set")
    parser.add_argument(
        "--utt2spk",
        help="speakers, so that all of them are covered (default: the file of this "
        "name beside wav.scp, if there is one)",
    )
    parser.add_argument("--quantizer", required=True, help="safetensors file to write")
    add_teacher_options(parser)
    parser.add_argument(
        "--level",
        default="frame",
        choices=LEVELS,
        help="utterance: trained on one vector of each utterance, the mean over its "
        "frames, as DeCoR has it",
    )
    parser.add_argument(
        "--num_codebooks",
        type=int,
        help="codebooks: bytes per frame (default: 16; at utterance level 1)",
    )
    parser.add_argument(
        "--codebook_size", type=int, default=256, help="entries of each codebook"
    )
    parser.add_argument(
        "--max_frames", type=int, default=160_000, help="training frames at most"
    )
    parser.add_argument(
        "--oversampling",
        type=float,
        default=2.0,
        help="the teacher runs on this many times as many frames as are kept, at least "
        "1: with more, fewer frames come from each utterance",
    )
    parser.add_argument(
        "--num_iterations", type=int, default=16, help="rounds of search and refit"
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
    add_on_error_option(parser)
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    if args.num_codebooks is None:
        args.num_codebooks = _NUM_CODEBOOKS[args.level]
    settings = trainer_settings(args)
    path = Path(args.quantizer)
    check_place(path)
    places = read_scp(args.wav_scp)
    check_enough(places, args)
    speakers = read_speakers(args.utt2spk, args.wav_scp)
    warn_of_unknown_speakers(places, speakers)
    teacher, device = teacher_from_options(args)
    provenance = {
        "teacher": teacher.id,
        "layer": teacher.layer,
        "level": args.level,
        "num_codebooks": args.num_codebooks,
        "codebook_size": args.codebook_size,
        "max_frames": args.max_frames,
        "oversampling": args.oversampling,
        "num_iterations": args.num_iterations,
        "normalize": args.normalize,
        "seed": args.seed,
        "corpus_utterances": len(places),
        "corpus": hash_ids(places),
    }
    if path.is_file() and is_made_from(path, provenance):
        logging.info(f"{path} is there already, trained with these options")
        return
    check_room(path, 4 * args.num_codebooks * args.codebook_size * teacher.dim)
    checkpoint = path.with_suffix(".checkpoint.pt")
    trainer = QuantizerTrainer(
        teacher.dim, **settings, device=device, checkpoint=checkpoint
    )
    frames, held_out = collect_frames(
        teacher,
        places,
        args.max_frames,
        args.seed,
        speakers,
        args.oversampling,
        args.level,
        args.on_error,
    )
    quantizer = trainer.fit(frames, held_out, provenance)
    save(quantizer, path)
    checkpoint.unlink(missing_ok=True)
    logging.info(f"wrote {path}: {quantizer}")


def trainer_settings(args: argparse.Namespace) -> Dict[str, Any]:
    """Return the settings of the trainer, before a teacher says its dimension.

    Raises:
        ValueError: If an option is out of range.
    """
    if not 1 <= args.oversampling < math.inf:
        raise ValueError(
            f"--oversampling: got {args.oversampling}, expected a number of at least 1"
        )
    names = "num_codebooks codebook_size seed num_iterations max_frames normalize"
    settings = {name: getattr(args, name) for name in names.split()}
    try:
        QuantizerTrainer(1, **settings)
    except ValueError as error:
        raise ValueError(f"--{error}") from error  # it begins with the setting's name
    return settings


def check_place(path: Path) -> None:
    """Refuse what cannot be a quantizer's file.

    Raises:
        ValueError: If it is a folder, or a file stands where its folder has to be.
    """
    if path.is_dir():
        raise ValueError(
            f"--quantizer: got the folder {path}, expected a file, as "
            f"{path / 'quantizer.safetensors'}"
        )
    for folder in path.parents:
        if folder.exists() and not folder.is_dir():
            raise ValueError(
                f"--quantizer: got {path}, but {folder} is a file; expected a folder"
            )


def check_room(path: Path, num_bytes: int) -> None:
    """Make the folder of a quantizer, and refuse one without room, by filling it once.

    Raises:
        OSError: If as many bytes cannot be written there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(bytes(num_bytes))
    except OSError as error:
        raise OSError(
            f"--quantizer: {path} cannot be written ({error.strerror}), expected room "
            f"for {num_bytes} bytes; make room there, or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def save(quantizer: Quantizer, path: Path) -> None:
    """Write a quantizer; where this fails, rescue it into the folder of temporaries.

    Raises:
        OSError: If it could not be written; says where it is instead.
    """
    try:
        quantizer.save(path)
    except OSError as error:
        reason = str(error)
        with contextlib.suppress(OSError):
            rescued = Path(tempfile.mkdtemp(prefix="espnet_mvq_"), path.name)
            quantizer.save(rescued)
            reason += f". The trained quantizer is in {rescued}: move it to {path}"
        raise OSError(reason) from error


def warn_of_unknown_speakers(
    places: Dict[str, str], speakers: Optional[Dict[str, str]]
) -> None:
    """Log how many utterances have no speaker, where others have."""
    unknown = [] if speakers is None else [u for u in places if u not in speakers]
    if unknown:
        logging.warning(
            f"utt2spk: {len(unknown)} of {len(places)} utterances are not in it, first "
            f"{unknown[0]}; each counts as a speaker of its own"
        )


def hash_ids(utt_ids: Iterable[str]) -> str:
    """Hash the utterances of a corpus, in whatever order."""
    return hashlib.sha256("\n".join(sorted(utt_ids)).encode()).hexdigest()[:16]


def is_made_from(path: Path, provenance: Dict[str, object]) -> bool:
    """Say whether a quantizer file is whole and was trained with these options.

    Raises:
        ValueError: If it is something else than a quantizer, which may not be replaced.
    """
    try:
        stored = Quantizer.load(path).provenance
    except ValueError as error:
        damaged = isinstance(error, DamagedQuantizerError)
        if not damaged or path.suffix != ".safetensors":
            raise ValueError(
                f"--quantizer: {error}; the file is not replaced: name another one, or "
                "take it away"
            ) from error
        logging.warning(f"{error}: trained anew")
        return False
    stored = {**_OLDER, "corpus": provenance["corpus"], **stored}
    other = [key for key, value in provenance.items() if stored.get(key) != value]
    if other:
        logging.warning(
            f"{path} was trained with another {', '.join(other)}; it is replaced when "
            "the training is done"
        )
    return not other


def check_enough(places: Dict[str, str], args: argparse.Namespace) -> None:
    """Refuse, before the teacher runs, what gives too few vectors of utterances.

    Raises:
        ValueError: If there is only one utterance, or codebooks have more entries than
            there are vectors of utterances to train on.
    """
    if len(places) < 2:
        raise ValueError(
            f"--wav_scp: got {len(places)} utterances in {args.wav_scp}, expected at "
            "least 2: one is held out"
        )
    num_vectors = min(args.max_frames, len(places) - num_held_out(len(places)))
    if args.level == "utterance" and num_vectors < args.codebook_size:
        raise ValueError(
            f"--codebook_size: got {args.codebook_size}, expected at most "
            f"{num_vectors}: at utterance level the {len(places)} utterances give that "
            "many training vectors; use smaller codebooks or more utterances"
        )


def num_held_out(num_utterances: int) -> int:
    """Return how many utterances the quantizer is not trained on."""
    return max(1, num_utterances // 20)  # one in twenty


def collect_frames(
    teacher: Teacher,
    places: Dict[str, str],
    max_frames: int,
    seed: int,
    speakers: Optional[Dict[str, str]] = None,
    oversampling: float = 2.0,
    level: str = "frame",
    on_error: str = "stop",
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sample training frames, and held-out frames of other utterances.

    Args:
        teacher: The teacher.
        places: Audio by utterance.
        max_frames: Training frames kept; at most a tenth as many are held out.
        seed: Seed of the choice.
        speakers: Speaker by utterance.
        oversampling: See `sample_frames`.
        level: Likewise.
        on_error: Likewise.

    Returns:
        Training and held-out frames, float, (F, D).

    Raises:
        ValueError: If no utterance of one of the two can be used.
    """
    utt_ids = shuffle_over_speakers(list(places), speakers, seed)
    border = num_held_out(len(utt_ids))
    parts = (
        ("held-out", utt_ids[:border], max(1, min(10_000, max_frames // 10))),
        ("training", utt_ids[border:], max_frames),
    )
    frames = []
    for part, chosen, count in parts:
        try:
            frames.append(
                sample_frames(
                    teacher,
                    {utt_id: places[utt_id] for utt_id in chosen},
                    count,
                    seed,
                    speakers,
                    oversampling,
                    level,
                    on_error,
                )
            )
        except AudioError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{part} utterances: {error}; mend them, or take another --seed"
            ) from error
    held_out, training = frames
    return training, held_out


if __name__ == "__main__":
    main()
