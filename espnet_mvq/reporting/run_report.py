"""The report of a run: a baseline and its students, from their experiment folders."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import yaml

from espnet_mvq.errors import one_line
from espnet_mvq.files.experiment import read_config
from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import FrameMetadata, read_metadata
from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.quality_text import findings, table_of_codebooks
from espnet_mvq.reporting.environment import describe_environment
from espnet_mvq.reporting.error_rates import Decoding, read_decodings
from espnet_mvq.reporting.page import (
    AlignedUtterance,
    Comparison,
    Curves,
    Report,
    Section,
    Table,
)
from espnet_mvq.reporting.scoring import Utterance
from espnet_mvq.reporting.training_data import (
    ark_paths,
    data_files,
    find_quantizer,
    read_quality,
    recipe_folder,
    target_bytes,
)
from espnet_mvq.reporting.training_log import (
    ReportError,
    read_epochs,
    seconds_per_step,
)

NONE = "–"  # a cell without a value
_NUM_UTTERANCES = 3  # shown in each direction
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
    ("mvq_alpha", "weight of the teacher", 1),
)
# Options of a training that differ by nature
_NOT_COMPARED = ("config", "output_dir", "dist_init_method")


@dataclass
class TeacherData:
    """Codebook indexes or embeddings that a training read.

    Attributes:
        scp: Their scp.
        metadata: Their metadata.
        num_bytes: Bytes of the arks.
        quantizer: File of the quantizer; None if there is none or it was not found.
    """

    scp: Path
    metadata: FrameMetadata
    num_bytes: int
    quantizer: Optional[Path] = None


@dataclass
class Arm:
    """An experiment of the report.

    Attributes:
        name: Name in the report.
        exp: Experiment folder.
        config: Content of its config.yaml.
        epochs: Statistics of each epoch, see `read_epochs`; empty if none is finished.
        decodings: Decoded sets, see `read_decodings`.
        teacher_data: Codebook indexes and embeddings.
        problems: Reasons why parts are missing.
    """

    name: str
    exp: Path
    config: Dict[str, Any]
    epochs: List[Dict[str, float]]
    decodings: Dict[str, Decoding]
    teacher_data: List[TeacherData] = field(default_factory=list)
    problems: List[str] = field(default_factory=list)

    def values(self, stat: str, factor: float = 1) -> List[float]:
        """Return a statistic of all epochs; NaN where there is none."""
        return [factor * epoch.get(stat, math.nan) for epoch in self.epochs]


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


def short_names(exps: Sequence[Path]) -> List[str]:
    """Name experiments after their folders, without the words at the end of all."""
    words = [exp.resolve().name.removeprefix("asr_").split("_") for exp in exps]
    while len(exps) > 1 and all(len(w) > 1 and w[-1] == words[0][-1] for w in words):
        words = [w[:-1] for w in words]
    names = ["_".join(w) for w in words]
    return names if len(set(names)) == len(names) else [str(exp) for exp in exps]


def read_arm(exp: Path, name: str) -> Arm:
    """Read an experiment; see `make_report`."""
    for file in ("config.yaml", "train.log"):
        if not (exp / file).is_file():
            raise ReportError(
                f"{exp}: no {file} in it, expected the experiment folder of a "
                "training, such as exp/asr_train_asr_raw_en_bpe100"
            )
    config = read_config(exp / "config.yaml")
    folder = recipe_folder(exp, config)
    texts = [path for path, name, _ in data_files(config, "valid") if name == "text"]
    data_dir = folder / (Path(texts[0]).parent.parent if texts else "dump/raw")
    problems = []
    try:
        epochs = read_epochs(exp)
    except ReportError:
        epochs = []
        problems.append(f"{name}: no epoch is finished.")
    arm = Arm(name, exp, config, epochs, read_decodings(exp, data_dir))
    arm.problems = problems
    for path, _, data_type in data_files(config, "train"):
        if data_type == "mvq_ark":
            try:
                arm.teacher_data.append(
                    read_teacher_data(folder / path, folder, config)
                )
            except (OSError, ValueError) as error:
                arm.problems.append(f"{name}: {one_line(error)}.")
    return arm


def read_teacher_data(scp: Path, folder: Path, config: Dict[str, Any]) -> TeacherData:
    """Read the metadata of indexes or embeddings, and find the quantizer.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is damaged.
    """
    metadata = read_metadata(scp)
    num_bytes = sum(ark.stat().st_size for ark in ark_paths(scp, folder))
    data = TeacherData(scp, metadata, num_bytes)
    if isinstance(metadata, IndexMetadata):
        data.quantizer = find_quantizer(metadata, scp, folder, config)
    return data


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
    for arm in arms:
        if not any(decoding.results for decoding in arm.decodings.values()):
            section.notes.append(f"{arm.name} is not decoded and scored yet.")
        for decoding in arm.decodings.values():
            if decoding.problem and not decoding.results:
                section.notes.append(f"{arm.name}: not scored, {decoding.problem}.")
    columns = ["decoded set", "arm", "WER %", "change", "CER %", "change"]
    if baseline is None:
        section.notes.append("No baseline was given, so no change is shown.")
        rows = [[row[i] for i in (0, 1, 2, 4)] for row in rows]
        columns = [columns[i] for i in (0, 1, 2, 4)]
    if rows:
        section.parts.append(Table(columns, rows))
    return section


def change(rate: Optional[float], baseline: Optional[float]) -> str:
    """Format the relative change of an error rate."""
    if rate is None or not baseline:
        return NONE
    return f"{100 * (rate - baseline) / baseline:+.1f} %"


def number(value: Optional[float], digits: int) -> str:
    """Format a number; None and NaN have none."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:,.{digits}f}"


def training_section(arms: List[Arm]) -> Section:
    """Return curves of all statistics, and a table of their last or best values."""
    section = Section("Training", [p for arm in arms for p in arm.problems])
    columns, cells = ["arm", "epochs"], {a.name: [str(len(a.epochs))] for a in arms}
    if any(is_finite(arm.values("valid_loss_mvq")) for arm in arms):
        section.notes.append(
            "The validation loss of arms with a teacher has the MVQ loss in it; compare "
            "the parts of the loss."
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
            is_one = (
                name == stem
                or ("mvq" in stem or "embedding" in stem)
                and target.startswith("_")
            )
            if not name.startswith(stem) or not is_one or target.startswith("_cb"):
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
    section.notes.append("On the validation set, after the last epoch.")
    count = max(map(len, curves.values()))
    section.parts.append(Curves("accuracy of the indexes, %", "codebook", curves))
    rows = [
        [name, *(number(value, 1) for value in values)] + [NONE] * (count - len(values))
        for name, values in curves.items()
    ]
    columns = ["arm", *(f"codebook {n + 1}, %" for n in range(count))]
    section.parts.append(Table(columns, rows))
    return section


def quantizer_sections(arms: List[Arm]) -> List[Section]:
    """Return the sections on quantizers and on extraction, each file once."""
    used: Dict[Path, TeacherData] = {}
    for arm in arms:
        for data in arm.teacher_data:
            used.setdefault(data.scp.resolve(), data)
    quality, extraction = Section("Quantizer"), Section("Extraction")
    if not used:
        note = "No arm has codebook indexes or embeddings of a teacher."
        return [Section("Quantizer and extraction", [note])]
    rows = []
    seen = set()
    for data in used.values():
        metadata = data.metadata
        rows.append(extraction_row(data))
        if not isinstance(metadata, IndexMetadata) or metadata.quantizer_id in seen:
            continue
        seen.add(metadata.quantizer_id)
        if data.quantizer is None:
            quality.notes.append(
                f"The file of quantizer {metadata.quantizer_id} was not found."
            )
        else:
            add_quantizer(quality, data.quantizer)
    columns = ["data", "teacher", "layer", "bytes a frame", "frame shift, ms"]
    columns += ["utterances", "skipped", "frames", "bytes"]
    extraction.parts.append(Table(columns, rows))
    return [quality, extraction] if seen else [extraction]


def extraction_row(data: TeacherData) -> List[str]:
    """Return the row of a file of indexes or embeddings."""
    metadata = data.metadata
    return [
        str(data.scp),
        metadata.teacher,
        str(metadata.layer),
        str(bytes_per_frame(metadata)),
        f"{1000 * metadata.frame_shift_samples / metadata.sample_rate:g}",
        f"{metadata.num_utterances:,}",
        str(len(metadata.skipped)),
        f"{metadata.num_frames:,}",
        f"{data.num_bytes:,}",
    ]


def bytes_per_frame(metadata: FrameMetadata) -> int:
    """Return the bytes of a frame of indexes or float16 embeddings."""
    if isinstance(metadata, IndexMetadata):
        return metadata.num_codebooks
    return 2 * metadata.dim


def add_quantizer(section: Section, path: Path) -> None:
    """Add provenance and measured quality of a quantizer to a section."""
    quantizer = Quantizer.load(path)
    values = {
        "codebooks": quantizer.num_codebooks,
        "entries of a codebook": quantizer.codebook_size,
        "dimension": quantizer.dim,
        **quantizer.provenance,
    }
    for name in ("num_codebooks", "codebook_size"):
        values.pop(name, None)
    rows = [[name.replace("_", " "), str(value)] for name, value in values.items()]
    section.parts.append(Table(["", f"quantizer {quantizer.id}"], rows, str(path)))
    report = path.with_name("quantizer_report.json")
    if not report.is_file():
        section.notes.append(
            "The relative reconstruction error is that on held-out frames of the "
            f"quantizer's training. {report} does not exist; python3 -m "
            "espnet_mvq.bin.inspect_quantizer writes it and measures more."
        )
        return
    content = read_quality(report)
    frames = content["frames"]
    judged = [list(finding) for finding in findings(content)]
    section.parts.append(
        Table(
            ["verdict", "quality"],
            judged,
            f"{frames['measured']:,} frames of {frames['utterances']:,} utterances in "
            f"{frames['source']}",
        )
    )
    section.parts.append(Table(*table_of_codebooks(content["quality"])))


def storage_section(arms: List[Arm]) -> Section:
    """Return the size of the additional data, and the time of the training."""
    section = Section("Storage and time")
    rows = []
    hours = {}
    for arm in arms:
        try:
            size = f"{target_bytes(arm.exp):,}"
        except (OSError, ValueError) as error:
            size = NONE
            section.notes.append(f"{arm.name}: {one_line(error)}.")
        cells = [NONE] * 3
        if arm.epochs:
            step_s = seconds_per_step(arm.epochs)
            steps = arm.epochs[-1]["total_count"]
            cells = [f"{step_s:.3f}", f"{steps:,.0f}", f"{step_s * steps / 3600:.2f}"]
        rows.append([arm.name, *cells, size])
        for data in arm.teacher_data:
            hours[data.scp.resolve()] = data
    columns = ["arm", "train s/step", "steps", "hours of training"]
    columns.append("additional data, bytes on disk")
    section.parts.append(Table(columns, rows))
    rows = [
        storage_row(data) for data in hours.values() if data.metadata.level == "frame"
    ]
    if rows:
        columns = ["an hour of speech", "stored, bytes", "float32 embeddings, bytes"]
        section.parts.append(Table([*columns, "ratio"], rows))
    return section


def storage_row(data: TeacherData) -> List[str]:
    """Return the storage of an hour of speech; embeddings need the dimension."""
    metadata = data.metadata
    frames = 3600 * metadata.sample_rate / metadata.frame_shift_samples
    stored = bytes_per_frame(metadata) * frames
    cells = [str(data.scp), f"{stored:,.0f}", NONE, NONE]
    if isinstance(metadata, IndexMetadata):
        dim = Quantizer.load(data.quantizer).dim if data.quantizer else None
    else:
        dim = metadata.dim
    if dim:
        floats = 4 * dim * frames
        cells[2:] = [f"{floats:,.0f}", f"{floats / stored:.0f}"]
    return cells


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


def utterance_section(arms: List[Arm], baseline: Optional[Arm]) -> Section:
    """Return the utterances whose errors differ most from the baseline's."""
    section = Section("Utterances")
    if baseline is None:
        section.notes.append("Utterances are compared with those of a baseline.")
        return section
    for arm in arms:
        for name, decoding in arm.decodings.items():
            theirs = baseline.decodings.get(name)
            if arm is baseline or not decoding.ref or theirs is None or not theirs.ref:
                continue
            section.parts.append(compare(name, baseline, arm))
    if not section.parts:
        section.notes.append("No set is decoded with the baseline and another arm.")
        return section
    section.notes.append(
        "The utterances with the largest difference of the word errors, in both "
        "directions. Red: another word; blue: a word is missing; yellow with +: an "
        "additional word."
    )
    return section


def compare(name: str, baseline: Arm, arm: Arm) -> Comparison:
    """Choose and align utterances of a set that two arms have decoded."""
    theirs = baseline.decodings[name].align("wer")
    pairs = list(zip(theirs, arm.decodings[name].align("wer")))
    pairs.sort(key=lambda pair: num_errors(pair[1]) - num_errors(pair[0]))
    chosen = pairs[:_NUM_UTTERANCES] + pairs[_NUM_UTTERANCES:][-_NUM_UTTERANCES:]
    utterances = []
    for first, second in chosen:
        errors = num_errors(first), num_errors(second)
        if errors[0] != errors[1]:
            title = "{} and {} word errors".format(*errors)
            columns = word_columns([first, second])
            utterances.append(AlignedUtterance(first.utt_id, title, columns))
    return Comparison(
        f"{name}: {baseline.name} and {arm.name}",
        ["reference", baseline.name, arm.name],
        utterances,
    )


def num_errors(utterance: Utterance) -> int:
    """Return the number of errors of an utterance."""
    return sum(utterance.count(edit) for edit in "SDI")


def word_columns(
    utterances: Sequence[Utterance],
) -> List[Tuple[str, List[Tuple[str, str]]]]:
    """Align several hypotheses of an utterance with each other.

    Args:
        utterances: Alignments with the same reference.

    Returns:
        For each word, the reference and (edit, word) of each hypothesis. Additional
        words of different hypotheses at the same place share a column.
    """
    columns: List[Tuple[str, List[Tuple[str, str]]]] = []
    for group in zip(*map(split_at_reference, utterances)):
        longest = max(len(inserted) for inserted, *_ in group)
        for i in range(longest):
            words = [inserted[i : i + 1] for inserted, *_ in group]
            columns.append(("", [("I", f"+{w[0]}") if w else ("", "") for w in words]))
        ref = group[0][2]
        if ref:
            hyps = [(edit, hyp or "∗" * len(ref)) for _, edit, _, hyp in group]
            columns.append((ref, hyps))
    return columns


def split_at_reference(
    utterance: Utterance,
) -> List[Tuple[List[str], str, str, str]]:
    """Return additional words before it, edit, word and hypothesis of each word."""
    parts, inserted = [], []
    for edit, ref, hyp in utterance.columns:
        if edit == "I":
            inserted.append(hyp)
        else:
            parts.append((inserted, edit, ref, hyp))
            inserted = []
    return [*parts, (inserted, "", "", "")]


def environment_section(arms: List[Arm]) -> Section:
    """Return versions and hardware of the report, and ESPnet's of the trainings."""
    rows = [[name, value] for name, value in describe_environment().items()]
    for arm in arms:
        version = arm.config.get("version")
        if version:
            rows.append([f"ESPnet of the training {arm.name}", str(version)])
    return Section("Environment of this report", [], [Table(["", ""], rows)])
