"""Utterances of a corpus through the teacher: read ahead, batched by length."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Union

import soundfile
import torch

from espnet_mvq.extraction.read_ahead import read_ahead
from espnet_mvq.files.scp import read_counts
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.base import EmbeddingError
from espnet_mvq.teachers.batching import group_by_length


@dataclass
class EmbeddedBatch:
    """What became of a batch of utterances.

    Attributes:
        embeddings: By utterance, float32, (T, D), finite.
        errors: By utterance whose audio cannot be used, or of which the teacher makes
            no finite embeddings.
    """

    embeddings: Dict[str, torch.Tensor] = field(default_factory=dict)
    errors: Dict[str, AudioError] = field(default_factory=dict)


def read_num_samples(
    places: Dict[str, str], utt2num_samples: Optional[str], wav_scp: str
) -> Dict[str, int]:
    """Return the samples of each utterance: as a file says, else as the headers do.

    Args:
        places: Audio by utterance.
        utt2num_samples: The file; default: that of this name beside `wav_scp`, if any.
        wav_scp: Where the utterances come from.

    Returns:
        Samples; 0 where nobody knows.

    Raises:
        FileNotFoundError: If a file was named that is not there.
        ValueError: If it holds something else than numbers.
    """
    path = Path(utt2num_samples or Path(wav_scp).with_name("utt2num_samples"))
    if utt2num_samples or path.is_file():
        said = read_counts(path)
        return {utt_id: said.get(utt_id, 0) for utt_id in places}
    logging.info(f"{path}: no such file; lengths are read from the audio's headers")
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(places, pool.map(_header_samples, places.values())))


def _header_samples(place: str) -> int:
    """Return the samples that an audio file says it has, 0 if it does not."""
    try:
        return soundfile.info(place).frames
    except (RuntimeError, OSError):
        return 0  # an ark, or a file that is reported when its turn to be read comes


def plan_batches(teacher: Teacher, num_samples: Dict[str, int]) -> List[List[str]]:
    """Group utterances that the teacher can run at once, the longest first.

    Args:
        teacher: The teacher.
        num_samples: Samples by utterance, 0: not known.

    Returns:
        Batches of utterances; the same for the same lengths.
    """
    utt_ids = list(num_samples)
    groups = group_by_length(
        list(num_samples.values()), teacher.batch_samples, not teacher.mixes_lengths
    )
    return [[utt_ids[position] for position in group] for group in groups]


def embed_batches(
    teacher: Teacher,
    batches: Iterable[List[str]],
    places: Dict[str, str],
    num_workers: int = 2,
) -> Iterator[EmbeddedBatch]:
    """Embed batches of utterances while threads read the next ones.

    Args:
        teacher: The teacher.
        batches: Utterances that run at once.
        places: Audio by utterance.
        num_workers: Threads that read and decode audio.

    Yields:
        Embeddings or errors of each batch, in order.
    """
    for found in read_ahead(teacher, batches, places, num_workers):
        yield _embed(teacher, found)


def to_level(embeddings: torch.Tensor, level: str) -> torch.Tensor:
    """Return the vectors of an utterance that are quantized or stored.

    Args:
        embeddings: Of all its frames, float, (T, D), T >= 1.
        level: frame, or utterance.

    Returns:
        The same; or their mean, (1, D).

    Source: DeCoR (Jiang et al. 2023, arXiv:2305.18441) stores one index of each audio;
        that an audio's embedding is the mean over its frames is our reading.
    """
    return embeddings.mean(0, keepdim=True) if level == "utterance" else embeddings


def _embed(
    teacher: Teacher, found: Dict[str, Union[torch.Tensor, AudioError]]
) -> EmbeddedBatch:
    """Embed what was read of a batch."""
    errors = {u: e for u, e in found.items() if isinstance(e, AudioError)}
    waveforms = {u: w for u, w in found.items() if u not in errors}
    batch = EmbeddedBatch(errors=errors)
    for utt_id, embeddings in _embed_each(teacher, waveforms).items():
        if isinstance(embeddings, EmbeddingError):
            batch.errors[utt_id] = EmbeddingError(f"utterance {utt_id}: {embeddings}")
        elif not embeddings.isfinite().all():
            batch.errors[utt_id] = EmbeddingError(
                f"utterance {utt_id}: the teacher {teacher.spec} gives NaN or infinity "
                f"at layer {teacher.layer}; check the audio and the teacher's precision"
            )
        else:
            batch.embeddings[utt_id] = embeddings
    return batch


def _embed_each(
    teacher: Teacher, waveforms: Dict[str, torch.Tensor]
) -> Dict[str, Union[torch.Tensor, EmbeddingError]]:
    """Return embeddings of each utterance, or why the teacher has none."""
    try:
        return dict(zip(waveforms, teacher.embed_batch(list(waveforms.values()))))
    except EmbeddingError as error:
        if len(waveforms) == 1:
            return dict.fromkeys(waveforms, error)
    # Which of them it is shows when each runs alone.
    each = (_embed_each(teacher, {utt_id: w}) for utt_id, w in waveforms.items())
    return {utt_id: found for one in each for utt_id, found in one.items()}
