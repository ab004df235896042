#!/usr/bin/env python3
"""Store the loss of a teacher in its own task, for each utterance of a corpus."""

import argparse
import functools
from pathlib import Path

from espnet_mvq.bin.options import (
    add_num_workers_option,
    add_on_error_option,
    add_run_options,
    command,
    command_parser,
    load_task_loss,
    setup_logging,
)
from espnet_mvq.extraction.task_losses import store_task_losses
from espnet_mvq.plugin.config import UNLABELLED_NAME


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Run a teacher with its task head over a data folder and write its "
        "loss on each utterance, in nats per label (as the teacher's own tokenizer "
        "counts labels), in wav.scp's order, for AdaKD. A complete file of the same "
        "teacher, audio and texts is kept; an interrupted run is resumed. Utterances "
        f"with an empty text, or in the data folder's file {UNLABELLED_NAME}, get no "
        "line.",
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
        help="file of the losses; their metadata are written to OUTPUT.json (default: "
        "teacher_loss in the data folder)",
    )
    add_run_options(parser)
    add_on_error_option(
        parser,
        "action for an utterance whose audio or text cannot be used; skip: it gets no "
        "line",
    )
    add_num_workers_option(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    store_task_losses(
        functools.partial(load_task_loss, args),
        Path(args.data_dir),
        Path(args.output) if args.output else None,
        unlabelled=UNLABELLED_NAME,
        on_error=args.on_error,
        num_workers=args.num_workers,
    )


if __name__ == "__main__":
    main()
