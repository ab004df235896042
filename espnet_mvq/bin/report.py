#!/usr/bin/env python3
"""Write the report of a baseline and its students as one HTML page."""

import argparse
from pathlib import Path

from espnet_mvq.bin.options import command, command_parser, setup_logging
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.reporting.page import markdown, write_html
from espnet_mvq.reporting.run_report import make_report


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = command_parser(
        "Write one HTML page on experiments: error rates, losses, quantizer, storage, "
        "differing options, aligned utterances. Prints the error rates."
    )
    parser.add_argument("exp", nargs="+", help="experiment folders, such as exp/asr_*")
    parser.add_argument("--baseline", help="experiment folder to compare with")
    parser.add_argument(
        "--output", help="page to write (default: report.html beside the first folder)"
    )
    parser.add_argument("--markdown", help="markdown file of the tables to write, too")
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    exps = [Path(exp) for exp in args.exp]
    report = make_report(exps, Path(args.baseline) if args.baseline else None)
    write_html(report, args.output or exps[0].parent / "report.html")
    text = markdown(report)
    if args.markdown:
        write_text(args.markdown, text)
    print(text.split("\n## ")[1])


if __name__ == "__main__":
    main()
