#!/usr/bin/env python3
"""Add the MVQ loss to a training configuration of an ESPnet recipe."""

import argparse
import logging
from pathlib import Path
from typing import Union

from espnet_mvq.bin.options import (
    command,
    command_parser,
    defaults_of,
    setup_logging,
)
from espnet_mvq.distillation.embedding_loss import EMBEDDING_LOSSES
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.frame_timing.tasks import TASKS
from espnet_mvq.plugin.config import CODEBOOKS
from espnet_mvq.plugin.student_yaml import make_student_yaml, run_options


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Write the training configuration of an MVQ student: that of a baseline, "
        "unchanged, with the MVQ loss. Print the options of run.sh for it.",
    )
    parser.add_argument("--asr_config", required=True, help="yaml of the baseline")
    parser.add_argument(
        "--set",
        help="data folder of the training set, with codebook_indexes.scp (or "
        "embeddings.scp); default: the only one in dump/raw that has it",
    )
    parser.add_argument(
        "--layer",
        type=layer_number,
        help="student layer, counted from 1; -1 = encoder output; or the path of a "
        "submodule; default: two thirds of the encoder's blocks, -1 without blocks "
        "and for streaming encoders",
    )
    parser.add_argument("--weight", type=float, help="weight of the loss")
    parser.add_argument(
        "--loss",
        choices=(CODEBOOKS, *EMBEDDING_LOSSES),
        help="codebooks (MVQ), or a loss on stored embeddings",
    )
    parser.add_argument("--task", choices=tuple(TASKS), help="task of ESPnet")
    parser.add_argument(
        "--output", help="yaml to write; default: X_mvq.yaml beside X.yaml"
    )
    parser.set_defaults(**defaults_of(make_student_yaml, "weight", "loss", "task"))
    return parser


def layer_number(text: str) -> Union[int, str]:
    """Parse the number of a layer or the path of a submodule."""
    return int(text) if text.lstrip("-").isdigit() else text


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    path = Path(args.asr_config)
    output = Path(args.output or path.with_name(f"{path.stem}_mvq.yaml"))
    if output.exists():
        raise ValueError(
            f"{output} exists; remove it, or give another file by --output"
        )
    student = make_student_yaml(
        path,
        Path(args.set) if args.set else None,
        args.layer,
        args.weight,
        args.loss,
        args.task,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, student.text)
    for note in student.notes:
        logging.warning(note)
    logging.info(
        f"{output}: student layer {student.layer}. The options of run.sh follow; add "
        '--stage 6 --python "python3 -m espnet_mvq.run"'
    )
    print(" ".join(run_options(student, args.task, output)))


if __name__ == "__main__":
    main()
