#!/usr/bin/env python3
"""Merge a baseline's training configuration with the options of a loss."""

import argparse
from pathlib import Path
from string import Template
from typing import Any, Dict, Mapping

import yaml


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Merge two yaml files. Options of the second replace those of the "
        "first; mappings are merged recursively.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base", required=True, help="yaml of the baseline")
    parser.add_argument("--added", required=True, help="yaml of the added options")
    parser.add_argument("--out", required=True, help="yaml to write")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="value of ${NAME} in the second file",
    )
    return parser


def merge(base: Dict[str, Any], added: Dict[str, Any]) -> Dict[str, Any]:
    """Return the options of both; the second overrides the first."""
    merged = dict(base)
    for name, value in added.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            value = merge(base[name], value)
        merged[name] = value
    return merged


def read_template(path: Path, values: Mapping[str, str]) -> Dict[str, Any]:
    """Read a yaml, with values in the place of ${NAME}.

    Raises:
        ValueError: If a name has no value.
    """
    text = path.read_text(encoding="utf-8")
    try:
        return yaml.safe_load(Template(text).substitute(values)) or {}
    except KeyError as error:
        raise ValueError(
            f"{path}: got ${{{error.args[0]}}} without a value; give it by --set"
        ) from error


def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    values = dict(pair.split("=", 1) for pair in args.set)
    try:
        added = read_template(Path(args.added), values)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    base = yaml.safe_load(Path(args.base).read_text(encoding="utf-8"))
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    merged = merge(base, added)
    out.write_text(yaml.safe_dump(merged, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
