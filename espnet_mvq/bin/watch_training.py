#!/usr/bin/env python3
"""Show the progress of a running ESPnet training."""

import argparse
import signal
import sys
from pathlib import Path

from espnet_mvq.reporting.training_progress import watch_training


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Show epoch, losses and remaining time of a running training from "
        "its train.log: one line on a terminal, else a line for each epoch. Ends with "
        "the training, or when a pipe on standard input ends."
    )
    parser.add_argument("--exp", required=True, help="Experiment folder")
    parser.add_argument(
        "--baseline", help="Experiment whose validation loss is shown, too"
    )
    return parser


def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    try:
        watch_training(Path(args.exp), Path(args.baseline) if args.baseline else None)
    except OSError as error:
        print(f"watch_training: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        # A shell script goes on after a command that handled the signal itself.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
