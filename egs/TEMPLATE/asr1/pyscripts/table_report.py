#!/usr/bin/env python3
"""Report on the arms and seeds of a table: error rates, paired bootstrap, curves."""

import argparse
import json
import logging
import os
import platform
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from table_jobs import TableError, read_table

from espnet_mvq.files.experiment import read_checkpoint, read_config
from espnet_mvq.files.scp import read_counts, read_ids, read_list
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.quantization.quality_text import REPORT_NAME
from espnet_mvq.reporting.scoring import align, get_tokenizers, match, read_text
from espnet_mvq.reporting.training_data import (
    ark_paths,
    data_files,
    read_quality,
    target_bytes,
)
from espnet_mvq.reporting.training_log import ReportError, read_epochs

NUM_RESAMPLES = 10_000


@dataclass
class Run:
    """One arm with one seed.

    Attributes:
        epochs: Statistics of each epoch, as of `read_epochs`.
        errors: Errors of each test utterance by "wer" and "cer", int64, (U,); None:
            the run is not decoded.
        tokens: Reference tokens of each test utterance, likewise.
    """

    epochs: List[Dict[str, float]]
    errors: Optional[Dict[str, np.ndarray]] = None
    tokens: Optional[Dict[str, np.ndarray]] = None

    @property
    def is_decoded(self) -> bool:
        """Whether the test set is decoded."""
        return self.errors is not None

    @property
    def valid_cer(self) -> float:
        """Lowest CER of the validation set, in percent."""
        return 100 * min(epoch["valid_cer_ctc"] for epoch in self.epochs)

    def error_rate(self, unit: str) -> float:
        """Return WER or CER of the test set, in percent."""
        return 100 * self.errors[unit].sum() / self.tokens[unit].sum()


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Write the tables of all arms that have results, as markdown, and "
        "draw the CER of the validation set over the training.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--table", default="local/table.yaml", help="Arms")
    parser.add_argument("--expdir", default="exp/table", help="Experiments")
    parser.add_argument("--suffix", required=True, help="Ending of the experiments")
    parser.add_argument("--inference", required=True, help="Decoding folder")
    parser.add_argument("--ref", required=True, help="References of the test set")
    parser.add_argument("--out", required=True, help="Markdown file to write")
    parser.add_argument("--figure", help="Image file of the curves")
    parser.add_argument("--note", default="", help="Text below the title")
    return parser


def paired_bootstrap(
    errors: np.ndarray,
    baseline: np.ndarray,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Tuple[float, float, float]:
    """Compare two systems on the same utterances.

    The error rate's change relative to the baseline, over resamples of the
    utterances. The same utterances are drawn for both systems.

    Args:
        errors: Errors of each utterance, mean over seeds, float, (U,).
        baseline: Those of the baseline, (U,).
        num_resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        The 2.5 % and the 97.5 % quantile of the relative change, in percent, and the
        share of resamples in which the system is not better than the baseline.

    Source: Bisani and Ney 2004, Bootstrap estimates for confidence intervals in ASR
        performance evaluation.
    """
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(errors), size=(num_resamples, len(errors)))
    ours, theirs = errors[draws].sum(1), baseline[draws].sum(1)
    changes = 100 * (ours - theirs) / theirs
    low, high = np.quantile(changes, [0.025, 0.975])
    return float(low), float(high), float((ours >= theirs).mean())


def mean_and_deviation(values: List[float], digits: int = 1) -> str:
    """Format the mean and the standard deviation of several seeds."""
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1):.{digits}f}"
    return text


def count_errors(
    refs: Dict[str, str], hyps: Dict[str, str]
) -> Tuple[Dict[str, np.ndarray], Dict[str, np.ndarray]]:
    """Count errors and reference tokens of each utterance, by "wer" and "cer"."""
    hyps = match(refs, hyps)
    errors, tokens = {}, {}
    for unit, tokenize in get_tokenizers(None).items():
        utterances = align(refs, hyps, tokenize)
        counts = [[u.count(edit) for edit in "CSDI"] for u in utterances]
        correct, substituted, deleted, inserted = np.array(counts).T
        errors[unit] = substituted + deleted + inserted
        tokens[unit] = correct + substituted + deleted
    return errors, tokens


def read_runs(
    arm: Dict[str, Any], args: argparse.Namespace, refs: Dict[str, str]
) -> Dict[int, Run]:
    """Read the runs of an arm that have at least one epoch, by seed."""
    runs = {}
    for seed in arm["seeds"]:
        exp = exp_of(arm, seed, args)
        try:
            run = Run(read_epochs(exp))
        except ReportError:
            continue  # not begun
        hyp = exp / args.inference / "text"
        if hyp.is_file():
            run.errors, run.tokens = count_errors(refs, read_text(hyp))
        runs[seed] = run
    return runs


def decoded_runs(runs: Dict[int, Run]) -> List[Run]:
    """Return the runs of an arm whose test set is decoded."""
    return [run for run in runs.values() if run.is_decoded]


def exp_of(arm: Dict[str, Any], seed: int, args: argparse.Namespace) -> Path:
    """Return the experiment folder of an arm and seed."""
    return Path(args.expdir) / f"asr_{arm['name']}_seed{seed}_{args.suffix}"


def num_parameters(exp: Path) -> str:
    """Return the weights of a student as it is exported: without the losses' heads."""
    path = exp / "latest.pth"
    if not path.is_file():
        return ""
    state = read_checkpoint(path).items()
    number = sum(value.numel() for name, value in state if not name.startswith("mvq."))
    return f"{number / 1e6:.2f} M"


def labelled_hours(exp: Path) -> float:
    """Return the hours of the training speech that has labels."""
    config = read_config(exp / "config.yaml")
    data = data_files(config, "train")
    (text,) = [Path(path) for path, name, _ in data if name == "text"]
    unlabelled = [read_list(path) for path, _, kind in data if kind == "mvq_list"]
    labelled = set(read_ids(text)).difference(*unlabelled)
    num_samples = read_counts(text.with_name("utt2num_samples"))
    total = sum(num_samples[utt_id] for utt_id in labelled)
    return total / config["frontend_conf"]["fs"] / 3600


def quantizer_error(exp: Path) -> str:
    """Return the quantizer's error on other speakers; "" without a measured one."""
    config = read_config(exp / "config.yaml")
    for scp, name, _ in data_files(config, "train"):
        if name == "codebook_indexes":
            report = ark_paths(Path(scp), Path())[0].parents[1] / REPORT_NAME
            if report.is_file():
                quality = read_quality(report)["quality"]
                return f"{quality['relative_error']:.3f}"
    return ""


def learning_rate(exp: Path) -> str:
    """Return the highest learning rate of a training."""
    config = read_config(exp / "config.yaml")
    rate = (config.get("scheduler_conf") or {}).get(
        "max_lr", config["optim_conf"]["lr"]
    )
    return f"{rate:g}"


def commit_of(exp: Path) -> str:
    """Return the commit with which a training was begun; "" if it is not known."""
    path = exp / "commit"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def undisturbed_step_s(runs: Dict[int, Run]) -> float:
    """Return the time of a step in the least disturbed epoch of all seeds, in s."""
    return min(e["train_time"] for run in runs.values() for e in run.epochs)


def arm_row(
    arm: Dict[str, Any],
    runs: Dict[str, Dict[int, Run]],
    args: argparse.Namespace,
) -> str:
    """Return the row of an arm; "" in columns whose results are missing."""
    own = runs[arm["name"]]
    exp = exp_of(arm, min(own), args)
    decoded = decoded_runs(own)
    shown = decoded or list(own.values())  # of the same seeds in all columns
    rates = ["", ""]
    if decoded:
        rates = [
            mean_and_deviation([run.error_rate(unit) for run in decoded])
            for unit in ("wer", "cer")
        ]
    cells = [
        arm["title"],
        f"{labelled_hours(exp):.2f}",
        learning_rate(exp),
        f"{len(decoded)} of {len(arm['seeds'])}",
        mean_and_deviation([run.valid_cer for run in shown]),
        *rates,
        compare(arm, runs),
        num_parameters(exp),
        f"{target_bytes(exp) / 1e6:,.1f}",
        quantizer_error(exp),
        f"{undisturbed_step_s(own):.3f}",
        mean_and_deviation([len(run.epochs) for run in shown], 0),
        f"`{exp.name}`",
        commit_of(exp),
    ]
    return "|" + "|".join(cells) + "|"


def compare(arm: Dict[str, Any], runs: Dict[str, Dict[int, Run]]) -> str:
    """Return the relative change of the CER, with its 95 % interval and baseline.

    Only seeds that both arms have count.
    """
    own, other = runs[arm["name"]], runs.get(arm.get("against", ""), {})
    seeds = [s for s in own if own[s].is_decoded and s in other and other[s].is_decoded]
    if not seeds:
        return ""
    errors, baseline = (
        np.mean([part[seed].errors["cer"] for seed in seeds], axis=0)
        for part in (own, other)
    )
    change = 100 * (errors.sum() - baseline.sum()) / baseline.sum()
    low, high, not_better = paired_bootstrap(errors, baseline)
    interval = f"[{low:+.1f}, {high:+.1f}]"
    seeds = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    return f"{change:+.1f} {interval}, p = {not_better:.4f}, {arm['against']}, {seeds}"


def draw_curves(
    arms: List[Dict[str, Any]],
    runs: Dict[str, Dict[int, Run]],
    args: argparse.Namespace,
) -> None:
    """Draw the CER of the validation set against epochs and hours of training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for arm in arms:
        own = runs[arm["name"]]
        hours_of_labels = labelled_hours(exp_of(arm, min(own), args))
        label = f"{arm['title']}, {hours_of_labels:.2f} h"
        color = None
        for run in own.values():
            rates = [100 * epoch["valid_cer_ctc"] for epoch in run.epochs]
            steps = np.array([epoch["total_count"] for epoch in run.epochs])
            hours = steps * undisturbed_step_s(own) / 3600
            for axis, x in zip(axes, (np.arange(1, len(rates) + 1), hours)):
                (line,) = axis.plot(x, rates, color=color, label=label, linewidth=1)
                color = line.get_color()
            label = None
    axes[0].set(xlabel="epoch", ylabel="CER of dev_clean, %", ylim=(0, 100))
    axes[1].set(xlabel="hours of training")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(args.figure, dpi=120)
    pyplot.close(figure)


def teacher_lines(folder: Path) -> List[str]:
    """Return the error rates of the teacher itself, if they are measured."""
    if not (folder / "text").is_file():
        return []
    counts = count_errors(read_text(folder / "ref"), read_text(folder / "text"))
    wer, cer = (100 * counts[0][u].sum() / counts[1][u].sum() for u in ("wer", "cer"))
    return [
        "",
        f"The teacher itself, greedy: WER {wer:.1f} %, CER {cer:.1f} %, texts "
        "normalised as for Whisper.",
    ]


def advice_lines(
    students: Dict[int, str],
    runs: Dict[str, Dict[int, Run]],
    path: Path,
) -> List[str]:
    """Return the advice on teacher layers beside the students that learned from them.

    Args:
        students: Arm that learns from each teacher layer.
        runs: Runs of each arm.
        path: The advice, advice.json of espnet_mvq.bin.advise.

    Returns:
        Lines of a table, none without advice or without a decoded student.
    """
    decoded = {arm: decoded_runs(runs[arm]) for arm in students.values()}
    if not path.is_file() or not any(decoded.values()):
        return []
    advice = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "",
        "## Teacher layers: advice before the training, and students",
        "",
        f"`espnet_mvq.bin.advise`: {advice['verdict']['sentences'][0]}",
        "",
        "|teacher layer|CER % of the linear probe|student|dev CER %|test CER %|",
        "|---" * 5 + "|",
    ]
    for score in advice["scores"]:
        arm = students.get(score["layer"], "")
        own = decoded.get(arm, [])
        cells = [str(score["layer"]), "", "", "", ""]
        if score["error_rate"] is not None:
            cells[1] = f"{100 * score['error_rate']:.1f}"
        if own:
            cells[2] = f"`{arm}`"
            cells[3] = mean_and_deviation([run.valid_cer for run in own])
            cells[4] = mean_and_deviation([run.error_rate("cer") for run in own])
        lines.append("|" + "|".join(cells) + "|")
    return lines


def make_page(args: argparse.Namespace) -> str:
    """Return the page of all tables that have a result."""
    table = read_table(Path(args.table))
    arms = table["arms"]
    refs = read_text(Path(args.ref))
    runs = {arm["name"]: read_runs(arm, args, refs) for arm in arms}
    started = [arm for arm in arms if runs[arm["name"]]]
    if not started:
        raise ReportError(f"{args.expdir}: no arm has an epoch; run the trainings")
    lines = ["# Tables", "", args.note, *teacher_lines(Path(args.expdir) / "teacher")]
    for name, title in table["tables"].items():
        members = [arm for arm in started if arm["table"] == name]
        if members:
            lines += ["", f"## {title}", ""]
            lines += [
                "|arm|hours of labels|learning rate|seeds decoded|dev CER %|"
                "test WER %|test CER %|change of the CER, % [95 %], p, against|"
                "parameters|targets, MB|quantizer error|s/step|epochs|experiment|"
                "begun with|",
                "|---" * 15 + "|",
            ]
            lines += [arm_row(arm, runs, args) for arm in members]
    advice = Path(args.expdir) / "advice" / "advice.json"
    lines += advice_lines(table.get("layers", {}), runs, advice)
    missing = [arm["name"] for arm in arms if not runs[arm["name"]]]
    if missing:
        lines += ["", f"Not begun: {', '.join(missing)}."]
    lines += [
        "",
        "± is the standard deviation over seeds. The change is relative to the arm "
        "that is named behind it; its interval and p come from a paired bootstrap "
        f"over the test utterances ({NUM_RESAMPLES:,} resamples, errors averaged over "
        "seeds); p is the share of resamples in which the arm is not better. The "
        "quantizer's relative reconstruction error is that of other speakers. s/step "
        "is the mean of the least disturbed epoch. Each experiment has its command and "
        "versions in train.log and its options in config.yaml; the last column is the "
        "commit.",
        "",
        f"Written on {date.today()}, espnet {version('espnet')}, "
        f"torch {version('torch')}, Python {platform.python_version()}, "
        f"{os.cpu_count()} CPU cores.",
    ]
    if args.figure:
        draw_curves(started, runs, args)
        lines += ["", f"![CER of dev_clean]({Path(args.figure).name})"]
    return "\n".join(lines) + "\n"


def main(cmd=None) -> None:
    """Run the command."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    args = get_parser().parse_args(cmd)
    try:
        write_text(args.out, make_page(args))
    except (ReportError, TableError, OSError, ValueError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
