"""Random frames of teacher embeddings, drawn over a whole corpus."""

import logging
import random
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from tqdm import tqdm

from espnet_mvq.extraction.embedding_stream import embed_batches, to_level
from espnet_mvq.files.scp import read_scp
from espnet_mvq.quantization.frames import Reservoir
from espnet_mvq.teachers import Teacher


def read_speakers(utt2spk: Optional[str], wav_scp: str) -> Optional[Dict[str, str]]:
    """Read the speaker of each utterance, None if no file says it."""
    path = Path(utt2spk) if utt2spk else Path(wav_scp).with_name("utt2spk")
    if not utt2spk and not path.is_file():
        logging.info(f"{path}: no such file; utterances are drawn without regard to it")
        return None
    return read_scp(path)


def shuffle_over_speakers(
    utt_ids: Sequence[str], speakers: Optional[Dict[str, str]], seed: int
) -> List[str]:
    """Shuffle utterances so that the first ones cover as many speakers as possible.

    One random utterance of each speaker comes first, then a second one of each, and so
    on. Without speakers, and for utterances without one, the order is just random.

    Args:
        utt_ids: Utterances, in any order.
        speakers: Speaker by utterance.
        seed: Seed of the order; the same utterances come in the same order.

    Returns:
        The utterances.
    """
    shuffled = sorted(utt_ids)
    random.Random(seed).shuffle(shuffled)
    if not speakers:
        return shuffled
    turns: Dict[str, int] = {}
    turn = {}
    for utt_id in shuffled:
        speaker = speakers.get(utt_id, utt_id)
        turn[utt_id] = turns[speaker] = turns.get(speaker, -1) + 1
    return sorted(shuffled, key=turn.__getitem__)


def sample_frames(
    teacher: Teacher,
    places: Dict[str, str],
    max_frames: int,
    seed: int = 0,
    speakers: Optional[Dict[str, str]] = None,
    oversampling: float = 2.0,
    level: str = "frame",
    on_error: str = "stop",
) -> torch.Tensor:
    """Sample frames of random utterances, all speakers alike.

    Args:
        teacher: The teacher.
        places: Audio by utterance.
        max_frames: Frames kept.
        seed: Seed of the choice of utterances and frames.
        speakers: Speaker by utterance.
        oversampling: The teacher runs on this many times as many frames as are kept:
            more utterances give fewer frames each.
        level: See `to_level`; an utterance counts as one frame if it is utterance.
        on_error: See `embed_utterances`.

    Returns:
        Embeddings, float, (at most max_frames, D).

    Raises:
        AudioError: See `embed_utterances`.
        ValueError: Likewise.
    """
    reservoir = Reservoir(max_frames, seed)
    wanted = oversampling * max_frames
    utt_ids = shuffle_over_speakers(list(places), speakers, seed)
    num_utterances = 0
    with tqdm(total=int(wanted), unit="frame", mininterval=5) as progress:
        for _, embeddings in embed_utterances(
            teacher, utt_ids, places, level, on_error
        ):
            reservoir.add(embeddings)
            num_utterances += 1
            progress.update(len(embeddings))
            if reservoir.num_seen >= wanted:
                break
    frames = reservoir.frames()
    logging.info(
        f"frames: {len(frames)} of the {reservoir.num_seen} in {num_utterances} random "
        f"utterances (the corpus has {len(places)})"
    )
    return frames


def embed_utterances(
    teacher: Teacher,
    utt_ids: Sequence[str],
    places: Dict[str, str],
    level: str = "frame",
    on_error: str = "stop",
) -> Iterator[Tuple[str, torch.Tensor]]:
    """Yield each utterance and its embeddings (T, D), one after the other.

    Args:
        teacher: The teacher.
        utt_ids: Utterances.
        places: Audio by utterance.
        level: See `to_level`.
        on_error: stop or skip: what to do about an utterance whose audio cannot be
            used, or of which the teacher makes no finite embeddings.

    Raises:
        AudioError: If there is one, and it is not to be skipped.
        ValueError: If all were skipped.
    """
    num_skipped = 0
    for batch in embed_batches(teacher, ([u] for u in utt_ids), places):
        for error in batch.errors.values():
            if on_error == "stop":
                raise error
            logging.warning(f"skipped: {error}")
            num_skipped += 1
        for utt_id, embeddings in batch.embeddings.items():
            yield utt_id, to_level(embeddings, level).cpu()
    if utt_ids and num_skipped == len(utt_ids):
        raise ValueError(
            f"no utterance is left, all {num_skipped} were skipped; the lines above "
            "say why"
        )
