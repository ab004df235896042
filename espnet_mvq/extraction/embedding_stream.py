"""Batches of utterances: audio read ahead, teacher embeddings, unusable utterances."""

import logging
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import (
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

import soundfile
import torch

from espnet_mvq.files.scp import read_counts
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.base import EmbeddingError
from espnet_mvq.teachers.batching import group_by_length
from espnet_mvq.teachers.speech_model import SpeechSource

_BATCHES_AHEAD = 3
_Result = TypeVar("_Result")


def read_num_samples(
    places: Dict[str, str], utt2num_samples: Optional[str], wav_scp: str
) -> Dict[str, int]:
    """Read the number of samples of each utterance, from a file or the audio's headers.

    Args:
        places: Audio by utterance.
        utt2num_samples: The file; default: the file of this name beside `wav_scp`, if
            there is one.
        wav_scp: Source of the utterances.

    Returns:
        Samples; 0 where the number is not known.

    Raises:
        FileNotFoundError: If `utt2num_samples` is given and does not exist.
        ValueError: If a value in it is not a number.
    """
    path = Path(utt2num_samples or Path(wav_scp).with_name("utt2num_samples"))
    if utt2num_samples or path.is_file():
        counts = read_counts(path)
        return {utt_id: counts.get(utt_id, 0) for utt_id in places}
    logging.info(f"{path}: no such file; lengths are read from the audio's headers")
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(places, pool.map(_header_samples, places.values())))


def _header_samples(place: str) -> int:
    """Number of samples in an audio file's header, 0 if it cannot be read."""
    try:
        return soundfile.info(place).frames
    except (RuntimeError, OSError):
        return 0  # an ark, or a broken file, which is reported when it is read


def plan_batches(
    source: SpeechSource, num_samples: Dict[str, int], done: Iterable[str] = ()
) -> List[List[str]]:
    """Group utterances of similar length into batches, the longest first.

    Args:
        source: The teacher, which limits the size of a batch.
        num_samples: Samples by utterance, 0: not known.
        done: Utterances that need no result any more. A batch is left out if all of it
            is done, else it runs as a whole: float sums, and with them a rare index,
            depend on the other utterances of the batch.

    Returns:
        Batches of utterances; the same for the same lengths.
    """
    utt_ids, done = list(num_samples), set(done)
    groups = group_by_length(
        list(num_samples.values()), source.batch_samples, not source.mixes_lengths
    )
    batches = [[utt_ids[position] for position in group] for group in groups]
    return [batch for batch in batches if not done.issuperset(batch)]


def read_ahead(
    source: SpeechSource,
    batches: Iterable[Sequence[str]],
    places: Dict[str, str],
    num_workers: int = 2,
) -> Iterator[Dict[str, Union[torch.Tensor, AudioError]]]:
    """Read the audio of batches in threads, a few batches ahead.

    Args:
        source: The teacher; its `read` is called.
        batches: Utterances of each batch.
        places: Audio by utterance.
        num_workers: Threads that read and decode audio.

    Yields:
        Waveform (S,) or error of each utterance of a batch, batches in order.
    """
    todo = iter(batches)
    ahead: Deque[List[Tuple[str, Future]]] = deque()
    pool = ThreadPoolExecutor(max_workers=max(1, num_workers))

    def read_one_more() -> None:
        for batch in todo:
            ahead.append([(u, pool.submit(source.read, u, places[u])) for u in batch])
            return

    def result(future: Future) -> Union[torch.Tensor, AudioError]:
        try:
            return future.result()
        except AudioError as error:
            return error

    try:
        for _ in range(_BATCHES_AHEAD):
            read_one_more()
        while ahead:
            futures = ahead.popleft()
            read_one_more()
            yield {utt_id: result(future) for utt_id, future in futures}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def split_audio_errors(
    batch: Dict[str, Union[torch.Tensor, AudioError]],
) -> Tuple[Dict[str, torch.Tensor], Dict[str, AudioError]]:
    """Separate the waveforms of a batch from the errors of the other utterances."""
    errors = {u: e for u, e in batch.items() if isinstance(e, AudioError)}
    return {u: w for u, w in batch.items() if u not in errors}, errors


def embed_batches(
    teacher: Teacher,
    batches: Iterable[Sequence[str]],
    places: Dict[str, str],
    num_workers: int = 2,
) -> Iterator[Dict[str, Union[torch.Tensor, AudioError]]]:
    """Embed batches of utterances while threads read the next ones.

    Args:
        teacher: The teacher.
        batches: Utterances of each batch.
        places: Audio by utterance.
        num_workers: Threads that read and decode audio.

    Yields:
        Of each utterance of a batch its embeddings, float32, (T, D), finite; or an
        error, if its audio cannot be used or has no finite embeddings.
    """
    for batch in read_ahead(teacher, batches, places, num_workers):
        waveforms, errors = split_audio_errors(batch)
        yield {**errors, **_embed(teacher, waveforms)}


def _embed(
    teacher: Teacher, waveforms: Dict[str, torch.Tensor]
) -> Dict[str, Union[torch.Tensor, EmbeddingError]]:
    """Embed utterances at once; if that fails, each alone to see which one fails."""
    try:
        embedded = dict(zip(waveforms, teacher.embed_batch(list(waveforms.values()))))
    except EmbeddingError as error:
        if len(waveforms) == 1:
            (utt_id,) = waveforms
            return {utt_id: EmbeddingError(f"utterance {utt_id}: {error}")}
        each = (_embed(teacher, {utt_id: w}) for utt_id, w in waveforms.items())
        return {utt_id: result for one in each for utt_id, result in one.items()}
    for utt_id, embeddings in embedded.items():
        if not embeddings.isfinite().all():
            embedded[utt_id] = EmbeddingError(
                f"utterance {utt_id}: the teacher {teacher.spec} gives NaN or infinity "
                f"at layer {teacher.layer}; check the audio and the teacher's precision"
            )
    return embedded


def usable_results(
    batches: Iterable[Dict[str, Union[_Result, ValueError]]],
    on_error: str,
    skipped: List[str],
) -> Iterator[Dict[str, _Result]]:
    """Drop the utterances of each batch that have an error, or stop at the first one.

    Args:
        batches: Result or error of each utterance.
        on_error: stop or skip.
        skipped: Gets the utterances that are dropped.

    Yields:
        Results of each batch; batches without any are left out.

    Raises:
        ValueError: The first error, if `on_error` is stop.
    """
    for batch in batches:
        errors = {u: e for u, e in batch.items() if isinstance(e, ValueError)}
        for utt_id, error in errors.items():
            stop_or_skip(error, on_error)
            skipped.append(utt_id)
        if len(errors) < len(batch):
            yield {u: result for u, result in batch.items() if u not in errors}


def stop_or_skip(error: ValueError, on_error: str) -> None:
    """Raise the error of an utterance if `on_error` is stop, else log it."""
    if on_error == "stop":
        raise error
    logging.warning(f"skipped: {error}")


def embed_utterances(
    teacher: Teacher,
    utt_ids: Sequence[str],
    places: Dict[str, str],
    level: str = "frame",
    on_error: str = "stop",
) -> Iterator[Tuple[str, torch.Tensor]]:
    """Embed utterances one after the other.

    Args:
        teacher: The teacher.
        utt_ids: Utterances.
        places: Audio by utterance.
        level: See `to_level`.
        on_error: stop or skip, for utterances whose audio cannot be used or has no
            finite embeddings.

    Yields:
        Utterance and its embeddings, float32, (T, D), on the CPU.

    Raises:
        AudioError: If an utterance cannot be used and `on_error` is stop.
        ValueError: If all utterances were skipped.
    """
    skipped: List[str] = []
    batches = embed_batches(teacher, ([u] for u in utt_ids), places)
    for batch in usable_results(batches, on_error, skipped):
        for utt_id, embeddings in batch.items():
            yield utt_id, to_level(embeddings, level).cpu()
    if utt_ids and len(skipped) == len(utt_ids):
        raise ValueError(
            f"no utterance is left, all {len(skipped)} were skipped; see the warnings "
            "above"
        )


def to_level(embeddings: torch.Tensor, level: str) -> torch.Tensor:
    """Return the vectors of an utterance that are quantized or stored.

    Args:
        embeddings: Embeddings of all its frames, float, (T, D), T >= 1.
        level: frame or utterance.

    Returns:
        The same; or at utterance level their mean, (1, D).

    Source: DeCoR (Jiang et al. 2023, arXiv:2305.18441) stores one index of each audio;
        that an audio's embedding is the mean over its frames is our reading.
    """
    return embeddings.mean(0, keepdim=True) if level == "utterance" else embeddings
