"""Random utterances of a corpus, drawn from all speakers."""

import logging
import random
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from espnet_mvq.files.scp import read_counts, read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.indexes.validation import CheckReport, check_text

# Duration in s where utt2num_samples is missing: LibriSpeech's mean
UNKNOWN_DURATION_S = 12.0


def read_speakers(utt2spk: Optional[str], wav_scp: str) -> Optional[Dict[str, str]]:
    """Read the speaker of each utterance; None if there is no `utt2spk`."""
    path = Path(utt2spk) if utt2spk else Path(wav_scp).with_name("utt2spk")
    if not utt2spk and not path.is_file():
        logging.info(f"{path}: no such file; utterances are drawn without regard to it")
        return None
    return read_scp(path)


def shuffle_over_speakers(
    utt_ids: Sequence[str], speakers: Optional[Dict[str, str]], seed: int
) -> List[str]:
    """Shuffle utterances so that the first ones cover as many speakers as possible.

    One random utterance of each speaker comes first, then a second one of each, and so
    on. An utterance without a speaker counts as a speaker of its own.

    Args:
        utt_ids: Utterances, in any order.
        speakers: Speaker by utterance.
        seed: Seed of the order; the same utterances come in the same order.

    Returns:
        The utterances.
    """
    shuffled = sorted(utt_ids)
    random.Random(seed).shuffle(shuffled)
    if not speakers:
        return shuffled
    turns: Dict[str, int] = {}
    turn = {}
    for utt_id in shuffled:
        speaker = speakers.get(utt_id, utt_id)
        turn[utt_id] = turns[speaker] = turns.get(speaker, -1) + 1
    return sorted(shuffled, key=turn.__getitem__)


def select_utterances(
    data_dir: Path,
    outdir: Path,
    hours: float = 2.0,
    sample_rate: int = 16000,
    seed: int = 0,
) -> None:
    """Write `wav.scp` and `utt2spk` of random utterances, in the corpus's order.

    Args:
        data_dir: Data folder with `wav.scp`.
        outdir: Folder of the selection; made if missing.
        hours: Hours of speech to select.
        sample_rate: Sample rate of `utt2num_samples`, in Hz.
        seed: Seed of the selection.

    Raises:
        OSError: If a file is missing or cannot be written.
        ValueError: If an argument is out of range, or the data are not of utterances.
    """
    if not hours > 0:  # as NaN is not
        raise ValueError(f"--hours: got {hours}, expected more than 0")
    if sample_rate < 1:
        raise ValueError(f"--sample_rate: got {sample_rate}, expected 1 or more")
    check_no_segments(data_dir)
    places = read_scp(data_dir / "wav.scp")
    if not places:
        raise ValueError(f"{data_dir}/wav.scp: got no utterances, expected at least 1")
    # As in stage 4, but before the teacher runs for hours
    report = CheckReport()
    check_text(report, data_dir / "text", list(places))
    if report.problems:
        raise ValueError(report.problems[0])
    speakers = read_speakers(None, str(data_dir / "wav.scp"))
    durations = _read_durations(data_dir / "utt2num_samples", places, sample_rate)
    order = shuffle_over_speakers(list(places), speakers, seed)
    selected = set(take_hours(order, durations, hours))
    outdir.mkdir(parents=True, exist_ok=True)
    lines = [f"{u} {place}\n" for u, place in places.items() if u in selected]
    write_text(outdir / "wav.scp", "".join(lines))
    if speakers is not None:
        spoken = [u for u in places if u in selected and u in speakers]
        write_text(outdir / "utt2spk", "".join(f"{u} {speakers[u]}\n" for u in spoken))
    seconds = sum(durations[utt_id] for utt_id in selected)
    logging.info(
        f"{outdir}/wav.scp: {len(selected)} of {len(places)} utterances, about "
        f"{seconds / 3600:.2f} h"
    )


def check_no_segments(data_dir: Path) -> None:
    """Refuse a data folder whose `wav.scp` is not of utterances.

    Raises:
        ValueError: If it has a file `segments`.
    """
    if (data_dir / "segments").exists():
        raise ValueError(
            f"{data_dir}/segments: got recordings that are to be cut, expected a "
            "wav.scp of utterances; ESPnet's stage 3 cuts them into dump/raw"
        )


def _read_durations(
    utt2num_samples: Path, places: Dict[str, str], sample_rate: int
) -> Dict[str, float]:
    """Read the duration of each utterance in s, a guess if it is not in the file."""
    counts: Dict[str, int] = {}
    if utt2num_samples.is_file():
        counts = read_counts(utt2num_samples)
    else:
        logging.warning(f"{utt2num_samples}: no such file; durations are guessed")
    return {
        utt_id: counts[utt_id] / sample_rate if utt_id in counts else UNKNOWN_DURATION_S
        for utt_id in places
    }


def take_hours(
    order: Sequence[str], durations: Dict[str, float], hours: float
) -> List[str]:
    """Take utterances from the front until they last so long, at least two.

    Args:
        order: Utterances.
        durations: Their durations in s.
        hours: Duration of the selection.

    Returns:
        The selected utterances: all if they do not last so long.
    """
    total, selected = 0.0, []
    for utt_id in order:
        if total >= 3600 * hours and len(selected) > 1:
            break
        selected.append(utt_id)
        total += durations[utt_id]
    return selected
