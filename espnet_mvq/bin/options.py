"""Shared by the commands: options of the teacher, logging, exit on user errors."""

import argparse
import functools
import inspect
import logging
import sys
from typing import Any, Callable, Dict, Tuple

import torch
import yaml

from espnet_mvq.errors import one_line
from espnet_mvq.teachers import Teacher, build_teacher
from espnet_mvq.teachers.ctc import CTCTeacher, build_ctc_teacher
from espnet_mvq.teachers.speech_model import DTYPES
from espnet_mvq.teachers.task_loss import TaskLoss, build_task_loss

_GPU_BATCH_S = 120.0  # about 10 utterances
# Parameters of `build_teacher` that are not options of a back end
_OWN_OPTIONS = {
    "spec": "--teacher",
    "name": "--teacher",
    "layer": "--layer",
    "device": "--ngpu",
    "dtype": "--dtype",
    "batch_s": "--batch_s",
}


def defaults_of(function: Callable[..., Any], *names: str) -> Dict[str, Any]:
    """Defaults of a function's parameters, for options of the same names."""
    parameters = inspect.signature(function).parameters
    return {name: parameters[name].default for name in names}


def command_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser that shows defaults, with the option for the log level."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_logging_options(parser)
    return parser


def add_teacher_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the options of the teacher and of the device it runs on.

    Args:
        parser: Gets the options.
        required: The command does not work without a teacher.
    """
    add_teacher_option(
        parser,
        required,
        " or feats/FILE (embeddings dumped elsewhere: scp, npy, h5; needs "
        "--teacher_conf frame_shift_samples=...)",
    )
    parser.add_argument(
        "--layer",
        type=int,
        default=-1,
        help="teacher layer, counted from 1; 0 = input of the first block, -1 = last",
    )
    add_run_options(parser)


def add_teacher_option(
    parser: argparse.ArgumentParser, required: bool = True, others: str = ""
) -> None:
    """Add the option for the name of a teacher; `others` are further kinds of it."""
    parser.add_argument(
        "--teacher",
        required=required,
        help="s3prl/UPSTREAM, s3prl/UPSTREAM:CHECKPOINT, transformers/NAME_OR_DIR, "
        f"espnet/EXP_DIR (an ESPnet experiment){others}",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the device and precision that a teacher runs with."""
    parser.add_argument(
        "--teacher_conf",
        type=key_and_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="option of the teacher's back end; may be given several times",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=tuple(DTYPES),
        help="precision of the teacher's computation; half precision is for GPUs",
    )
    parser.add_argument(
        "--batch_s",
        type=float,
        help="maximum speech in a batch of the teacher, in seconds (default: "
        f"{_GPU_BATCH_S:g} on a GPU; on a CPU 0: each utterance alone)",
    )
    parser.add_argument(
        "--ngpu", type=int, default=0, help="number of GPUs: 1, or 0 for the CPU"
    )


def add_on_error_option(
    parser: argparse.ArgumentParser,
    help: str = "action for an utterance whose audio cannot be used, or whose "
    "embeddings are not finite",
) -> None:
    """Add the option for utterances that cannot be used."""
    parser.add_argument(
        "--on_error", default="stop", choices=("stop", "skip"), help=help
    )


def add_num_workers_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for the number of threads."""
    parser.add_argument(
        "--num_workers", type=int, default=2, help="threads that read and decode audio"
    )


def add_logging_options(parser: argparse.ArgumentParser) -> None:
    """Add the option for the log level."""
    parser.add_argument(
        "--log_level",
        default="INFO",
        choices=("ERROR", "WARNING", "INFO", "DEBUG"),
        help="lowest level of the log messages",
    )


def load_teacher(args: argparse.Namespace) -> Teacher:
    """Build the teacher of the options, on their device."""
    return _load(build_teacher, args, layer=args.layer)


def load_task_loss(args: argparse.Namespace) -> TaskLoss:
    """Build the teacher of the options with its task head, on their device."""
    return _load(build_task_loss, args)


def load_ctc_teacher(args: argparse.Namespace) -> CTCTeacher:
    """Build the teacher of the options with its CTC head, on their device."""
    return _load(build_ctc_teacher, args)


def _load(build: Callable[..., Any], args: argparse.Namespace, **options: Any) -> Any:
    """Call a function that builds a teacher, with the options of the command."""
    device, batch_s = device_from_options(args)
    return build(
        args.teacher,
        device=device,
        dtype=args.dtype,
        batch_s=batch_s,
        **options,
        **teacher_conf_of(args),
    )


def teacher_conf_of(args: argparse.Namespace) -> Dict[str, Any]:
    """Return the options of the teacher's back end.

    Raises:
        ValueError: If there is an option of the command for one of them.
    """
    conf = dict(args.teacher_conf)
    for key, option in _OWN_OPTIONS.items():
        if key in conf:
            raise ValueError(
                f"--teacher_conf {key}={conf[key]}: expected an option of the "
                f"teacher's back end; use {option} instead"
            )
    return conf


def device_from_options(args: argparse.Namespace) -> Tuple[torch.device, float]:
    """Return the device, and the maximum speech in a batch, in seconds."""
    if args.ngpu < 0:
        raise ValueError(f"--ngpu: got {args.ngpu}, expected 0 (the CPU) or 1")
    if args.ngpu > 0 and not torch.cuda.is_available():
        raise ValueError(
            f"--ngpu {args.ngpu}: torch sees no GPU here; use --ngpu 0, or check "
            "CUDA_VISIBLE_DEVICES and the installed torch"
        )
    device = torch.device("cpu")
    if args.ngpu > 0:
        # Jobs take turns, where a cluster does not give each a GPU of its own.
        job = getattr(args, "job", 1)
        device = torch.device("cuda", (job - 1) % torch.cuda.device_count())
    batch_s = args.batch_s
    if batch_s is None:
        batch_s = _GPU_BATCH_S if args.ngpu > 0 else 0.0
    return device, batch_s


def command(main: Callable[..., None]) -> Callable[..., None]:
    """Log errors of options and files in one line and exit with code 1.

    `--log_level DEBUG` shows the traceback too.
    """

    @functools.wraps(main)
    def wrapper(cmd: Any = None) -> None:
        try:
            main(cmd)
        except (ValueError, OSError) as error:
            logging.debug("traceback:", exc_info=True)
            logging.error(str(error))
            sys.exit(1)
        except torch.cuda.OutOfMemoryError as error:
            logging.debug("traceback:", exc_info=True)
            logging.error(
                f"the GPU's memory is full: use a smaller --batch_s ({one_line(error)})"
            )
            sys.exit(1)
        except KeyboardInterrupt:
            logging.error("interrupted; whole files are kept, run it again to go on")
            sys.exit(130)

    return wrapper


def setup_logging(args: argparse.Namespace) -> None:
    """Log as ESPnet does."""
    logging.basicConfig(
        level=args.log_level,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    print(" ".join([sys.executable, *sys.argv]), file=sys.stderr)


def key_and_value(text: str) -> Tuple[str, Any]:
    """Parse KEY=VALUE, the value as yaml."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected KEY=VALUE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected KEY=VALUE with a value in yaml ({one_line(error)})"
        ) from error
