"""The report of a run: a baseline and its students, from their experiment folders."""

import math
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import yaml

from espnet_mvq.reporting.arm import Arm, read_arm, short_names
from espnet_mvq.reporting.environment import describe_environment
from espnet_mvq.reporting.page import NONE, Curves, Report, Section, Table, number
from espnet_mvq.reporting.teacher_sections import quantizer_sections, storage_section
from espnet_mvq.reporting.utterances import utterance_section

# Statistics of an epoch: name, title, factor. Those of the validation first.
_STATS = (
    ("valid_loss", "validation loss", 1),
    ("valid_loss_ctc", "validation CTC loss", 1),
    ("valid_loss_att", "validation attention loss", 1),
    ("valid_loss_transducer", "validation transducer loss", 1),
    ("valid_cer_ctc", "validation CER of CTC, %", 100),
    ("valid_cer", "validation CER, %", 100),
    ("valid_cer_transducer", "validation CER of the transducer, %", 100),
    ("loss_mvq", "MVQ loss in training", 1),
    ("mvq_nats_below_chance", "nats below chance", 1),
    ("acc_mvq", "accuracy of the indexes, %", 100),
    ("loss_embedding", "embedding loss in training", 1),
    ("embedding_error", "embedding error", 1),
    ("embedding_cosine", "cosine of the embeddings", 1),
    ("loss_posterior", "posterior loss in training", 1),
    ("posterior_divergence", "divergence from the posteriors, nats", 1),
    ("posterior_agreement", "agreement on the most likely token, %", 100),
    ("mvq_alpha", "weight of the teacher", 1),
)
_OF_TARGETS = ("loss_mvq", "acc_mvq", "mvq")
_OF_TARGETS += ("loss_embedding", "embedding", "loss_posterior", "posterior")
_VALID_LOSSES = ("valid_loss_mvq", "valid_loss_embedding", "valid_loss_posterior")
# Options of a training that differ by nature
_NOT_COMPARED = ("config", "output_dir", "dist_init_method")


def make_report(exps: Sequence[Path], baseline: Optional[Path] = None) -> Report:
    """Collect the report of experiments.

    Args:
        exps: Experiment folders.
        baseline: The one that the others are compared with; put first.

    Raises:
        OSError: If a file cannot be read.
        ReportError: If one of them is no experiment folder, or has no log.
        ValueError: If a file is damaged.
    """
    if baseline is not None:
        exps = [baseline, *exps]
    folders = list({exp.resolve(): exp for exp in exps}.values())
    names = short_names(folders)
    arms = [read_arm(exp, name) for exp, name in zip(folders, names)]
    first = arms[0] if baseline is not None else None
    sections = [
        error_rate_section(arms, first),
        training_section(arms),
        codebook_section(arms),
        *quantizer_sections(arms),
        storage_section(arms),
        config_section(arms),
        utterance_section(arms, first),
        environment_section(arms),
    ]
    return Report(
        title="Report: " + ", ".join(names),
        date=time.strftime("%Y-%m-%d %H:%M %Z"),
        arms={arm.name: str(arm.exp) for arm in arms},
        sections=sections,
    )


def error_rate_section(arms: List[Arm], baseline: Optional[Arm]) -> Section:
    """Return the error rates of all decoded sets."""
    section = Section("Error rates")
    rows = []
    for name in sorted({name for arm in arms for name in arm.decodings}):
        for arm in arms:
            results = arm.decodings[name].results if name in arm.decodings else {}
            if not results:
                continue
            cells = []
            for metric in ("wer", "cer"):
                rate = results[metric]["error_rate"] if metric in results else None
                theirs = None
                if baseline not in (None, arm) and name in baseline.decodings:
                    theirs = baseline.decodings[name].results.get(metric)
                cells.append(number(rate, 1))
                cells.append(change(rate, theirs and theirs["error_rate"]))
            rows.append([name, arm.name, *cells])
    missing = [arm.name for arm in arms if not has_results(arm)]
    if missing:
        section.notes.append(f"Not decoded and scored yet: {', '.join(missing)}.")
    for arm in arms:
        for name, decoding in arm.decodings.items():
            if decoding.problem and not decoding.results:
                section.notes.append(f"{arm.name}, {name}: {decoding.problem}.")
    columns = ["decoded set", "arm", "WER %", "change", "CER %", "change"]
    if baseline is None:
        section.notes.append("No baseline was given, so no change is shown.")
        rows = [[row[i] for i in (0, 1, 2, 4)] for row in rows]
        columns = [columns[i] for i in (0, 1, 2, 4)]
    if rows:
        section.parts.append(Table(columns, rows))
    return section


def has_results(arm: Arm) -> bool:
    """Whether a set is decoded and scored."""
    return any(decoding.results for decoding in arm.decodings.values())


def change(rate: Optional[float], baseline: Optional[float]) -> str:
    """Format the relative change of an error rate."""
    if rate is None or not baseline:
        return NONE
    return f"{100 * (rate - baseline) / baseline:+.1f} %"


def training_section(arms: List[Arm]) -> Section:
    """Return curves of all statistics, and a table of their last or best values."""
    section = Section("Training", [p for arm in arms for p in arm.problems])
    columns, cells = ["arm", "epochs"], {a.name: [str(len(a.epochs))] for a in arms}
    teacher_losses = {
        name
        for arm in arms
        for epoch in arm.epochs
        for name in epoch
        if name.startswith(_VALID_LOSSES)
    }
    if any(is_finite(arm.values(name)) for arm in arms for name in teacher_losses):
        section.notes.append(
            "The validation loss of arms with a teacher includes that of the teacher; "
            "compare its parts."
        )
    drawn: List[Dict[str, List[float]]] = []
    for stat, title, factor in training_stats(arms):
        curves = {arm.name: arm.values(stat, factor) for arm in arms}
        curves = {name: values for name, values in curves.items() if is_finite(values)}
        if curves in drawn:  # the loss of CTC alone is the loss
            continue
        drawn.append(curves)
        section.parts.append(Curves(title, "epoch", curves))
        if stat.startswith("valid_"):
            columns.append(f"lowest {title} (epoch)")
        else:
            columns.append(f"{title}, last epoch")
        for arm in arms:
            values = curves.get(arm.name)
            if values is None:
                cells[arm.name].append(NONE)
            elif stat.startswith("valid_"):
                best = min(v for v in values if not math.isnan(v))
                cells[arm.name].append(f"{best:.2f} ({values.index(best) + 1})")
            else:
                cells[arm.name].append(number(values[-1], 3 if factor == 1 else 1))
    if drawn:
        rows = [[name, *row] for name, row in cells.items()]
        section.parts.append(Table(columns, rows))
    return section


def training_stats(arms: List[Arm]) -> Iterator[Tuple[str, str, float]]:
    """Yield name, title and factor of each statistic that an arm has.

    With several targets, their names end with the target's.
    """
    names = {name for arm in arms for epoch in arm.epochs for name in epoch}
    for stem, title, factor in _STATS:
        for name in sorted(names):
            target = name.removeprefix(stem)
            of_target = stem.startswith(_OF_TARGETS) and target.startswith("_")
            if name != stem and not of_target or target.startswith("_cb"):
                continue
            if any(is_finite(arm.values(name)) for arm in arms):
                yield name, title + target.replace("_", " "), factor


def is_finite(values: Sequence[float]) -> bool:
    """Whether there is a number among the values."""
    return any(not math.isnan(value) for value in values)


def codebook_section(arms: List[Arm]) -> Section:
    """Return the accuracy of each codebook, in the last epoch that has it."""
    section = Section("Accuracy of each codebook")
    curves: Dict[str, List[float]] = {}
    for arm in arms:
        for epoch in arm.epochs:
            accuracy = {
                stat: 100 * value
                for stat, value in epoch.items()
                if "acc_mvq_cb" in stat and not math.isnan(value)
            }
            if accuracy:
                # Codebooks of several targets one after the other
                curves[arm.name] = list(accuracy.values())
    if not curves:
        section.notes.append(
            "It is measured on the validation set. No arm has codebook indexes of it; "
            "extract them with --dev_set of mvq.sh and add them to "
            "valid_data_path_and_name_and_type."
        )
        return section
    section.notes.append(
        "On the validation set, after the last epoch. Codebooks are counted from 1, as "
        "in train.log; the quality of the quantizer counts from 0."
    )
    count = max(map(len, curves.values()))
    section.parts.append(Curves("accuracy of the indexes, %", "codebook", curves))
    rows = [
        [name, *(number(value, 1) for value in values)] + [NONE] * (count - len(values))
        for name, values in curves.items()
    ]
    columns = ["arm", *(f"codebook {n + 1}, %" for n in range(count))]
    section.parts.append(Table(columns, rows))
    return section


def config_section(arms: List[Arm]) -> Section:
    """Return the options of the trainings that differ."""
    section = Section("Configuration: differences")
    if len(arms) == 1:
        section.notes.append("There is one arm only.")
        return section
    options = [dict(flatten(arm.config)) for arm in arms]
    keys = list({key: None for option in options for key in option})
    rows = []
    for key in keys:
        values = [option.get(key) for option in options]
        if key in _NOT_COMPARED or all(value == values[0] for value in values):
            continue
        rows.append([key, *map(config_text, without_shared(values))])
    if rows:
        section.parts.append(Table(["option", *(arm.name for arm in arms)], rows))
    else:
        section.notes.append("None.")
    return section


def flatten(config: Dict[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Yield options below options as `model_conf.ctc_weight`."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def without_shared(values: List[Any]) -> List[Any]:
    """Take out of lists the items that all of them have."""
    if not all(isinstance(value, list) for value in values):
        return values
    shared = [item for item in values[0] if all(item in value for value in values)]
    return [[item for item in value if item not in shared] for value in values]


def config_text(value: Any) -> str:
    """Format an option as in a yaml file, in one line."""
    if value is None or value == []:
        return NONE
    if isinstance(value, list):
        return "; ".join(
            ", ".join(map(str, item)) if isinstance(item, list) else str(item)
            for item in value
        )
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def environment_section(arms: List[Arm]) -> Section:
    """Return versions and hardware of the report, and ESPnet's of the trainings."""
    rows = [[name, value] for name, value in describe_environment().items()]
    for arm in arms:
        version = arm.config.get("version")
        if version:
            rows.append([f"ESPnet of the training {arm.name}", str(version)])
    return Section("Environment of this report", [], [Table(["", ""], rows)])
