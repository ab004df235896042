#!/usr/bin/env python3
"""Choose the utterances whose frames a quantizer is trained on."""

import argparse
import logging
from pathlib import Path
from typing import Dict, List, Optional

from espnet_mvq.bin.options import add_logging_options, command, setup_logging
from espnet_mvq.extraction.frame_sampling import read_speakers, shuffle_over_speakers
from espnet_mvq.files.scp import read_counts, read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.indexes.validation import CheckReport, check_text

# Of utterances whose length nobody tells, in s: LibriSpeech's mean
_UNKNOWN_S = 12.0


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Choose random utterances, all speakers alike, until they hold so "
        "many hours of speech, and write their wav.scp and utt2spk.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="data folder with wav.scp")
    parser.add_argument("--outdir", required=True, help="folder of the choice")
    parser.add_argument(
        "--hours", type=float, default=2.0, help="hours of speech to choose"
    )
    parser.add_argument(
        "--sample_rate",
        type=int,
        default=16000,
        help="of utt2num_samples, in Hz; without that file, "
        f"{_UNKNOWN_S:.0f} s are taken for each utterance",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice")
    add_logging_options(parser)
    return parser


@command
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    if not args.hours > 0:  # as NaN is not
        raise ValueError(f"--hours: got {args.hours}, expected more than 0")
    if args.sample_rate < 1:
        raise ValueError(f"--sample_rate: got {args.sample_rate}, expected 1 or more")
    data_dir, outdir = Path(args.data_dir), Path(args.outdir)
    if (data_dir / "segments").exists():
        raise ValueError(
            f"{data_dir}/segments: got recordings that are to be cut, expected a "
            "wav.scp of utterances; ESPnet's stage 3 cuts them into dump/raw"
        )
    places = read_scp(data_dir / "wav.scp")
    if not places:
        raise ValueError(f"{data_dir}/wav.scp: got no utterances, expected at least 1")
    # Here too, not in stage 4 alone: before the teacher runs for hours
    report = CheckReport()
    check_text(report, data_dir / "text", list(places))
    if report.problems:
        raise ValueError(report.problems[0])
    speakers = read_speakers(None, str(data_dir / "wav.scp"))
    durations = read_durations(data_dir / "utt2num_samples", args.sample_rate)
    order = shuffle_over_speakers(list(places), speakers, args.seed)
    chosen = choose(order, durations, 3600 * args.hours)
    outdir.mkdir(parents=True, exist_ok=True)
    chosen.sort(key={utt_id: n for n, utt_id in enumerate(places)}.__getitem__)
    write_text(outdir / "wav.scp", "".join(f"{u} {places[u]}\n" for u in chosen))
    if speakers is not None:
        lines = [f"{u} {speakers[u]}\n" for u in chosen if u in speakers]
        write_text(outdir / "utt2spk", "".join(lines))
    seconds = sum(durations.get(utt_id, _UNKNOWN_S) for utt_id in chosen)
    logging.info(
        f"{outdir}/wav.scp: {len(chosen)} of {len(places)} utterances, about "
        f"{seconds / 3600:.2f} h"
    )


def read_durations(utt2num_samples: Path, sample_rate: int) -> Dict[str, float]:
    """Read the duration of each utterance in s, as far as a file tells it.

    Raises:
        ValueError: If a number of samples is none.
    """
    if not utt2num_samples.is_file():
        logging.warning(f"{utt2num_samples} is not there: durations are guessed")
        return {}
    counts = read_counts(utt2num_samples)
    return {utt_id: number / sample_rate for utt_id, number in counts.items()}


def choose(
    order: List[str], durations: Optional[Dict[str, float]], seconds: float
) -> List[str]:
    """Take utterances from the front until they last so long, at least two.

    Args:
        order: Utterances.
        durations: Their durations in s.
        seconds: How long the chosen ones are to last, together.

    Returns:
        The chosen utterances: all if they do not last so long.
    """
    total, chosen = 0.0, []
    for utt_id in order:
        if total >= seconds and len(chosen) > 1:
            break
        chosen.append(utt_id)
        total += durations.get(utt_id, _UNKNOWN_S)
    return chosen


if __name__ == "__main__":
    main()
