#!/usr/bin/env python3
"""Print error rates and forgetting of continual learning as markdown.

For each method: the error rate on every domain seen so far after each step, and the
forgetting.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Dict, List, Optional

Errors = List[List[float]]  # in %: of each step, on each domain seen so far


class TableError(Exception):
    """A score is missing; the text is the message to the user."""


def get_parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    parser = argparse.ArgumentParser(
        description="Print error rates and forgetting of continual learning"
    )
    parser.add_argument(
        "--method",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "EXP"),
        help="A method and its experiment after each step; may be given several times",
    )
    parser.add_argument(
        "--domains", nargs="+", required=True, help="Domains, in the order of the steps"
    )
    parser.add_argument(
        "--test_sets", nargs="+", required=True, help="Test set of each domain"
    )
    parser.add_argument(
        "--metrics", nargs="+", default=["wer", "cer"], help="Error rates to show"
    )
    return parser


def read_error_rate(exp: Path, test_set: str, metric: str) -> float:
    """Return an error rate in percent.

    Raises:
        TableError: If the test set was not scored, or with several decodings.
    """
    paths = list(exp.glob(f"*/{test_set}/score_{metric}/result.json"))
    if len(paths) != 1:
        raise TableError(
            f"{exp}: got {len(paths)} {metric.upper()} scores of {test_set}, expected "
            "one; decode and score it, or move other decodings away"
        )
    return json.loads(paths[0].read_text(encoding="utf-8"))["error_rate"]


def read_errors(exps: List[str], test_sets: List[str], metric: str) -> Errors:
    """Return the error rates after each step, on the test sets of the domains seen."""
    return [
        [read_error_rate(Path(exp), name, metric) for name in test_sets[: step + 1]]
        for step, exp in enumerate(exps)
    ]


def forgetting(errors: Errors) -> float:
    """Return the forgetting of all domains but the last.

    Args:
        errors: In percent; after each step, on the domains seen so far.

    Returns:
        Final error minus the lowest error before the last step, mean over all domains
        but the last, in percentage points. Negative if they improved.

    Source: the forgetting measure of Chaudhry et al. 2018 (arXiv:1801.10112), with
        errors in place of accuracies.
    """
    *before, final = errors
    rises = [
        final[domain] - min(row[domain] for row in before[domain:])
        for domain in range(len(final) - 1)
    ]
    return sum(rises) / len(rises)


def format_table(methods: Dict[str, Errors], domains: List[str]) -> List[str]:
    """Return the tables of all steps and of the final errors."""
    rows = [f"|method|after|{'|'.join(domains)}|", "|---" * (len(domains) + 2) + "|"]
    for name, errors in methods.items():
        for step, row in enumerate(errors):
            cells = [f"{error:.1f}" for error in row] + [""] * (len(domains) - len(row))
            rows.append(f"|{name}|{domains[step]}|{'|'.join(cells)}|")
    rows += ["", "|method|mean of all domains, final|forgetting|", "|---|---|---|"]
    for name, errors in methods.items():
        mean = sum(errors[-1]) / len(errors[-1])
        rows.append(f"|{name}|{mean:.1f}|{forgetting(errors):+.1f}|")
    return rows


def make_page(args: argparse.Namespace) -> str:
    """Return the page.

    Raises:
        TableError: If a score is missing, or the numbers of steps and domains differ.
    """
    count = len(args.domains)
    if count < 2 or len(args.test_sets) != count:
        raise TableError(
            f"got {count} domains and {len(args.test_sets)} test sets, expected a test "
            "set of each and at least two"
        )
    for name, *exps in args.method:
        if len(exps) != count:
            raise TableError(
                f"method {name}: got {len(exps)} experiments, expected {count}: one "
                "after each domain"
            )
    lines = ["# Continual learning"]
    for metric in args.metrics:
        methods = {
            name: read_errors(exps, args.test_sets, metric)
            for name, *exps in args.method
        }
        lines += ["", f"## {metric.upper()} %", ""]
        lines += format_table(methods, args.domains)
    lines += [
        "",
        "Forgetting: final error minus the lowest reached before the last step, mean "
        "over all domains but the last.",
    ]
    return "\n".join(lines)


def main(cmd: Optional[List[str]] = None) -> None:
    """Run the command line."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    args = get_parser().parse_args(cmd)
    try:
        print(make_page(args))
    except (TableError, OSError, ValueError, KeyError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
