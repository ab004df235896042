#!/usr/bin/env python3
"""Make a domain of a data folder: a group of its speakers in an acoustic condition.

The domains of continual learning are disjoint groups of a corpus's speakers, each in
another condition. Converted audio is written as FLAC into OUTDIR/audio.
"""

import argparse
import logging
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

import numpy as np
import soundfile
from scipy.signal import butter, resample_poly, sosfilt

from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import write_text

PHONE_BAND = (300.0, 3400.0)  # Hz
PHONE_RATE = 8_000  # Hz
MU = 255  # of the mu-law of ITU-T G.711
SPEED = (5, 4)  # 1.25 times as fast
SNR_DB = 10.0
# Converts samples in [-1, 1], float, (S,), given their rate in Hz and a generator
Condition = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def telephone(
    samples: np.ndarray, rate: int, generator: np.random.Generator
) -> np.ndarray:
    """Return telephone speech (S,): band-limited, 8 kHz, 8-bit mu-law.

    The mu-law is the continuous one that ITU-T G.711 approximates by segments.
    """
    band = butter(4, PHONE_BAND, "bandpass", fs=rate, output="sos")
    narrow = resample_poly(sosfilt(band, samples), PHONE_RATE, rate).clip(-1, 1)
    levels = np.sign(narrow) * np.log1p(MU * np.abs(narrow)) / np.log1p(MU)
    levels = np.round(127 * levels) / 127
    narrow = np.sign(levels) * np.expm1(np.log1p(MU) * np.abs(levels)) / MU
    return resample_poly(narrow, rate, PHONE_RATE)[: len(samples)]


def fast(samples: np.ndarray, rate: int, generator: np.random.Generator) -> np.ndarray:
    """Return speech (4 S / 5,) of 1.25 times the speed and pitch."""
    return resample_poly(samples, SPEED[1], SPEED[0])


def noise(samples: np.ndarray, rate: int, generator: np.random.Generator) -> np.ndarray:
    """Return speech (S,) with white noise at an SNR of 10 dB."""
    power = np.mean(samples**2) / 10 ** (SNR_DB / 10)
    return samples + np.sqrt(power) * generator.standard_normal(len(samples))


# None: the audio of the corpus is used unchanged.
CONDITIONS: Dict[str, Optional[Condition]] = {
    "clean": None,
    "telephone": telephone,
    "fast": fast,
    "noise": noise,
}


def get_parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    parser = argparse.ArgumentParser(
        description="Make a domain of a data folder: a group of speakers, a condition",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="Folder to read")
    parser.add_argument("--outdir", required=True, help="Folder to write")
    parser.add_argument(
        "--condition",
        required=True,
        choices=tuple(CONDITIONS),
        help="Acoustic condition",
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs="+",
        default=[1.0],
        help="Share of the speech of each group of speakers",
    )
    parser.add_argument(
        "--group", type=int, default=0, help="Number of the group, from 0"
    )
    parser.add_argument(
        "--max_utterances", type=int, help="Keep at most so many, spread evenly"
    )
    parser.add_argument(
        "--nj", type=int, default=2, help="Files to convert in parallel"
    )
    return parser


def deal_speakers(
    num_samples: Dict[str, int], speakers: Dict[str, str], shares: Sequence[float]
) -> List[List[str]]:
    """Divide the speakers into groups with the given shares of the speech.

    Args:
        num_samples: Samples by utterance.
        speakers: Speaker by utterance.
        shares: Share of each group, more than 0, of any sum.

    Returns:
        Speakers of each group; deterministic.
    """
    totals: Dict[str, int] = {}
    for utt_id, number in num_samples.items():
        totals[speakers[utt_id]] = totals.get(speakers[utt_id], 0) + number
    groups: List[List[str]] = [[] for _ in shares]
    filled = [0] * len(shares)
    # Longest first: the shorter ones balance the groups.
    for speaker in sorted(totals, key=lambda s: (-totals[s], s)):
        after = [(f + totals[speaker]) / s for f, s in zip(filled, shares)]
        group = after.index(min(after))
        filled[group] += totals[speaker]
        groups[group].append(speaker)
    return groups


def choose(args: argparse.Namespace, tables: Dict[str, Dict[str, str]]) -> List[str]:
    """Return the utterances of the domain, in the order of wav.scp.

    Raises:
        ValueError: If shares or group are out of range, an utterance has no speaker,
            text or length, or the group is empty.
    """
    for name, table in tables.items():
        for utt_id in tables["wav.scp"]:
            if utt_id not in table:
                raise ValueError(
                    f"utterance {utt_id}: is in {args.data_dir}/wav.scp and not in "
                    f"{args.data_dir}/{name}, so that it belongs to no domain; add it, "
                    "or remove it from wav.scp"
                )
    if min(args.shares) <= 0 or not 0 <= args.group < len(args.shares):
        raise ValueError(
            f"--shares: got {args.shares} and --group {args.group}, expected numbers "
            f"above 0 and a group from 0 to {len(args.shares) - 1}"
        )
    speakers = tables["utt2spk"]
    num_samples = {u: int(n) for u, n in tables["utt2num_samples"].items()}
    group = set(deal_speakers(num_samples, speakers, args.shares)[args.group])
    utt_ids = [utt_id for utt_id in tables["wav.scp"] if speakers[utt_id] in group]
    if not utt_ids:
        raise ValueError(
            f"{args.data_dir}: no speaker is left for group {args.group} of "
            f"{len(args.shares)}; use fewer groups"
        )
    count = min(args.max_utterances or len(utt_ids), len(utt_ids))
    return [utt_ids[n * len(utt_ids) // count] for n in range(count)]


def convert(utt_id: str, place: str, condition: Condition, folder: Path) -> str:
    """Convert an utterance to a condition and return the file written.

    Raises:
        ValueError: If the audio cannot be read.
    """
    try:
        samples, rate = soundfile.read(place, dtype="float64")
    except (RuntimeError, OSError) as error:
        raise ValueError(f"utterance {utt_id}: cannot read {place}: {error}") from error
    # Seeded by the utterance: the same noise in every run
    generator = np.random.default_rng(zlib.crc32(utt_id.encode()))
    path = folder / f"{utt_id}.flac"
    soundfile.write(path, condition(samples, rate, generator).clip(-1, 1), rate)
    return str(path)


def make_domain(args: argparse.Namespace) -> None:
    """Write the domain's data folder, wav.scp last."""
    source, outdir = Path(args.data_dir), Path(args.outdir).resolve()
    names = ("text", "utt2spk", "utt2num_samples", "wav.scp")
    tables = {name: read_scp(source / name) for name in names}
    utt_ids = choose(args, tables)
    tables = {name: {u: t[u] for u in utt_ids} for name, t in tables.items()}
    condition = CONDITIONS[args.condition]
    outdir.mkdir(parents=True, exist_ok=True)
    (outdir / "wav.scp").unlink(missing_ok=True)
    if condition is not None:
        folder = outdir / "audio"
        folder.mkdir(exist_ok=True)
        with ThreadPoolExecutor(max(1, args.nj)) as pool:
            paths = pool.map(
                lambda item: convert(*item, condition, folder),
                tables["wav.scp"].items(),
            )
            tables["wav.scp"] = dict(zip(utt_ids, paths))
        lengths = (soundfile.info(p).frames for p in tables["wav.scp"].values())
        tables["utt2num_samples"] = dict(zip(utt_ids, map(str, lengths)))
    for name, table in tables.items():
        write_text(outdir / name, "".join(f"{u} {v}\n" for u, v in table.items()))
    logging.info(
        f"{args.outdir}: {len(utt_ids)} utterances of "
        f"{len(set(tables['utt2spk'].values()))} speakers, {args.condition}"
    )


def main(cmd: Optional[List[str]] = None) -> None:
    """Run the command line."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    args = get_parser().parse_args(cmd)
    try:
        make_domain(args)
    except (ValueError, OSError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
