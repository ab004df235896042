#!/usr/bin/env python3
"""Turn an experiment trained with espnet_mvq into a plain one of ESPnet."""

import argparse
from pathlib import Path

from espnet_mvq.bin.options import add_logging_options, command, setup_logging
from espnet_mvq.frame_timing.tasks import DECODED
from espnet_mvq.plugin.export_folder import TRAINING_STATE, export_experiment


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Turn the experiment folder of a training with model: mvq into one "
        "of plain ESPnet, which loads, decodes, packs and fine-tunes without "
        "espnet_mvq. Run it where the training ran: the paths in config.yaml stay as "
        "they are. Each checkpoint is checked in a process without espnet_mvq: stock "
        "ESPnet must load all its weights, and encode as the original does. If "
        "anything fails, no folder is left behind.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--asr_exp",
        required=True,
        help="experiment folder, with config.yaml and checkpoints",
    )
    parser.add_argument(
        "--output_dir", help="folder to write; if not given, ASR_EXP_exported"
    )
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="NAME",
        help="checkpoints in the folder to export, such as valid.acc.ave.pth; if not "
        f"given, all *.pth but {TRAINING_STATE}. Links among them stay links",
    )
    parser.add_argument(
        "--task",
        default="asr",
        choices=DECODED,
        help="task of ESPnet that the experiment is of, as in espnet2.bin.TASK_train",
    )
    parser.add_argument(
        "--overwrite",
        default="false",
        choices=("true", "false"),
        help="true: write into an output folder that holds other files too; those of "
        "other names are kept. A former export is always replaced",
    )
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    asr_exp = Path(args.asr_exp)
    export_experiment(
        asr_exp,
        Path(args.output_dir or f"{asr_exp}_exported"),
        args.task,
        args.checkpoints,
        args.overwrite == "true",
    )


if __name__ == "__main__":
    main()
