"""Checks of extracted arrays against the corpus, and the report of their results."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Type

from espnet_mvq.files.ark import read_numpy
from espnet_mvq.files.scp import first_few, read_counts, read_ids, read_scp
from espnet_mvq.files.whole_file import file_sha256
from espnet_mvq.indexes.metadata import FrameMetadata
from espnet_mvq.indexes.shard import finished_shard, shard_paths

# Difference between the frames of an utterance and those that its samples give:
# models drop up to two frames at the end, none adds more than one.
_TOLERANCE_FRAMES = 3


@dataclass
class CheckReport:
    """Report of checks.

    Attributes:
        lines: One for each result.
        problems: Messages of the failed checks.
    """

    lines: List[str] = field(default_factory=list)
    problems: List[str] = field(default_factory=list)

    def good(self, topic: str, text: str) -> None:
        """Add a passed check."""
        self.lines.append(f"ok      {topic:<12} {text}")

    def accepted(self, topic: str, text: str) -> None:
        """Add, and log, a deviation that stops nothing."""
        self.lines.append(f"warning {topic:<12} {text}")
        logging.warning(text)

    def bad(self, topic: str, text: str) -> None:
        """Add a failed check."""
        self.lines.append(f"WRONG   {topic:<12} {text}")
        self.problems.append(text)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def check_text(report: CheckReport, text: Path, utt_ids: List[str]) -> None:
    """Check that `text`, if it exists, and the audio have the same utterances."""
    if not text.is_file():
        return
    with_audio, with_text = set(utt_ids), read_ids(text)
    missing = [utt_id for utt_id in with_text if utt_id not in with_audio]
    if not missing:
        report.good("text", f"all {len(with_text)} utterances of {text} have audio")
    elif len(missing) < len(with_text):
        report.accepted(
            "text",
            f"{len(missing)} of {len(with_text)} utterances in {text} have no audio in "
            f"wav.scp, first {first_few(missing)}: they get no "
            "codebook indexes",
        )
    else:
        report.bad(
            "text",
            f"{text} and wav.scp have no utterance in common: the first is "
            f"{with_text[0]} in text, {(utt_ids or ['none'])[0]} in wav.scp; make the "
            "data folder again, with the same utterance ids in both",
        )


def check_shards(
    report: CheckReport, folder: str, nj: int, kind: Type[FrameMetadata]
) -> Optional[FrameMetadata]:
    """Check that all shards are complete, undamaged and made with the same settings.

    Returns:
        Metadata of the first with the skipped utterances and checksums of all; None
        if a check failed.
    """
    shards: List[FrameMetadata] = []
    for job in range(1, nj + 1):
        try:
            shards.append(_load_shard(folder, job, nj, kind, shards))
        except ValueError as error:
            report.bad("shards", str(error))
    if len(shards) < nj:
        return None
    combined = shards[0]
    for metadata in shards[1:]:
        combined.skipped += metadata.skipped
        combined.shards.update(metadata.shards)
    report.good("shards", f"{nj} of {nj}, with the bytes that were written")
    meaning = ", ".join(f"{name} {getattr(combined, name)}" for name in kind.MEANING)
    report.good("made by", meaning)
    return combined


def _load_shard(
    folder: str,
    job: int,
    nj: int,
    kind: Type[FrameMetadata],
    others: List[FrameMetadata],
) -> FrameMetadata:
    """Return the metadata of a good shard that is made like others."""
    ark, _, json_path = shard_paths(folder, job, kind.STEM)
    try:
        metadata = finished_shard(folder, job, kind)
    except ValueError as error:
        raise ValueError(f"{error}; run the extraction again") from error
    if metadata is None:
        raise ValueError(
            f"shard {job} of {nj} in {folder} is missing or not whole; run the "
            "extraction again, finished shards are kept"
        )
    if metadata.shards.get(ark.name) != file_sha256(ark):
        raise ValueError(
            f"{ark}: its bytes are not those that were written (checksum differs); run "
            "the extraction again, it makes this shard anew"
        )
    differences = others[0].differences(metadata) if others else []
    if differences:
        raise ValueError(
            f"{json_path}: not made like shard 1: {'; '.join(differences)}; run the "
            "extraction again"
        )
    return metadata


def read_places(
    report: CheckReport, folder: str, nj: int, kind: Type[FrameMetadata]
) -> Dict[str, str]:
    """Return `ARK:OFFSET` of each utterance; an utterance in two shards is an error."""
    places: Dict[str, str] = {}
    repeated: List[str] = []
    for job in range(1, nj + 1):
        ark, scp, _ = shard_paths(folder, job, kind.STEM)
        # The folder may have been moved or copied after the scp was written.
        ark = ark.resolve()
        for utt_id, place in read_scp(scp).items():
            if utt_id in places:
                repeated.append(utt_id)
            places[utt_id] = f"{ark}:{place.rpartition(':')[2]}"
    if repeated:
        report.bad(
            "utterances",
            f"{len(repeated)} utterances are in two shards, first "
            f"{first_few(repeated)}; were parts of wav.scp of another "
            f"--nj left? Delete {folder} and run the extraction again",
        )
    return places


def check_complete(
    report: CheckReport,
    wav_scp: Path,
    utt_ids: List[str],
    places: Dict[str, str],
    accepted: List[str],
) -> None:
    """Check that every utterance of `wav.scp` has an array or may be without one."""
    missing = [utt_id for utt_id in utt_ids if utt_id not in places]
    if not missing:
        report.good("utterances", f"all {len(utt_ids)} of {wav_scp}, in its order")
        return
    text = (
        f"{len(missing)} of {len(utt_ids)} utterances in {wav_scp} have no codebook "
        f"indexes, first {first_few(missing)}"
    )
    if set(accepted).issuperset(missing):
        report.accepted("utterances", text)
    else:
        report.bad(
            "utterances",
            f"{text}; run the extraction again, with the same --nj. Utterances that it "
            "skips train without the MVQ loss: --on_error skip",
        )


def check_arrays(
    report: CheckReport, places: Dict[str, str], metadata: FrameMetadata
) -> Dict[str, int]:
    """Check type, shape and values of every array.

    Returns:
        Number of frames of each valid array.
    """
    num_frames: Dict[str, int] = {}
    invalid: List[str] = []
    lowest, highest = math.inf, -math.inf
    for utt_id, place in places.items():
        try:
            array = read_numpy(place, utt_id)
            metadata.check(array)
        except Exception as error:  # a damaged ark raises errors of many kinds
            invalid.append(f"{utt_id} ({place}): {error}")
            continue
        num_frames[utt_id] = len(array)
        if array.size:
            lowest = min(lowest, array.min())
            highest = max(highest, array.max())
    if invalid:
        report.bad(
            "values",
            f"{len(invalid)} utterances do not contain valid "
            f"{metadata.STEM.replace('_', ' ')}: {first_few(invalid, '; ')}; "
            "run the extraction again",
        )
    elif lowest <= highest:
        report.good("values", f"{lowest} to {highest}")
    return num_frames


def check_lengths(
    report: CheckReport,
    utt2num_samples: Path,
    num_frames: Dict[str, int],
    metadata: FrameMetadata,
) -> None:
    """Check the number of frames of each utterance against its number of samples."""
    total = sum(num_frames.values())
    if metadata.level == "utterance":
        # `check_arrays` has refused all others.
        report.good("frames", f"{total}, one of each utterance")
        return
    hours = total * metadata.frame_shift_samples / metadata.sample_rate / 3600
    text = f"{total}, {hours:.2f} h"
    try:
        warning = compare_lengths(utt2num_samples, num_frames, metadata)
    except ValueError as error:
        report.bad("frames", str(error))
        return
    if not utt2num_samples.is_file():
        report.accepted("frames", f"{text}; {warning}")
        return
    if warning:
        report.accepted("frames", warning)
    report.good("frames", f"{text}, in agreement with {utt2num_samples}")


def compare_lengths(
    utt2num_samples: Path, num_frames: Dict[str, int], metadata: FrameMetadata
) -> str:
    """Compare numbers of frames with the samples of the speech.

    Returns:
        Warning about utterances that could not be compared; empty if there are none.

    Raises:
        ValueError: If the frames of utterances do not fit, or the file of samples is
            malformed.
    """
    if not utt2num_samples.is_file():
        return f"{utt2num_samples}: no such file; lengths are not checked"
    num_samples = read_counts(utt2num_samples)
    unknown = [utt_id for utt_id in num_frames if utt_id not in num_samples]
    if unknown and len(unknown) == len(num_frames):
        raise ValueError(
            f"{utt2num_samples} has none of the {len(num_frames)} utterances, first "
            f"{unknown[0]}; make it again for this data folder"
        )
    wrong = []
    for utt_id, count in num_frames.items():
        if utt_id in num_samples:
            expected = num_samples[utt_id] / metadata.frame_shift_samples
            if abs(count - expected) > _TOLERANCE_FRAMES:
                wrong.append(f"{utt_id} has {count}, expected {expected:.1f}")
    if wrong:
        raise ValueError(
            f"{len(wrong)} utterances have another number of frames than "
            f"{utt2num_samples} gives: {first_few(wrong, '; ')}. Was the audio "
            "changed after the extraction? Extract again"
        )
    if unknown:
        return (
            f"{len(unknown)} of {len(num_frames)} utterances are not in "
            f"{utt2num_samples}, first {first_few(unknown)}: their lengths are not "
            "checked"
        )
    return ""
