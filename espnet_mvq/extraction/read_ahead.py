"""Audio of a corpus, read in threads while a model runs."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Deque, Dict, Iterable, Iterator, List, Protocol, Tuple, Union

import torch

from espnet_mvq.teachers.audio import AudioError

_BATCHES_AHEAD = 3


class Reader(Protocol):
    """What reads an utterance: a teacher, with or without its task head."""

    def read(self, utt_id: str, place: str) -> torch.Tensor:
        """Return its waveform (S,); see `Teacher.read`."""


def read_ahead(
    reader: Reader,
    batches: Iterable[List[str]],
    places: Dict[str, str],
    num_workers: int,
) -> Iterator[Dict[str, Union[torch.Tensor, AudioError]]]:
    """Read batches of utterances in threads, a few batches ahead.

    Args:
        reader: Its `read` is called.
        batches: Utterances that belong together.
        places: Audio by utterance.
        num_workers: Threads that read and decode audio.

    Yields:
        Of each utterance what was read, or why its audio cannot be used; batches in
        their order.
    """
    todo = iter(batches)
    ahead: Deque[List[Tuple[str, Future]]] = deque()
    pool = ThreadPoolExecutor(max_workers=max(1, num_workers))

    def read_one_more() -> None:
        for batch in todo:
            ahead.append([(u, pool.submit(reader.read, u, places[u])) for u in batch])
            return

    try:
        for _ in range(_BATCHES_AHEAD):
            read_one_more()
        while ahead:
            futures = ahead.popleft()
            read_one_more()
            yield {utt_id: _result(future) for utt_id, future in futures}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future) -> Union[torch.Tensor, AudioError]:
    """Return what was read, or the AudioError."""
    try:
        return future.result()
    except AudioError as error:
        return error
