#!/usr/bin/env python3
"""Compare a baseline and its students: error rates, training time, storage."""

import argparse
import json
import logging
import os
import platform
import re
import sys
import time
from importlib import metadata as package_metadata
from itertools import repeat
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import yaml

from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.quantization import Quantizer

PACKAGES = ("espnet_mvq", "espnet", "torch", "s3prl", "espnet-s3prl", "transformers")
_EPOCH = re.compile(r"(\d+)epoch results: \[train\] (.*?), \[valid\] (.*)")
_STAT = re.compile(r"(\w+)=(-?[\d.]+(?:e[-+]\d+)?|nan)(?=,|$)")
# Curves of the distillation: statistic, title, digits, factor
_CURVES = (
    ("loss_mvq", "MVQ loss", 2, 1),
    ("mvq_nats_below_chance", "nats below chance", 3, 1),
    ("acc_mvq", "index accuracy %", 1, 100),
    ("loss_embedding", "embedding loss", 2, 1),
    ("embedding_error", "embedding error", 3, 1),
    ("embedding_cosine", "cosine", 3, 1),
    ("mvq_alpha", "weight of the teacher", 3, 1),
)


class ReportError(Exception):
    """An input of the report is missing; the text is the message to the user."""


def get_parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    parser = argparse.ArgumentParser(
        description="Report on a baseline and its MVQ students"
    )
    parser.add_argument("--baseline", help="Experiment folder (default: no baseline)")
    parser.add_argument(
        "--student", nargs="+", required=True, help="Experiment folders, MVQ"
    )
    parser.add_argument(
        "--inference", required=True, help="Decoding folder of all experiments"
    )
    parser.add_argument("--test_sets", nargs="+", required=True, help="Test sets")
    parser.add_argument("--index_metadata", required=True, help="codebook_indexes.json")
    parser.add_argument("--quantizer", required=True, help="quantizer.safetensors")
    parser.add_argument("--run_args", default="", help="Options of the run")
    parser.add_argument("--out", required=True, help="Markdown file to write")
    return parser


def read_epochs(exp: Path) -> List[Dict[str, float]]:
    """Read the statistics of each epoch from ESPnet's train.log.

    When a training is started again, ESPnet renames the previous log to train.1.log,
    and so on.

    Returns:
        Training statistics of each epoch by name, those of the validation with the
        prefix `valid_`. The last run of an epoch counts.

    Raises:
        ReportError: If there is no log or no epoch in it.
    """
    log = exp / "train.log"
    if not log.is_file():
        raise ReportError(f"no {log}; run stage 11 (training)")
    epochs: Dict[int, Dict[str, float]] = {}
    older = sorted(
        exp.glob("train.[0-9]*.log"), key=lambda path: -int(path.suffixes[0][1:])
    )
    text = "".join(path.read_text(encoding="utf-8") for path in (*older, log))
    for number, train, valid in _EPOCH.findall(text):
        stats = {name: float(value) for name, value in _STAT.findall(train)}
        valid_stats = _STAT.findall(valid)
        stats.update({f"valid_{name}": float(value) for name, value in valid_stats})
        epochs[int(number)] = stats
    if not epochs:
        raise ReportError(f"no finished epoch in {log}; run stage 11 (training)")
    return [epochs[number] for number in sorted(epochs)]


def read_error_rate(exp: Path, inference: str, test_set: str, unit: str) -> float:
    """Return an error rate in percent.

    Raises:
        ReportError: If the test set was not scored.
    """
    path = exp / inference / test_set / f"score_{unit}" / "result.json"
    if not path.is_file():
        raise ReportError(f"no {path}; run stages 12 and 13 (decoding, scoring)")
    return json.loads(path.read_text(encoding="utf-8"))["error_rate"]


def seconds_per_step(epochs: List[Dict[str, float]]) -> float:
    """Return the mean time of a training step in s, the median of all epochs."""
    times = sorted(epoch["train_time"] for epoch in epochs)
    return times[len(times) // 2]


def result_rows(args: argparse.Namespace) -> List[str]:
    """Return the table of the baseline and all students."""
    units = [(test_set, unit) for test_set in args.test_sets for unit in ("wer", "cer")]
    rows = [
        "| |"
        + "".join(f"{test_set} {unit.upper()} %|" for test_set, unit in units)
        + "epochs|train s/step|targets, bytes|",
        "|---|" + "---|" * (len(units) + 3),
    ]
    exps = {name_of(student, args): Path(student) for student in args.student}
    if args.baseline:
        exps = {"baseline": Path(args.baseline), **exps}
    for name, exp in exps.items():
        epochs = read_epochs(exp)
        rates = (
            f"{read_error_rate(exp, args.inference, test_set, unit):.1f}"
            for test_set, unit in units
        )
        cells = [name, *rates, str(len(epochs)), f"{seconds_per_step(epochs):.3f}"]
        cells.append(f"{target_bytes(exp):,}")
        rows.append("|" + "|".join(cells) + "|")
    return rows


def target_bytes(exp: Path) -> int:
    """Return the size of a training's additional data, in bytes on disk.

    Indexes, embeddings, teacher losses, lists of utterances and quantizers.
    """
    config = yaml.safe_load((exp / "config.yaml").read_text(encoding="utf-8"))
    files = set()
    for path, _, data_type in config["train_data_path_and_name_and_type"]:
        if data_type.startswith("mvq_"):
            files.add(path)
        if data_type == "mvq_ark":
            files.update(place.rpartition(":")[0] for place in read_scp(path).values())
    options = (config.get("model_conf") or {}).get("mvq_conf") or {}
    for target in (options, *(options.get("targets") or {}).values()):
        files.add(target.get("quantizer"))
    return sum(Path(file).stat().st_size for file in files if file)


def name_of(student: str, args: argparse.Namespace) -> str:
    """Return the title of a student; one of several is named after its folder."""
    if len(args.student) == 1:
        return "MVQ student"
    return Path(student).name.removeprefix("asr_")


def storage_rows(metadata: IndexMetadata, quantizer: Quantizer) -> List[str]:
    """Return the table of the storage of an hour of speech."""
    frames = 3600 * metadata.sample_rate / metadata.frame_shift_samples
    floats, indexes = 4 * quantizer.dim * frames, metadata.num_codebooks * frames
    return [
        "|an hour of speech|bytes|",
        "|---|---|",
        f"|float32 embeddings ({quantizer.dim}-d)|{floats:,.0f}|",
        f"|codebook indexes ({metadata.num_codebooks} bytes a frame)|{indexes:,.0f}|",
        f"|ratio|{floats / indexes:.0f}|",
    ]


def curve_rows(baseline: Optional[Path], student: Path) -> List[str]:
    """Return the table of losses by epoch; "-" if an epoch has no such statistic."""
    own_epochs = read_epochs(student)
    curves = find_curves(sorted({name for own in own_epochs for name in own}))
    titles = [title for _, title, _, _ in curves]
    rows = [
        "|".join(["|epoch|baseline valid loss|student valid loss", *titles, ""]),
        "|---" * (3 + len(curves)) + "|",
    ]
    first = repeat({}) if baseline is None else read_epochs(baseline)
    for number, (theirs, own) in enumerate(zip(first, own_epochs), 1):
        cells = [
            str(number),
            format_stat(theirs, "valid_loss", 2),
            format_stat(own, "valid_loss", 2),
        ]
        for name, _, digits, factor in curves:
            cells.append(format_stat(own, name, digits, factor))
        rows.append(f"|{'|'.join(cells)}|")
    return rows


def find_curves(names: List[str]) -> List[Tuple[str, str, int, float]]:
    """Return the rows of `_CURVES` that statistics have, one for each target."""
    curves = []
    for stem, title, digits, factor in _CURVES:
        for name in names:
            if name == stem:
                curves.append((name, title, digits, factor))
            elif name.startswith(f"{stem}_"):
                target = name.removeprefix(f"{stem}_").replace("_", " ")
                curves.append((name, f"{title}, {target}", digits, factor))
    return curves


def format_stat(
    stats: Dict[str, float], name: str, digits: int, factor: float = 1
) -> str:
    """Write one statistic of an epoch."""
    return f"{factor * stats[name]:.{digits}f}" if name in stats else "-"


def training_parts(args: argparse.Namespace) -> List[str]:
    """Return the losses of each student, with headings if there are several."""
    baseline = Path(args.baseline) if args.baseline else None
    parts = []
    for student in args.student:
        if len(args.student) > 1:
            parts.append(f"### {name_of(student, args)}")
        parts.append("\n".join(curve_rows(baseline, Path(student))))
    return parts


def environment_rows(run_args: str) -> List[str]:
    """Return date, versions and hardware."""
    versions = []
    for package in PACKAGES:
        version = installed_version(package)
        if version:
            versions.append(f"{package} {version}")
    return [
        f"- date: {time.strftime('%Y-%m-%d %H:%M')}",
        f"- Python {platform.python_version()}, {', '.join(versions)}",
        f"- {platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        f"- options: `{run_args or 'the defaults'}`",
    ]


def installed_version(package: str) -> Optional[str]:
    """Return a package's version, None if it is not installed."""
    try:
        return package_metadata.version(package)
    except package_metadata.PackageNotFoundError:
        return None


def make_report(args: argparse.Namespace) -> str:
    """Return the report in markdown, tables of results first.

    Raises:
        ReportError: If a stage has not been run.
    """
    metadata = IndexMetadata.load(args.index_metadata)
    quantizer = Quantizer.load(args.quantizer)
    error = quantizer.provenance.get("relative_reconstruction_error")
    error = "not measured" if error is None else f"{error:.3f}"
    title = "MVQ student" if len(args.student) == 1 else "MVQ students"
    experiments = [f"student `{student}`" for student in args.student]
    if args.baseline:
        experiments.insert(0, f"baseline `{args.baseline}`")
        title = f"Baseline and {title}"
    parts = [
        f"# {title}",
        "\n".join(result_rows(args)),
        "\n".join(storage_rows(metadata, quantizer)),
        "## How",
        f"- teacher `{metadata.teacher}`, layer {metadata.layer}\n"
        f"- quantizer `{metadata.quantizer_id}`: {metadata.num_codebooks} codebooks "
        f"of {metadata.codebook_size}, relative reconstruction error {error} "
        "held-out\n"
        f"- indexes of {metadata.num_utterances} utterances, "
        f"{metadata.num_frames} frames\n"
        f"- {', '.join(experiments)}, same seed",
        "## Training",
        *training_parts(args),
        "## Environment",
        "\n".join(environment_rows(args.run_args)),
    ]
    return "\n\n".join(parts) + "\n"


def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level="INFO", format="%(levelname)s: %(message)s")
    try:
        report = make_report(args)
    except (ReportError, ValueError, FileNotFoundError) as error:
        logging.error(str(error))
        sys.exit(1)
    write_text(args.out, report)
    print(report.split("\n## How")[0])


if __name__ == "__main__":
    main()
