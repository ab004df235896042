#!/usr/bin/env python3
"""Turn a training configuration of ESPnet into that of an MVQ student."""

import argparse
import logging
from pathlib import Path

from espnet_mvq.bin.options import (
    add_logging_options,
    command,
    defaults_of,
    setup_logging,
)
from espnet_mvq.frame_timing.tasks import DECODED
from espnet_mvq.plugin.config import LOSSES
from espnet_mvq.plugin.student_config import make_student_config


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Write a training configuration with the MVQ loss beside the "
        "recipe's own one, which stays as it is. Comments and order are kept. The "
        "command that trains the student is printed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(**defaults_of(make_student_config, "weight", "loss", "task"))
    parser.add_argument(
        "--asr_config",
        type=Path,
        required=True,
        metavar="FILE",
        help="training configuration of the recipe, also of another task",
    )
    parser.add_argument(
        "--set",
        type=Path,
        metavar="DIR",
        help="training set with codebook indexes, such as dump/raw/train_sp; if not "
        "given, the only one in dump/raw",
    )
    parser.add_argument(
        "--layer",
        type=int,
        metavar="N",
        help="student layer, counted from 1; -1 = encoder output; if not given, at two "
        "thirds of the blocks, or -1 for streaming and recurrent encoders",
    )
    parser.add_argument("--weight", type=float, help="weight of the loss")
    parser.add_argument(
        "--loss",
        choices=LOSSES,
        help="codebooks: the MVQ loss; posteriors: posterior KD, which needs stored "
        "posteriors in the set; others need stored embeddings",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write; if not given, X_mvq.yaml beside X.yaml",
    )
    parser.add_argument(
        "--task",
        choices=DECODED,
        help="task of ESPnet, as in espnet2.bin.TASK_train",
    )
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    made = make_student_config(
        args.asr_config,
        args.set,
        args.layer,
        args.weight,
        args.loss,
        args.output,
        args.task,
    )
    logging.info(f"{made.path}: student layer {made.layer}")
    for note in made.notes:
        logging.info(note)
    print(made.command)


if __name__ == "__main__":
    main()
