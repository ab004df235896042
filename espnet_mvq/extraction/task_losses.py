"""Task loss of a teacher on each utterance of a corpus, for AdaKD."""

import hashlib
import logging
import math
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Tuple, Union

import torch
from tqdm import tqdm

from espnet_mvq import __version__
from espnet_mvq.extraction.embedding_stream import (
    plan_batches,
    read_ahead,
    read_num_samples,
    split_audio_errors,
    stop_or_skip,
    usable_results,
)
from espnet_mvq.files.scp import read_list, read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.indexes.partial_losses import Loss, PartialLosses
from espnet_mvq.indexes.teacher_losses import (
    TeacherLossMetadata,
    format_teacher_losses,
    read_teacher_losses,
)
from espnet_mvq.teachers.task_loss import TaskLoss, TextError


def store_task_losses(
    load_task_loss: Callable[[], TaskLoss],
    data_dir: Path,
    output: Optional[Path] = None,
    *,
    unlabelled: str,
    on_error: str = "stop",
    num_workers: int = 2,
) -> None:
    """Write the loss of each utterance of a data folder, in nats per label.

    A file that is whole and of the same teacher and inputs is kept; a run that broke
    off goes on.

    Args:
        load_task_loss: Builds the teacher; called after the data folder is read.
        data_dir: Data folder with `wav.scp` and `text`.
        output: File of the losses; default: `teacher_loss` in the data folder.
        unlabelled: File in the data folder that lists utterances without a transcript.
        on_error: stop or skip, for utterances whose audio or text cannot be used.
        num_workers: Threads that read and decode audio.

    Raises:
        OSError: If a file is missing or cannot be written.
        ValueError: If no utterance is left, or one cannot be used.
    """
    output = output or data_dir / "teacher_loss"
    wav_scp = data_dir / "wav.scp"
    texts = read_texts(data_dir, unlabelled)
    corpus = read_scp(wav_scp)
    # Speech without a transcript is not an error, but has no task loss.
    places = {u: place for u, place in corpus.items() if texts.get(u) != ""}
    task_loss = load_task_loss()
    metadata = TeacherLossMetadata(
        teacher=task_loss.id,
        loss=task_loss.kind,
        label=task_loss.label,
        inputs=_hash_inputs(places, texts),
        num_without_text=len(corpus) - len(places),
        espnet_mvq_version=__version__,
    )
    if _is_finished(output, metadata, places, on_error):
        logging.info(f"{output} is done already")
        return
    skipped = _check_texts(task_loss, places, texts, on_error)
    inputs = {u: (p, texts[u]) for u, p in places.items() if u not in skipped}
    num_samples = read_num_samples(places, None, str(wav_scp))
    num_samples = {utt_id: num_samples[utt_id] for utt_id in inputs}
    partial_path = output.with_name(f"{output.name}.partial")
    with PartialLosses(partial_path, metadata, inputs) as partial:
        kept = set(partial.losses)
        planned = plan_batches(task_loss, num_samples, done=kept)
        batches = _compute_losses(task_loss, planned, inputs, num_workers)
        for losses in usable_results(batches, on_error, skipped):
            partial.write({u: loss for u, loss in losses.items() if u not in kept})
        losses = {u: partial.losses[u] for u in places if u in partial.losses}
        metadata.skipped = [utt_id for utt_id in places if utt_id not in losses]
        _write_losses(output, losses, metadata)
        partial_path.unlink()


def _compute_losses(
    task_loss: TaskLoss,
    batches: List[List[str]],
    inputs: Dict[str, Tuple[str, str]],
    num_workers: int,
) -> Iterator[Dict[str, Union[Loss, ValueError]]]:
    """Yield the loss or the error of each utterance of a batch."""
    places = {utt_id: place for utt_id, (place, _) in inputs.items()}
    with tqdm(total=sum(map(len, batches)), unit="utt", mininterval=5) as progress:
        for batch in read_ahead(task_loss, batches, places, num_workers):
            waveforms, results = split_audio_errors(batch)
            texts = [inputs[utt_id][1] for utt_id in waveforms]
            losses = zip(*task_loss.loss(list(waveforms.values()), texts))
            for (utt_id, waveform), (nats, num_labels) in zip(
                waveforms.items(), losses
            ):
                error = _loss_error(task_loss, utt_id, waveform, nats, num_labels)
                results[utt_id] = error or (nats, num_labels)
            yield results
            progress.update(len(batch))


def _loss_error(
    task_loss: TaskLoss,
    utt_id: str,
    waveform: torch.Tensor,
    nats: float,
    num_labels: int,
) -> Optional[ValueError]:
    """Error of an utterance whose loss is not finite, else None."""
    if math.isfinite(nats):
        return None
    if math.isnan(nats):
        return ValueError(
            f"utterance {utt_id}: the teacher {task_loss.spec} gives NaN; "
            "check the audio and the teacher's weights and precision"
        )
    seconds = len(waveform) / task_loss.sample_rate
    return ValueError(
        f"utterance {utt_id}: got an infinite loss, as {num_labels} labels do "
        f"not fit into {seconds:.2f} s of speech; check its text, or leave it "
        "out with --on_error skip"
    )


def read_texts(data_dir: Path, unlabelled: str) -> Dict[str, str]:
    """Read the transcripts of a data folder.

    Args:
        data_dir: The folder, with a file `text`.
        unlabelled: File in it that lists utterances whose text is not a transcript.

    Returns:
        Text by utterance; empty for utterances without a transcript.

    Raises:
        FileNotFoundError: If there is no file `text`.
        ValueError: If an utterance is in it twice.
    """
    texts = read_scp(data_dir / "text", empty_values=True)
    if (data_dir / unlabelled).is_file():
        texts.update(dict.fromkeys(read_list(data_dir / unlabelled), ""))
    return texts


def _hash_inputs(places: Dict[str, str], texts: Dict[str, str]) -> str:
    """Hash utterances, places of their audio, and texts."""
    digest = hashlib.sha256()
    for utt_id, place in places.items():
        digest.update(f"{utt_id} {place}\n{texts.get(utt_id, '')}\n".encode())
    return digest.hexdigest()[:16]


def _is_finished(
    output: Path, metadata: TeacherLossMetadata, places: Dict[str, str], on_error: str
) -> bool:
    """Whether the losses are whole, and of this teacher and these inputs."""
    try:
        stored = TeacherLossMetadata.load(metadata.path_beside(output))
        losses = read_teacher_losses(output)
    except FileNotFoundError:
        return False
    except ValueError as error:
        logging.info(f"made again: {error}")
        return False
    differences = stored.differences(metadata)
    if differences:
        logging.info(f"{output} has other inputs and is made again: {differences}")
        return False
    skipped = set(stored.skipped if on_error == "skip" else ())
    return set(losses) == set(places) - skipped


def _check_texts(
    task_loss: TaskLoss, places: Dict[str, str], texts: Dict[str, str], on_error: str
) -> List[str]:
    """Return the utterances to skip, whose texts have no labels of the teacher."""
    errors: Dict[str, TextError] = {}
    for utt_id in places:
        try:
            if utt_id not in texts:
                raise TextError("is in wav.scp but has no line in the file text")
            task_loss.encode(texts[utt_id])
        except TextError as error:
            errors[utt_id] = TextError(f"utterance {utt_id}: {error}")
    if errors and on_error == "stop":
        first = next(iter(errors.values()))
        more = f" ({len(errors)} utterances cannot be used)" if len(errors) > 1 else ""
        raise TextError(f"{first}{more}; or leave them out with --on_error skip")
    for error in errors.values():
        stop_or_skip(error, on_error)
    return list(errors)


def _write_losses(
    output: Path, losses: Dict[str, Loss], metadata: TeacherLossMetadata
) -> None:
    """Write the losses in nats per label, then their metadata with statistics."""
    if not losses:
        raise ValueError(
            f"{output}: no utterance is left, {metadata.num_without_text} have no text "
            f"and {len(metadata.skipped)} were skipped; see the warnings above"
        )
    per_label = {u: nats / num_labels for u, (nats, num_labels) in losses.items()}
    metadata.describe(list(per_label.values()), sum(n for _, n in losses.values()))
    json_path = metadata.path_beside(output)
    # The metadata last: losses that have metadata are whole.
    json_path.unlink(missing_ok=True)
    write_text(output, format_teacher_losses(per_label))
    write_text(json_path, metadata.to_json())
    quartiles = ", ".join(f"{value:.3f}" for value in metadata.quartiles)
    logging.info(
        f"{output}: {metadata.num_utterances} utterances, {metadata.num_labels} "
        f"labels, {metadata.num_without_text} without a text, {len(metadata.skipped)} "
        f"skipped; {metadata.loss} loss in {metadata.unit}: mean {metadata.mean:.3f}, "
        f"standard deviation {metadata.standard_deviation:.3f}, quartiles {quartiles}"
    )
