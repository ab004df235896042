#!/usr/bin/env python3
"""Make the spoken corpus of the demo recipe again with espeak-ng.

The recipe ships the sets ``train``, ``dev`` and ``test``, so this script is needed
only to change them or to make the larger set ``teacher`` that ``make_teacher.py``
trains on. The layout is that of LibriSpeech: ``SET/SPK/CHAPTER/SPK-CHAPTER-NNNN.opus``
and ``SET/SPK/CHAPTER/SPK-CHAPTER.trans.txt``.

A speaker is an espeak-ng voice (accent and variant) with a base pitch and a speed.
``design.json`` fixes which accent-variant pairs and which sentences belong to which
set, whatever the seed and the sizes, so sets made in separate runs stay disjoint.
"""

import argparse
import io
import json
import logging
import random
import shutil
import subprocess
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import soundfile
from scipy.signal import fftconvolve, resample_poly

RATE = 16000
MIN_SECONDS, MAX_SECONDS = 1.5, 4.0
DESIGN = Path(__file__).resolve().parent.parent / "corpus" / "design.json"


class Speaker(NamedTuple):
    """One voice and the sentences it may say."""

    number: int
    voice: str
    pitch: int
    speed: int
    sentences: Tuple[str, ...]
    num_utts: int


def draw_sentence(design: dict, rng: random.Random) -> str:
    """Draw one sentence from the grammar (capital letters, apostrophe, space)."""
    words = []
    for token in rng.choice(design["templates"]).split():
        if token.startswith("$"):
            token = rng.choice(design["classes"][token[1:]].split("|"))
        words.append(token)
    return " ".join(words)


def draw_sentences(design: dict, name: str, count: int, rng) -> List[str]:
    """Draw ``count`` different sentences that belong to the set ``name``."""
    low, high = design["sets"][name]["hashes"]
    sentences: Dict[str, None] = {}
    for _ in range(1000 * count):
        text = draw_sentence(design, rng)
        if low <= zlib.crc32(text.encode()) % 100 < high:
            sentences[text] = None
        if len(sentences) == count:
            return list(sentences)
    raise ValueError(
        f"the grammar gave {len(sentences)} different sentences for {name}, expected "
        f"{count}: ask for fewer utterances with --sizes or widen {DESIGN.name}"
    )


def draw_speakers(design: dict, name: str, size: int, seed: int) -> List[Speaker]:
    """Draw the speakers of a set and share out its sentences.

    Args:
        design: Content of ``design.json``.
        name: Set name.
        size: Number of utterances of the set.
        seed: Seed of all choices.

    Returns:
        Speakers; each has more sentences than it says because a sentence whose audio
        comes out too short or too long is passed over.
    """
    spec = design["sets"][name]
    rng = random.Random(f"{seed} {name}")
    pairs = [f"{a}+{v}" for a in design["accents"] for v in design["variants"]]
    random.Random(design["partition_seed"]).shuffle(pairs)
    voices = pairs[slice(*spec["voices"])]
    per_speaker = spec["per_speaker"]
    counts = [min(per_speaker, size - i) for i in range(0, size, per_speaker)]
    spare = per_speaker // 2 + 3
    texts = draw_sentences(design, name, size + spare * len(counts), rng)
    speakers = []
    for i, num_utts in enumerate(counts):
        own, texts = texts[: num_utts + spare], texts[num_utts + spare :]
        voice, number = voices[i % len(voices)], spec["first_speaker"] + i
        pitch, speed = rng.randint(20, 80), rng.randint(130, 210)
        speakers.append(Speaker(number, voice, pitch, speed, tuple(own), num_utts))
    return speakers


def synthesize(text: str, speaker: Speaker) -> np.ndarray:
    """Let espeak-ng say ``text``.

    Returns:
        Samples (num_samples,), float32, at 16 kHz, without silence at the ends.
    """
    options = ["-v", speaker.voice, "-p", str(speaker.pitch), "-s", str(speaker.speed)]
    # Lower case, because words in capitals could be spelt out letter by letter.
    command = ["espeak-ng", *options, "--stdout", text.lower()]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0 or not done.stdout:
        raise ValueError(
            f"espeak-ng gave no audio for voice {speaker.voice} "
            f"({done.stderr.decode().strip()}), expected espeak-ng 1.51 or newer with "
            "all its voices: install the whole espeak-ng package"
        )
    audio, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    divisor = np.gcd(rate, RATE)
    audio = resample_poly(audio, RATE // divisor, rate // divisor)
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    return audio[loud[0] : loud[-1] + 1]


def equalize(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Filter with a smooth random frequency response of about +-6 dB."""
    spectrum = np.fft.rfft(audio)
    knots = rng.uniform(-6, 6, 6)
    position = np.linspace(0, 5, len(spectrum))
    gain = 10 ** (np.interp(position, np.arange(6), knots) / 20)
    return np.fft.irfft(spectrum * gain, len(audio))


def reverberate(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add an exponentially decaying noise tail; the length stays the same."""
    decay = rng.uniform(0.08, 0.3)
    time = np.arange(int(decay * RATE)) / RATE
    # 6.9 is the natural logarithm of 1000, the 60 dB of a reverberation time.
    tail = rng.standard_normal(len(time)) * np.exp(-6.9 * time / decay)
    direct_to_tail = 10 ** (rng.uniform(4, 14) / 20)
    tail /= direct_to_tail * np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return fftconvolve(audio, tail)[: len(audio)]


def coloured_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise (num_samples,) of unit power, between white and nearly pink."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequency = np.maximum(np.fft.rfftfreq(num_samples, 1 / RATE), 50)
    noise = np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 0.8), num_samples)
    return noise / np.sqrt(np.mean(noise**2))


def make_realistic(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pad, filter, reverberate, add noise of 10 to 30 dB SNR and set the gain.

    Args:
        audio: Clean speech (num_samples,) at 16 kHz.
        rng: Source of all random choices.

    Returns:
        Samples (num_samples',), float32, with a peak of -14 to -2 dB of full scale.
    """
    audio = np.pad(audio, tuple(rng.integers(RATE // 20, RATE // 5, 2)))
    audio = equalize(audio, rng)
    if rng.random() < 0.5:
        audio = reverberate(audio, rng)
    level = np.sqrt(np.mean(audio**2)) * 10 ** (-rng.uniform(10, 30) / 20)
    audio = audio + level * coloured_noise(len(audio), rng)
    peak = 10 ** (-rng.uniform(2, 14) / 20)
    return (audio * peak / np.abs(audio).max()).astype(np.float32)


def write_audio(stem: Path, audio: np.ndarray, args: argparse.Namespace) -> None:
    """Write samples (num_samples,) as ``stem`` plus the suffix of the format."""
    if args.audio_format == "flac":
        soundfile.write(f"{stem}.flac", audio, RATE)
        return
    kind = {"format": "OGG", "subtype": "OPUS"}
    level = args.compression_level
    soundfile.write(f"{stem}.opus", audio, RATE, compression_level=level, **kind)


def make_speaker(speaker: Speaker, set_dir: Path, args: argparse.Namespace) -> float:
    """Write the utterances and the transcript file of one speaker.

    Args:
        speaker: Voice and sentences.
        set_dir: Directory of the set.
        args: Seed and audio format.

    Returns:
        Seconds of audio written.
    """
    chapter = speaker.number + 1000
    folder = set_dir / str(speaker.number) / str(chapter)
    folder.mkdir(parents=True)
    lines: List[str] = []
    seconds = 0.0
    for text in speaker.sentences:
        entropy = [args.seed, speaker.number, zlib.crc32(text.encode())]
        rng = np.random.default_rng(entropy)
        audio = make_realistic(synthesize(text, speaker), rng)
        if not MIN_SECONDS <= len(audio) / RATE <= MAX_SECONDS:
            continue
        utt = f"{speaker.number}-{chapter}-{len(lines):04d}"
        write_audio(folder / utt, audio, args)
        lines.append(f"{utt} {text}\n")
        seconds += len(audio) / RATE
        if len(lines) == speaker.num_utts:
            break
    else:
        logging.warning(
            f"speaker {speaker.number} has {len(lines)} utterances, expected "
            f"{speaker.num_utts}: its other sentences are too short or too long"
        )
    trans = folder / f"{speaker.number}-{chapter}.trans.txt"
    trans.write_text("".join(lines), encoding="utf-8")
    return seconds


def make_set(design: dict, name: str, size: int, args: argparse.Namespace) -> set:
    """Make one set in place of what the output directory holds of it.

    Returns:
        The words of its transcripts.
    """
    set_dir = Path(args.outdir) / name
    if set_dir.exists():
        shutil.rmtree(set_dir)
    speakers = draw_speakers(design, name, size, args.seed)
    with ProcessPoolExecutor(args.num_jobs) as pool:
        jobs = [pool.submit(make_speaker, s, set_dir, args) for s in speakers]
        seconds = sum(job.result() for job in jobs)
    rows = ["; SPEAKER | ESPEAK-NG VOICE | PITCH (0-99) | WORDS PER MINUTE"]
    rows += [f"{s.number} | {s.voice} | {s.pitch} | {s.speed}" for s in speakers]
    path = Path(args.outdir) / f"speakers_{name}.txt"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    trans = [path.read_text(encoding="utf-8") for path in set_dir.rglob("*.trans.txt")]
    lines = [line.split() for text in trans for line in text.splitlines()]
    words = {word for line in lines for word in line[1:]}
    counts = f"{len(lines)} utterances, {len(words)} words, {seconds / 60:.1f} min"
    logging.info(f"{name}: {len(speakers)} speakers, {counts}")
    return words


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Make the demo corpus with espeak-ng",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--outdir", type=str, required=True, help="Corpus directory")
    add("--sets", nargs="+", default=["train", "dev", "test"], help="or: teacher")
    add("--sizes", nargs="+", type=int, help="Utterances of each of --sets")
    add("--seed", type=int, default=7, help="Seed of all choices")
    add("--num_jobs", type=int, default=1, help="Parallel processes")
    add("--audio_format", choices=["opus", "flac"], default="opus")
    level_help = "Opus rate: 0.0 is 256 kbit/s, 1.0 is 6 kbit/s"
    add("--compression_level", type=float, default=0.95, help=level_help)
    return parser


def main(cmd: Optional[List[str]] = None) -> None:
    """Make the sets that the command line names."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    design = json.loads(DESIGN.read_text(encoding="utf-8"))
    unknown = [name for name in args.sets if name not in design["sets"]]
    if unknown:
        expected = ", ".join(design["sets"])
        raise SystemExit(f"--sets has {unknown}, expected some of: {expected}")
    sizes = args.sizes or [design["sets"][name]["size"] for name in args.sets]
    if len(sizes) != len(args.sets):
        raise SystemExit(
            f"--sizes has {len(sizes)} numbers, expected {len(args.sets)}: give one "
            "for each of --sets"
        )
    if shutil.which("espeak-ng") is None:
        raise SystemExit(
            "espeak-ng is not on PATH, expected version 1.51 or newer: install it "
            "(Debian and Ubuntu: apt-get install espeak-ng)"
        )
    words = {n: make_set(design, n, size, args) for n, size in zip(args.sets, sizes)}
    unseen = words.get("test", set()) - words["train"] if "train" in words else set()
    if unseen:
        raise SystemExit(
            f"test has words that train has not: {sorted(unseen)}, expected none: "
            "make train larger with --sizes or take another --seed"
        )


if __name__ == "__main__":
    main()
