#!/usr/bin/env python3
"""Start a student from the layers of its teacher, an ESPnet model of the same kind."""

import argparse
import logging
from pathlib import Path

from espnet_mvq.bin.options import (
    add_logging_options,
    command,
    defaults_of,
    setup_logging,
)
from espnet_mvq.plugin.student_init import INIT_TASKS, start_from_teacher


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Write a training configuration whose student starts from weights "
        "of its teacher: an experiment of ESPnet with the same kind of encoder, of the "
        "same width, with at least as many blocks; the student may be its streaming "
        "form (contextual_block_conformer of a conformer). The weights are named as "
        "ESPnet's init_param, and read from the teacher's checkpoint when the training "
        "starts. The log says what is taken, and what starts at random and why.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(**defaults_of(start_from_teacher, "task"))
    parser.add_argument(
        "--teacher_exp",
        type=Path,
        required=True,
        metavar="DIR",
        help="experiment folder of the teacher, with config.yaml and a checkpoint",
    )
    parser.add_argument(
        "--student_config",
        type=Path,
        required=True,
        metavar="FILE",
        help="training configuration of the student, with the MVQ loss or without",
    )
    parser.add_argument(
        "--blocks",
        type=int,
        nargs="+",
        metavar="N",
        help="block of the teacher for each block of the student, counted from 1; if "
        "not given, evenly spread, the last one included: 2 4 6 8 for 4 of 8",
    )
    parser.add_argument(
        "--token_list",
        type=Path,
        metavar="FILE",
        help="tokens of the student, tokens.txt of the recipe. CTC and decoder are "
        "taken only if they are those of the teacher",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="checkpoint in the teacher's folder; if not given, the averaged one of "
        "the best epochs",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write; if not given, X_init.yaml beside X.yaml",
    )
    parser.add_argument(
        "--task",
        choices=INIT_TASKS,
        help="task of ESPnet that trains the student, as in espnet2.bin.TASK_train",
    )
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    made = start_from_teacher(
        args.teacher_exp,
        args.student_config,
        args.checkpoint,
        args.blocks,
        args.token_list,
        args.output,
        args.task,
    )
    blocks = ", ".join(map(str, made.blocks))
    logging.info(f"{made.path}: starts from blocks {blocks} of {args.teacher_exp}")
    for note in made.notes:
        logging.info(note)


if __name__ == "__main__":
    main()
