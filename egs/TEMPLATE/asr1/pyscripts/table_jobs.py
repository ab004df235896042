#!/usr/bin/env python3
"""Write the configurations of all arms and seeds of a table, and the list of jobs."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any, Dict

import yaml
from merge_yaml import merge, read_template

from espnet_mvq.files.whole_file import write_text

# Keys of an arm: required ones, and others
_REQUIRED = ("name", "table", "title", "seeds")
_KEYS = {
    *_REQUIRED,
    *("student", "loss", "options", "train_set", "indexes", "against", "pretrained"),
    *("starts_from", "posteriors_of"),
}
# Arms that must be trained first
_FIRST = ("starts_from", "posteriors_of")
_PRETRAINING_KEYS = {"options", "indexes", "target"}


class TableError(Exception):
    """An invalid table; the text is the message to the user."""


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Write EXPDIR/conf/ARM_seedN.yaml for each arm and seed, and "
        "EXPDIR/jobs with a line 'NAME TRAIN_SET CONFIG' for each of them, and what "
        "must be there first: 'pretrained PRETRAINING DATADIR TARGET', 'starts_from "
        "ARM_seedN' or 'posteriors_of ARM_seedN'. EXPDIR/indexes gets a line 'NAME "
        "OPTIONS' for each set of indexes they need.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--table", default="local/table.yaml", help="Arms")
    parser.add_argument("--expdir", default="exp/table", help="Folder to write")
    parser.add_argument(
        "--arms", nargs="*", help="Names of arms (default: all of the table)"
    )
    return parser


def read_table(path: Path) -> Dict[str, Any]:
    """Read a table and check its arms.

    Raises:
        TableError: If a key is unknown or missing, a name is used twice, or an arm is
            compared with one that does not exist.
    """
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = [arm.get("name") for arm in table["arms"]]
    for arm in table["arms"]:
        problems = [f"no {key}" for key in _REQUIRED if key not in arm]
        problems += [f"unknown key {key}" for key in sorted(set(arm) - _KEYS)]
        if names.count(arm.get("name")) > 1:
            problems.append("a name that another arm has, too")
        if arm.get("table") not in table["tables"]:
            problems.append(f"table {arm.get('table')!r}, which is not in tables")
        for key in ("against", *_FIRST):
            if arm.get(key, arm.get("name")) not in names:
                problems.append(f"{key} {arm[key]!r}, which is no arm")
        for key, section in (("indexes", "indexes"), ("pretrained", "pretrainings")):
            if key in arm and arm[key] not in table.get(section, ()):
                problems.append(f"{key} {arm[key]!r}, which is not in {section}")
        pretraining = pretraining_of(arm, table)
        problems += [f"unknown key {k}" for k in set(pretraining) - _PRETRAINING_KEYS]
        if problems:
            raise TableError(f"{path}: arm {arm.get('name')}: got {problems[0]}")
    unused = set(table.get("losses", ())) - {arm.get("loss") for arm in table["arms"]}
    if unused:
        raise TableError(f"{path}: losses: got {min(unused)!r}, which no arm has")
    for arm in table.get("layers", {}).values():
        if arm not in names:
            raise TableError(f"{path}: layers: got {arm!r}, which is no arm")
    return table


def pretraining_of(arm: Dict[str, Any], table: Dict[str, Any]) -> Dict[str, Any]:
    """Return the pre-training that an arm starts from, empty without one."""
    return table.get("pretrainings", {}).get(arm.get("pretrained")) or {}


def arm_config(arm: Dict[str, Any], table: Dict[str, Any]) -> Dict[str, Any]:
    """Return the training configuration of an arm, without its seed."""
    student = Path(arm.get("student", table["student"]))
    config = yaml.safe_load(student.read_text(encoding="utf-8"))
    if arm.get("loss"):
        data = f"dump/{arm.get('indexes', 'raw')}/{table['train_set']}"
        loss = Path(f"conf/losses/{arm['loss']}.yaml")
        config = merge(config, read_template(loss, {"train": data}))
        config = merge(config, table.get("losses", {}).get(arm["loss"], {}))
    return merge(config, arm.get("options") or {})


def write_config(path: Path, config: Dict[str, Any], seed: int) -> None:
    """Write a training configuration with its seed."""
    write_text(path, yaml.safe_dump({**config, "seed": seed}, sort_keys=False))


def write_jobs(args: argparse.Namespace) -> int:
    """Write configurations and the lists of jobs and indexes.

    Seeds 0 of all arms come first.

    Returns:
        Number of jobs.
    """
    table = read_table(Path(args.table))
    unknown = set(args.arms or ()) - {arm["name"] for arm in table["arms"]}
    if unknown:
        raise TableError(
            f"--arms: got {sorted(unknown)[0]}, which is not in {args.table}"
        )
    expdir = Path(args.expdir)
    (expdir / "conf").mkdir(parents=True, exist_ok=True)
    jobs, indexes = [], {}
    for arm in table["arms"]:
        if args.arms and arm["name"] not in args.arms:
            continue
        config, pretraining = arm_config(arm, table), pretraining_of(arm, table)
        for needed in {arm.get("indexes"), pretraining.get("indexes")} - {None}:
            indexes[needed] = table["indexes"][needed]
        train_set = arm.get("train_set", table["train_set"])
        for order, seed in enumerate(arm["seeds"]):
            name = f"{arm['name']}_seed{seed}"
            path = expdir / "conf" / f"{name}.yaml"
            job = f"{name} {train_set} {path}"
            if "pretrained" in arm:
                first = f"{arm['pretrained']}_seed{seed}"
                base = Path(table["pretraining"]).read_text(encoding="utf-8")
                options = merge(yaml.safe_load(base), pretraining.get("options") or {})
                write_config(expdir / "conf" / f"ssl_{first}.yaml", options, seed)
                encoder = f"{expdir}/ssl_{first}/latest.pth:encoder:encoder"
                config = {**config, "init_param": [encoder]}
                datadir = f"dump/{pretraining.get('indexes', 'raw')}"
                job += f" pretrained {first} {datadir} "
                job += pretraining.get("target", "codebook_indexes")
            for key in _FIRST:
                if key in arm:
                    job += f" {key} {arm[key]}_seed{seed}"
            write_config(path, config, seed)
            jobs.append((order, f"{job}\n"))
    # A table of one seed is readable early; the sort keeps the order of the arms.
    jobs.sort(key=lambda job: job[0])
    write_text(expdir / "jobs", "".join(line for _, line in jobs))
    lines = (f"{name} {options}\n" for name, options in indexes.items())
    write_text(expdir / "indexes", "".join(lines))
    return len(jobs)


def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    try:
        print(write_jobs(args))
    except (TableError, OSError, ValueError, KeyError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
