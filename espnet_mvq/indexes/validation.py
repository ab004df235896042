"""What `combine_indexes` checks of an extraction, and the report it prints."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Tuple, Type, Union

from espnet_mvq.files.ark import read_numpy
from espnet_mvq.files.scp import read_counts, read_ids, read_scp
from espnet_mvq.files.whole_file import file_sha256
from espnet_mvq.indexes.metadata import FrameMetadata
from espnet_mvq.indexes.shard import finished_shard, shard_paths

# Frames by which an utterance's arrays may differ from what its samples give:
# models drop up to two frames at the end, none adds more than one.
_TOLERANCE_FRAMES = 3
_SHOWN = 5  # offenders named


@dataclass
class CheckReport:
    """Lines of a report, and the problems among them."""

    lines: List[str] = field(default_factory=list)
    problems: List[str] = field(default_factory=list)

    def good(self, what: str, text: str) -> None:
        """Say that something is as it should be."""
        self.lines.append(f"ok      {what:<12} {text}")

    def accepted(self, what: str, text: str) -> None:
        """Say that something is not, which the user has accepted or may not mind."""
        self.lines.append(f"warning {what:<12} {text}")
        logging.warning(text)

    def bad(self, what: str, text: str) -> None:
        """Say that something is wrong."""
        self.lines.append(f"WRONG   {what:<12} {text}")
        self.problems.append(text)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def check_shards(
    report: CheckReport, folder: str, nj: int, kind: Type[FrameMetadata]
) -> Optional[FrameMetadata]:
    """Check that all shards are there, whole, undamaged and alike.

    Returns:
        Their metadata added up; None if they cannot be.
    """
    combined: Optional[FrameMetadata] = None
    ok = True
    for job in range(1, nj + 1):
        ark, _, json_path = shard_paths(folder, job, kind.STEM)
        problem = metadata = None
        try:
            metadata = finished_shard(folder, job, kind)
        except ValueError as error:  # damaged metadata
            problem = f"{error}; run the extraction again"
        if problem:
            pass
        elif metadata is None:
            problem = (
                f"shard {job} of {nj} in {folder} is not there or not whole; run the "
                "extraction again, finished shards are kept"
            )
        elif metadata.shards.get(ark.name) != file_sha256(ark):
            problem = (
                f"{ark}: its bytes are not those that were written (checksum differs); "
                f"delete {json_path} and run the extraction again"
            )
        elif combined is not None and combined.differences(metadata):
            problem = (
                f"{json_path}: not made like shard 1: "
                f"{'; '.join(combined.differences(metadata))}; run the extraction again"
            )
        if problem:
            report.bad("shards", problem)
            ok = False
        elif combined is None:
            combined = metadata
        else:
            combined.skipped += metadata.skipped
            combined.shards.update(metadata.shards)
    if not ok or combined is None:
        return None
    report.good("shards", f"{nj} of {nj}, with the bytes that were written")
    meaning = ", ".join(f"{name} {getattr(combined, name)}" for name in kind.MEANING)
    report.good("made by", meaning)
    return combined


def read_places(
    report: CheckReport, folder: str, nj: int, kind: Type[FrameMetadata]
) -> Dict[str, str]:
    """Return where each utterance's array lies; none may lie in two shards."""
    places: Dict[str, str] = {}
    twice: List[str] = []
    for job in range(1, nj + 1):
        ark, scp, _ = shard_paths(folder, job, kind.STEM)
        # The ark of this folder, which may have been moved or copied since.
        here = {
            utt_id: f"{ark.resolve()}:{place.rpartition(':')[2]}"
            for utt_id, place in read_scp(scp).items()
        }
        twice += [utt_id for utt_id in here if utt_id in places]
        places.update(here)
    if twice:
        report.bad(
            "utterances",
            f"{len(twice)} utterances lie in two shards, first "
            f"{', '.join(twice[:_SHOWN])}; were parts of wav.scp of another --nj left? "
            f"Delete {folder} and run the extraction again",
        )
    return places


def check_complete(
    report: CheckReport,
    wav_scp: Path,
    utt_ids: List[str],
    places: Dict[str, str],
    accepted: List[str],
) -> None:
    """Check that every utterance of the corpus has an array, or is an accepted one."""
    missing = [utt_id for utt_id in utt_ids if utt_id not in places]
    if not missing:
        report.good("utterances", f"all {len(utt_ids)} of {wav_scp}, in its order")
        return
    text = (
        f"{len(missing)} of {len(utt_ids)} utterances in {wav_scp} have no codebook "
        f"indexes, first {', '.join(missing[:_SHOWN])}"
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
    """Read every array: type, shape, range. Return the frames of each that can be."""
    num_frames: Dict[str, int] = {}
    wrong: List[str] = []
    lowest_highest: Optional[Tuple[float, float]] = None
    for utt_id, place in places.items():
        try:
            array = read_numpy(place, utt_id)
            metadata.check(array)
        except Exception as error:  # whatever the bytes of a damaged ark provoke
            wrong.append(f"{utt_id} ({place}): {error}")
            continue
        num_frames[utt_id] = len(array)
        if array.size:
            low, high = lowest_highest or (array.flat[0], array.flat[0])
            lowest_highest = min(low, array.min()), max(high, array.max())
    if wrong:
        report.bad(
            "values",
            f"{len(wrong)} utterances hold something else than "
            f"{metadata.STEM.replace('_', ' ')}: {'; '.join(wrong[:_SHOWN])}; run the "
            "extraction again",
        )
    elif lowest_highest:
        report.good("values", "{} to {}".format(*lowest_highest))
    return num_frames


def wrong_lengths(
    utt2num_samples: Union[str, Path],
    num_frames: Dict[str, int],
    metadata: FrameMetadata,
) -> Optional[str]:
    """Say which utterances' frames do not fit the samples of their speech.

    Returns:
        A message; empty if all fit, None if there is no such file.
    """
    if not Path(utt2num_samples).is_file():
        return None
    num_samples = read_counts(utt2num_samples)
    if num_frames and num_samples.keys().isdisjoint(num_frames):
        return (
            f"{utt2num_samples} has none of the {len(num_frames)} utterances, first "
            f"{next(iter(num_frames))}; make it again for this data folder"
        )
    wrong = []
    for utt_id, found in num_frames.items():
        if utt_id not in num_samples:
            continue  # see `without_samples`
        expected = num_samples[utt_id] / metadata.frame_shift_samples
        if abs(found - expected) > _TOLERANCE_FRAMES:
            wrong.append(f"{utt_id} has {found}, expected {expected:.1f}")
    if not wrong:
        return ""
    return (
        f"{len(wrong)} utterances have another number of frames than "
        f"{utt2num_samples} gives: {'; '.join(wrong[:_SHOWN])}. Was the audio changed "
        "after the extraction? Extract again"
    )


def without_samples(
    utt2num_samples: Union[str, Path], utt_ids: Iterable[str]
) -> Optional[str]:
    """Say which utterances have no number of samples; None if all do, or no file."""
    if not Path(utt2num_samples).is_file():
        return None
    known, utt_ids = set(read_ids(utt2num_samples)), list(utt_ids)
    missing = [utt_id for utt_id in utt_ids if utt_id not in known]
    if not missing:
        return None
    return (
        f"{len(missing)} of {len(utt_ids)} utterances are not in {utt2num_samples}, "
        f"first {', '.join(missing[:_SHOWN])}: their lengths are not checked"
    )


def check_text(report: CheckReport, text: Path, utt_ids: List[str]) -> None:
    """Check that text and audio are of the same utterances, where there is a text."""
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
            f"wav.scp, first {', '.join(missing[:_SHOWN])}: they get no "
            "codebook indexes",
        )
    else:
        report.bad(
            "text",
            f"{text} and wav.scp have no utterance in common: the first is "
            f"{with_text[0]} in text, {(utt_ids or ['none'])[0]} in wav.scp; make the "
            "data folder again, with the same utterance ids in both",
        )


def check_lengths(
    report: CheckReport,
    utt2num_samples: Path,
    num_frames: Dict[str, int],
    metadata: FrameMetadata,
) -> None:
    """Check the number of frames of each utterance."""
    total = sum(num_frames.values())
    if metadata.level == "utterance":
        # `check_arrays` has refused all others.
        report.good("frames", f"{total}, one of each utterance")
        return
    hours = total * metadata.frame_shift_samples / metadata.sample_rate / 3600
    text = f"{total}, {hours:.2f} h"
    wrong = wrong_lengths(utt2num_samples, num_frames, metadata)
    unknown = without_samples(utt2num_samples, num_frames)
    if unknown and not wrong:
        report.accepted("frames", unknown)
    if wrong is None:
        report.accepted(
            "frames",
            f"{text}; {utt2num_samples} is not there: lengths are not checked",
        )
    elif wrong:
        report.bad("frames", wrong)
    else:
        report.good("frames", f"{text}, as {utt2num_samples} says")
