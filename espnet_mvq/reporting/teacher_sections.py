"""Sections of a report on the teacher's data: quantizer, extraction, storage."""

from pathlib import Path
from typing import Dict, List, Optional

from tqdm import tqdm

from espnet_mvq.errors import one_line
from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import FrameMetadata
from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.quality_text import (
    REPORT_NAME,
    findings,
    table_of_codebooks,
)
from espnet_mvq.reporting.arm import Arm, TeacherData
from espnet_mvq.reporting.page import NONE, Section, Table
from espnet_mvq.reporting.training_data import read_quality, target_bytes
from espnet_mvq.reporting.training_log import seconds_per_step


def quantizer_sections(arms: List[Arm]) -> List[Section]:
    """Return the sections on quantizers and on extraction, each file once."""
    used = all_teacher_data(arms)
    quality, extraction = Section("Quantizer"), Section("Extraction")
    if not used:
        note = "No arm has stored data of a teacher."
        return [Section("Quantizer and extraction", [note])]
    quantizers: Dict[str, Optional[Path]] = {}
    for data in used:
        if isinstance(data.metadata, IndexMetadata):
            quantizer_id = data.metadata.quantizer_id
            quantizers[quantizer_id] = quantizers.get(quantizer_id) or data.quantizer
    for quantizer_id, path in quantizers.items():
        if path is None:
            quality.notes.append(f"The file of quantizer {quantizer_id} was not found.")
        else:
            add_quantizer(quality, path)
    columns = [extraction_values(data) for data in used]
    rows = [[name, *(values[name] for values in columns)] for name in columns[0]]
    extraction.parts.append(Table(["", *(str(data.scp) for data in used)], rows))
    return [quality, extraction] if quantizers else [extraction]


def all_teacher_data(arms: List[Arm]) -> List[TeacherData]:
    """Return the stored data of all arms, each file once."""
    used: Dict[Path, TeacherData] = {}
    for arm in arms:
        for data in arm.teacher_data:
            used.setdefault(data.scp.resolve(), data)
    return list(used.values())


def extraction_values(data: TeacherData) -> Dict[str, str]:
    """Describe a file of stored data."""
    metadata = data.metadata
    return {
        "teacher": metadata.teacher,
        "layer": str(metadata.layer),
        "bytes a frame": str(bytes_per_frame(metadata)),
        "frame shift, ms": (
            f"{1000 * metadata.frame_shift_samples / metadata.sample_rate:g}"
        ),
        "utterances": f"{metadata.num_utterances:,}",
        "skipped utterances": str(len(metadata.skipped)),
        "frames": f"{metadata.num_frames:,}",
        "bytes of the arks": f"{data.num_bytes:,}",
    }


def bytes_per_frame(metadata: FrameMetadata) -> int:
    """Return the bytes of a frame: one for an index, two for any other number."""
    return metadata.width * (1 if isinstance(metadata, IndexMetadata) else 2)


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
    section.parts.append(Table(["", f"quantizer {quantizer.id}"], rows, relative(path)))
    report = path.with_name(REPORT_NAME)
    if not report.is_file():
        section.notes.append(
            "The relative reconstruction error is that on held-out frames of the "
            f"quantizer's training. {relative(report)} does not exist; python3 -m "
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
    for arm in arms:
        try:
            size = f"{target_bytes(arm.exp):,}"
        except (OSError, ValueError) as error:
            size = NONE
            section.notes.append(f"{arm.name}: {one_line(error)}.")
        cells = [NONE] * 3
        # ESPnet's trainer for DeepSpeed measures no time.
        if arm.epochs and "train_time" in arm.epochs[-1]:
            step_s = seconds_per_step(arm.epochs)
            # ESPnet counts batches, but times updates of accum_grad batches.
            accum_grad = arm.config.get("accum_grad", 1)
            steps = arm.epochs[-1]["total_count"] / accum_grad
            cells = [
                f"{step_s:.3f}",
                f"{steps:,.0f}",
                tqdm.format_interval(step_s * steps),
            ]
        rows.append([arm.name, *cells, size])
    columns = ["arm", "train s/step", "steps", "time of the steps"]
    columns.append("additional data, bytes on disk")
    section.parts.append(Table(columns, rows))
    used = all_teacher_data(arms)
    dims = {
        data.metadata.quantizer_id: Quantizer.load(data.quantizer).dim
        for data in used
        if data.quantizer
    }
    rows = [storage_row(data, dims) for data in used if data.metadata.level == "frame"]
    if rows:
        columns = ["an hour of speech", "stored, bytes", "float32 embeddings, bytes"]
        section.parts.append(Table([*columns, "ratio"], rows))
    return section


def storage_row(data: TeacherData, dims: Dict[str, int]) -> List[str]:
    """Return the storage of an hour of speech.

    Args:
        data: The stored data.
        dims: Dimension of the embeddings by quantizer.
    """
    metadata = data.metadata
    frames = 3600 * metadata.sample_rate / metadata.frame_shift_samples
    stored = bytes_per_frame(metadata) * frames
    cells = [str(data.scp), f"{stored:,.0f}", NONE, NONE]
    if isinstance(metadata, IndexMetadata):
        dim = dims.get(metadata.quantizer_id)
    else:
        dim = getattr(metadata, "dim", None)  # posteriors have none
    if dim:
        floats = 4 * dim * frames
        cells[2:] = [f"{floats:,.0f}", f"{floats / stored:.0f}"]
    return cells


def relative(path: Path) -> str:
    """Return a path as seen from the working folder, if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
