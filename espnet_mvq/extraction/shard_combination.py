"""Shards of an extraction, checked and put into the data folder."""

import logging
from pathlib import Path
from typing import Optional, Type

from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.indexes.metadata import FrameMetadata
from espnet_mvq.indexes.validation import (
    CheckReport,
    check_arrays,
    check_complete,
    check_lengths,
    check_shards,
    check_text,
    read_places,
)


def combine_shards(
    data_dir: Path,
    shards: str,
    nj: int,
    kind: Type[FrameMetadata] = IndexMetadata,
    name: Optional[str] = None,
    on_error: str = "stop",
) -> None:
    """Check all shards, print the result, and write `NAME.scp` and `NAME.json`.

    Args:
        data_dir: Data folder with `wav.scp` and `utt2num_samples`.
        shards: Folder of the shards.
        nj: Number of shards.
        kind: Class of their metadata.
        name: Name of the files; default: that of the kind, as `codebook_indexes`.
        on_error: stop or skip; skip: utterances that the extraction skipped may be
            missing.

    Raises:
        OSError: If a file is missing or cannot be written.
        ValueError: If an argument is out of range or the shards have a problem.
    """
    if nj < 1:
        raise ValueError(f"--nj: got {nj}, expected at least 1")
    if name and Path(name).name != name:
        raise ValueError(f"--name: got {name}, expected a name without folders")
    name = name or kind.STEM
    utt_ids = list(read_scp(data_dir / "wav.scp"))
    report = CheckReport()
    check_text(report, data_dir / "text", utt_ids)
    metadata = check_shards(report, shards, nj, kind)
    if metadata is not None:
        places = read_places(report, shards, nj, kind)
        accepted = metadata.skipped if on_error == "skip" else []
        check_complete(report, data_dir / "wav.scp", utt_ids, places, accepted)
        # Only utterances that wav.scp still has, in its order
        places = {utt_id: places[utt_id] for utt_id in utt_ids if utt_id in places}
        num_frames = check_arrays(report, places, metadata)
        check_lengths(report, data_dir / "utt2num_samples", num_frames, metadata)
        num_bytes = sum(Path(shards, ark).stat().st_size for ark in metadata.shards)
        per_row = num_bytes / max(1, sum(num_frames.values()))
        text = f"{num_bytes} bytes, {per_row:.2f} for each {metadata.level}"
        report.good("size", text)
    print(report, flush=True)
    if report.problems:
        raise ValueError("; ".join(report.problems))
    metadata.num_utterances = len(places)
    metadata.num_frames = sum(num_frames.values())
    lines = [f"{utt_id} {place}\n" for utt_id, place in places.items()]
    # The metadata last: an scp that has metadata is whole.
    (data_dir / f"{name}.json").unlink(missing_ok=True)
    write_text(data_dir / f"{name}.scp", "".join(lines))
    metadata.save(data_dir / f"{name}.json")
    logging.info(
        f"{data_dir / name}.scp: {metadata.num_utterances} of {len(utt_ids)} utterances"
    )
