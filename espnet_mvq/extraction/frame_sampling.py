"""Random frames of teacher embeddings, drawn over a whole corpus."""

import logging
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import torch
from tqdm import tqdm

from espnet_mvq.extraction.embedding_stream import embed_utterances
from espnet_mvq.extraction.selection import shuffle_over_speakers
from espnet_mvq.quantization.frames import Reservoir
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.audio import AudioError


@dataclass
class FrameSample:
    """Frames drawn from a stream of utterances.

    Attributes:
        frames: Float, (F, D).
        utt_ids: Utterance of each frame.
        num_seen: Frames that were read.
        num_utterances: Utterances that were read.
    """

    frames: torch.Tensor
    utt_ids: List[str]
    num_seen: int
    num_utterances: int


def draw_frames(
    utterances: Iterable[Tuple[str, torch.Tensor]],
    max_frames: int,
    seed: int = 0,
    stop_after: float = float("inf"),
) -> FrameSample:
    """Draw random frames of utterances, and remember where each comes from.

    Args:
        utterances: Utterance and its embeddings (T, D); may come in several pieces.
        max_frames: Frames kept.
        seed: Seed of the choice.
        stop_after: Utterances are read until so many frames were seen.

    Returns:
        The sample, in the order of the stream.
    """
    # Both draw the same keys, so they keep the same frames.
    frames, numbers = Reservoir(max_frames, seed), Reservoir(max_frames, seed)
    number_of: Dict[str, int] = {}
    for utt_id, embeddings in utterances:
        number = number_of.setdefault(utt_id, len(number_of))
        frames.add(embeddings)
        numbers.add(torch.full((len(embeddings), 1), number))
        if frames.num_seen >= stop_after:
            break
    if not number_of:
        return FrameSample(torch.empty(0), [], 0, 0)
    names = list(number_of)
    utt_ids = [names[number] for number in numbers.frames().flatten().tolist()]
    return FrameSample(frames.frames(), utt_ids, frames.num_seen, len(names))


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
    """Sample a teacher's embeddings of random utterances of all speakers.

    Args:
        teacher: The teacher.
        places: Audio by utterance.
        max_frames: Frames kept.
        seed: Seed of the choice of utterances and frames.
        speakers: Speaker by utterance.
        oversampling: The teacher runs on this many times as many frames as are kept:
            more utterances give fewer frames each.
        level: See `to_level`; at utterance level an utterance counts as one frame.
        on_error: See `embed_utterances`.

    Returns:
        Embeddings, float, (at most max_frames, D).

    Raises:
        AudioError: See `embed_utterances`.
        ValueError: Likewise.
    """
    wanted = oversampling * max_frames
    utt_ids = shuffle_over_speakers(list(places), speakers, seed)
    stream = embed_utterances(teacher, utt_ids, places, level, on_error)
    sample = draw_frames(_with_progress(stream, wanted), max_frames, seed, wanted)
    logging.info(
        f"frames: {len(sample.frames)} of the {sample.num_seen} in "
        f"{sample.num_utterances} random utterances (the corpus has {len(places)})"
    )
    return sample.frames


def _with_progress(
    utterances: Iterable[Tuple[str, torch.Tensor]], total: float
) -> Iterator[Tuple[str, torch.Tensor]]:
    """Pass utterances on and show how many of the frames have been read."""
    with tqdm(total=int(total), unit="frame", mininterval=5) as progress:
        for utt_id, embeddings in utterances:
            progress.update(len(embeddings))
            yield utt_id, embeddings


def num_held_out(num_utterances: int) -> int:
    """Number of utterances, one in twenty, that a quantizer is not trained on."""
    return max(1, num_utterances // 20)


def sample_training_frames(
    teacher: Teacher, places: Dict[str, str], max_frames: int, seed: int, **options: Any
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sample training frames, and held-out frames of other utterances.

    Args:
        teacher: The teacher.
        places: Audio by utterance.
        max_frames: Training frames kept; at most a tenth as many are held out.
        seed: Seed of the choice.
        **options: Further arguments of `sample_frames`.

    Returns:
        Training and held-out frames, float, (F, D).

    Raises:
        AudioError: See `embed_utterances`.
        ValueError: If all utterances of one of the two were skipped.
    """
    utt_ids = shuffle_over_speakers(list(places), options.get("speakers"), seed)
    border = num_held_out(len(utt_ids))

    def sample(part: str, chosen: List[str], count: int) -> torch.Tensor:
        audio = {utt_id: places[utt_id] for utt_id in chosen}
        try:
            return sample_frames(teacher, audio, count, seed, **options)
        except AudioError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{part} utterances: {error}; repair them, or use another --seed"
            ) from error

    held_out = sample(
        "held-out", utt_ids[:border], max(1, min(10_000, max_frames // 10))
    )
    return sample("training", utt_ids[border:], max_frames), held_out
