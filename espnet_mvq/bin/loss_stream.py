"""Utterances through a teacher with its task head: read ahead, loss by loss."""

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Deque, Dict, Iterable, Iterator, List, Tuple

from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.task_loss import TaskLoss

_BATCHES_AHEAD = 3


def read_ahead(
    task_loss: TaskLoss,
    batches: Iterable[List[str]],
    places: Dict[str, str],
    num_workers: int,
) -> Iterator[Dict[str, Any]]:
    """Read batches of utterances in threads, a few batches ahead.

    Yields:
        Waveform (S,) of each utterance, or the AudioError it gave.
    """
    todo = iter(batches)
    ahead: Deque[List[Tuple[str, Future]]] = deque()
    pool = ThreadPoolExecutor(max_workers=max(1, num_workers))

    def read_one_more() -> None:
        for batch in todo:
            reads = [(u, pool.submit(task_loss.read, u, places[u])) for u in batch]
            ahead.append(reads)
            return

    try:
        for _ in range(_BATCHES_AHEAD):
            read_one_more()
        while ahead:
            reads = ahead.popleft()
            read_one_more()
            yield {utt_id: _result(future) for utt_id, future in reads}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future) -> Any:
    """Return what was read, or the AudioError."""
    try:
        return future.result()
    except AudioError as error:
        return error


def losses_of_batch(
    task_loss: TaskLoss, batch: Dict[str, Any], inputs: Dict[str, Tuple[str, str]]
) -> Tuple[Dict[str, Tuple[float, int]], List[ValueError]]:
    """Compute the losses of a batch.

    Args:
        task_loss: The teacher.
        batch: Waveform (S,) or AudioError of each utterance.
        inputs: Audio's place and text of each utterance.

    Returns:
        Of each utterance with a loss the sum over its labels, in nats, and their
        number; and what is wrong with the others.

    Raises:
        ValueError: If the teacher gives NaN.
    """
    errors = [found for found in batch.values() if isinstance(found, AudioError)]
    audio = {u: a for u, a in batch.items() if not isinstance(a, AudioError)}
    texts = [inputs[utt_id][1] for utt_id in audio]
    losses = {}
    for utt_id, nats, num_labels in zip(
        audio, *task_loss.loss(list(audio.values()), texts)
    ):
        if math.isnan(nats):
            raise ValueError(
                f"utterance {utt_id}: the teacher {task_loss.spec} gives NaN; check "
                "its weights and precision"
            )
        if math.isfinite(nats):
            losses[utt_id] = nats, num_labels
            continue
        seconds = len(audio[utt_id]) / task_loss.sample_rate
        error = (
            f"utterance {utt_id}: got an infinite loss, as {num_labels} labels do not "
            f"fit into {seconds:.2f} s of speech; check its text, or leave it out with "
            "--on_error skip"
        )
        errors.append(ValueError(error))
    return losses, errors
