#!/usr/bin/env python3
"""Store the loss of a teacher in its own task, for each utterance of a corpus."""

import argparse
import hashlib
import logging
from pathlib import Path
from typing import Dict, List, Tuple

from tqdm import tqdm

from espnet_mvq import __version__
from espnet_mvq.bin.options import (
    add_logging_options,
    add_run_options,
    command,
    device_from_options,
    setup_logging,
    teacher_conf_of,
)
from espnet_mvq.extraction.embedding_stream import plan_batches, read_num_samples
from espnet_mvq.extraction.loss_stream import losses_of_batch
from espnet_mvq.extraction.partial_losses import PartialLosses
from espnet_mvq.extraction.read_ahead import read_ahead
from espnet_mvq.files.scp import read_list, read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.indexes.teacher_losses import (
    TeacherLossMetadata,
    format_teacher_losses,
    read_teacher_losses,
)
from espnet_mvq.plugin.config import UNLABELLED_NAME
from espnet_mvq.teachers.task_loss import TaskLoss, TextError, build_task_loss


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Run a teacher with its task head over a data folder and write its "
        "loss on each utterance, in nats per label (as the teacher's own tokenizer "
        "counts labels), in wav.scp's order: what AdaKD weighs utterances by. A file "
        "that is there whole, of the same teacher, audio and texts, is kept; a run "
        "that broke off goes on where it was. Utterances with an empty text, "
        f"or in the data folder's file {UNLABELLED_NAME}, get no line.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data_dir", required=True, help="data folder with wav.scp and text"
    )
    parser.add_argument(
        "--teacher",
        required=True,
        help="transformers/NAME_OR_DIR of a model with a CTC head or of a whole "
        "Whisper model, or espnet/EXP_DIR (an ESPnet ASR experiment, an MVQ student "
        "too)",
    )
    parser.add_argument(
        "--output",
        help="file of the losses; what they mean goes into OUTPUT.json beside it "
        "(default: teacher_loss in the data folder)",
    )
    add_run_options(parser)
    parser.add_argument(
        "--on_error",
        default="stop",
        choices=("stop", "skip"),
        help="what to do about an utterance whose audio or text cannot be used; skip: "
        "it gets no line",
    )
    parser.add_argument(
        "--num_workers", type=int, default=2, help="threads that read and decode audio"
    )
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    data_dir = Path(args.data_dir)
    output = Path(args.output or data_dir / "teacher_loss")
    wav_scp = data_dir / "wav.scp"
    texts = read_texts(data_dir)
    everyone = read_scp(wav_scp)
    # Speech without a transcript is no mistake, but it has no task loss.
    places = {u: place for u, place in everyone.items() if texts.get(u) != ""}
    task_loss = task_loss_from_options(args)
    metadata = TeacherLossMetadata(
        teacher=task_loss.id,
        loss=task_loss.kind,
        label=task_loss.label,
        inputs=hash_inputs(places, texts),
        num_without_text=len(everyone) - len(places),
        espnet_mvq_version=__version__,
    )
    if is_finished(output, metadata, places, args.on_error):
        logging.info(f"{output} is done already")
        return
    skipped = set(refuse_texts(task_loss, places, texts, args.on_error))
    inputs = {u: (p, texts[u]) for u, p in places.items() if u not in skipped}
    num_samples = read_num_samples(places, None, str(wav_scp))
    num_samples = {utt_id: num_samples[utt_id] for utt_id in inputs}
    partial_path = output.with_name(f"{output.name}.partial")
    with PartialLosses(partial_path, metadata, inputs) as partial:
        compute_losses(args, task_loss, inputs, num_samples, partial)
        found = {u: partial.losses[u] for u in places if u in partial.losses}
        metadata.skipped = [utt_id for utt_id in places if utt_id not in found]
        write_losses(output, found, metadata)
        partial_path.unlink()


def task_loss_from_options(args: argparse.Namespace) -> TaskLoss:
    """Build the teacher that the options name, on the device they name."""
    device, batch_s = device_from_options(args)
    return build_task_loss(
        args.teacher,
        device,
        dtype=args.dtype,
        batch_s=batch_s,
        **teacher_conf_of(args),
    )


def read_texts(data_dir: Path) -> Dict[str, str]:
    """Read the transcripts of a data folder.

    Returns:
        By utterance; empty for one that stands alone in its line of `text`, or is in
        the file `unlabelled`, by which training tells texts that are none.

    Raises:
        FileNotFoundError: If there is no file `text`.
        ValueError: If an utterance stands there twice.
    """
    path = data_dir / "text"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run the stage that makes it")
    texts: Dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            utt_id, *text = line.strip().split(maxsplit=1) or [""]
            if not utt_id or utt_id in texts:
                raise ValueError(
                    f"{path}:{number}: got {line.rstrip()!r}, expected 'utt_id text', "
                    "each utterance once; take the line out"
                )
            texts[utt_id] = "".join(text)
    if (data_dir / UNLABELLED_NAME).is_file():
        texts.update(dict.fromkeys(read_list(data_dir / UNLABELLED_NAME), ""))
    return texts


def hash_inputs(places: Dict[str, str], texts: Dict[str, str]) -> str:
    """Hash the utterances, where their audio is and their texts."""
    digest = hashlib.sha256()
    for utt_id, place in places.items():
        digest.update(f"{utt_id} {place}\n{texts.get(utt_id, '')}\n".encode())
    return digest.hexdigest()[:16]


def is_finished(
    output: Path, metadata: TeacherLossMetadata, places: Dict[str, str], on_error: str
) -> bool:
    """Say whether the losses are there, whole, and of this teacher and these inputs."""
    try:
        found = TeacherLossMetadata.load(metadata.path_beside(output))
        losses = read_teacher_losses(output)
    except FileNotFoundError:
        return False
    except ValueError as error:
        logging.info(f"made again: {error}")
        return False
    differences = found.differences(metadata)
    if differences:
        logging.info(f"{output} is of another run, made again: {differences}")
        return False
    skipped = set(found.skipped if on_error == "skip" else ())
    return set(losses) == set(places) - skipped


def refuse_texts(
    task_loss: TaskLoss, places: Dict[str, str], texts: Dict[str, str], on_error: str
) -> List[str]:
    """Find utterances without a text that the teacher has labels for.

    All at once, and before the first is computed.

    Returns:
        The utterances to skip.

    Raises:
        TextError: If there are any, and they are not to be skipped.
    """
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
        more = f" ({len(errors)} utterances are alike)" if len(errors) > 1 else ""
        raise TextError(f"{first}{more}; or leave them out with --on_error skip")
    for error in errors.values():
        logging.warning(f"skipped: {error}")
    return list(errors)


def compute_losses(
    args: argparse.Namespace,
    task_loss: TaskLoss,
    inputs: Dict[str, Tuple[str, str]],
    num_samples: Dict[str, int],
    partial: PartialLosses,
) -> None:
    """Compute the losses that are still missing."""
    # A batch that broke off runs as a whole again: float sums depend on how many
    # utterances run at once.
    kept = set(partial.losses)
    batches = plan_batches(task_loss, num_samples)
    batches = [batch for batch in batches if not kept.issuperset(batch)]
    places = {utt_id: place for utt_id, (place, _) in inputs.items()}
    with tqdm(total=sum(map(len, batches)), unit="utt", mininterval=5) as progress:
        for batch in read_ahead(task_loss, batches, places, args.num_workers):
            losses, errors = losses_of_batch(task_loss, batch, inputs)
            partial.write({u: found for u, found in losses.items() if u not in kept})
            for error in errors:
                if args.on_error == "stop":
                    raise error
                logging.warning(f"skipped: {error}")
            progress.update(len(batch))


def write_losses(
    output: Path, found: Dict[str, Tuple[float, int]], metadata: TeacherLossMetadata
) -> None:
    """Write the losses, then what they mean.

    Args:
        output: File of the losses.
        found: Of each utterance the sum over its labels, in nats, and their number.
        metadata: What they mean; counts and statistics are filled in.
    """
    if not found:
        raise ValueError(
            f"{output}: no utterance is left, {metadata.num_without_text} have no text "
            f"and {len(metadata.skipped)} were skipped; the lines above say why"
        )
    losses = {u: nats / num_labels for u, (nats, num_labels) in found.items()}
    metadata.describe(list(losses.values()), sum(n for _, n in found.values()))
    json_path = metadata.path_beside(output)
    # The metadata last: losses that have them are whole, and those they speak of.
    json_path.unlink(missing_ok=True)
    write_text(output, format_teacher_losses(losses))
    write_text(json_path, metadata.to_json())
    quartiles = ", ".join(f"{value:.3f}" for value in metadata.quartiles)
    logging.info(
        f"{output}: {metadata.num_utterances} utterances, {metadata.num_labels} "
        f"labels, {metadata.num_without_text} without a text, {len(metadata.skipped)} "
        f"skipped; {metadata.loss} loss in {metadata.unit}: mean {metadata.mean:.3f}, "
        f"standard deviation {metadata.standard_deviation:.3f}, quartiles {quartiles}"
    )


if __name__ == "__main__":
    main()
