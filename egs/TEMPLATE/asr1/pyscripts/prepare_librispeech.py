#!/usr/bin/env python3
"""Make a Kaldi-style data directory from one subset of LibriSpeech.

Reads the official layout ``CORPUS/SUBSET/SPK/CHAPTER/SPK-CHAPTER-NNNN.flac`` (or
``.wav``, ``.opus``) with ``SPK-CHAPTER.trans.txt`` beside it. The speaker in
``utt2spk`` is the reader ``SPK``, a prefix of every utterance id; as "-" sorts before
digits, utterances and speakers have the same order without padding. Kaldi's recipe
uses chapters as speakers, so that a held-out speaker may also be in the training set.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import soundfile

EXTENSIONS = (".flac", ".wav", ".opus")
NUM_LISTED = 5
# Kind of defect -> (description, "expected; remedy").
KINDS = {
    "no_trans": (
        "chapter(s) without a readable transcript file",
        "SPK-CHAPTER.trans.txt (UTF-8) beside the audio; restore it from the archive",
    ),
    "misnamed": (
        "audio file(s) in the wrong chapter",
        "SPK-CHAPTER-NNNN as the name in the folder SPK/CHAPTER; move or rename them",
    ),
    "no_audio": (
        "transcript(s) without audio",
        "UTT_ID.flac, .wav or .opus beside the transcript file; restore the audio",
    ),
    "no_text": (
        "audio file(s) without a transcript",
        "a line with the file's name in SPK-CHAPTER.trans.txt; restore the line",
    ),
    "empty_text": (
        "empty transcript(s)",
        "at least one word after the id; correct the transcript file",
    ),
    "duplicate": (
        "utterance id(s) that occur more than once",
        "one audio file and one transcript line for each id; delete the copies",
    ),
    "unreadable": (
        "unreadable audio file(s)",
        "audio that libsndfile opens; restore it, or update soundfile for its format",
    ),
    "empty_audio": ("audio file(s) of zero length", "a sample; restore the file"),
    "sample_rate": (
        "audio file(s) of another sample rate",
        "the rate given by --sample_rate; resample them or change the option",
    ),
    "channels": ("audio file(s) with several channels", "one; mix them down"),
}


class PrepareError(Exception):
    """The corpus cannot be used; the text is the message to the user."""


class Defects:
    """Defects by kind, collected and reported together."""

    def __init__(self):
        self.by_kind: Dict[str, List[str]] = defaultdict(list)

    def add(self, kind: str, who: str, got: str = "") -> None:
        """Add a defect of a file or utterance, and the value it has."""
        self.by_kind[kind].append(f"{who} ({got})" if got else who)

    def report(self, level: int, remedy: str) -> int:
        """Log one message per kind and return the number of defects."""
        for kind in (k for k in KINDS if k in self.by_kind):
            defect, expected = KINDS[kind]
            who = self.by_kind[kind]
            listed = ", ".join(who[:NUM_LISTED]) + (", ..." if who[NUM_LISTED:] else "")
            logging.log(
                level, f"{len(who)} {defect}: {listed}; expected {expected}{remedy}"
            )
        return sum(map(len, self.by_kind.values()))


class Utterance(NamedTuple):
    """One row of the data directory; ``num_samples`` at ``--sample_rate``."""

    utt_id: str
    speaker: str
    path: Path
    text: str
    num_samples: int


def get_parser() -> argparse.ArgumentParser:
    """Return the command line parser."""
    parser = argparse.ArgumentParser(
        description="Make a Kaldi-style data directory from a LibriSpeech subset"
    )
    parser.add_argument("--corpus", required=True, help="Folder that holds the subsets")
    parser.add_argument("--subset", required=True, help="E.g. train-clean-5")
    parser.add_argument("--outdir", required=True, help="Data directory to write")
    parser.add_argument("--sample_rate", type=int, default=16000, help="In Hz")
    parser.add_argument(
        "--on_error",
        choices=["stop", "skip"],
        default="stop",
        help="stop: write nothing; skip: leave out defective utterances",
    )
    parser.add_argument("--nj", type=int, default=2, help="Files to read in parallel")
    return parser


def find_subset(corpus: str, subset: str) -> Path:
    """Return the absolute folder of the subset.

    Raises:
        PrepareError: If the corpus or the subset does not exist.
    """
    root = Path(corpus).resolve()
    if not root.is_dir():
        raise PrepareError(
            f"no corpus folder {root}: set LIBRISPEECH= in db.sh to the folder that "
            "holds train-clean-5, dev-clean and so on"
        )
    folder = root / subset
    if not folder.is_dir():
        folders = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir()))
        raise PrepareError(
            f"no subset {subset} in {root}; there: {folders or 'no folder at all'}; "
            "download it, or correct LIBRISPEECH= in db.sh"
        )
    return folder


def read_transcripts(path: Path, defects: Defects) -> Dict[str, str]:
    """Read one ``*.trans.txt`` as utterance id -> words.

    A repeated or empty line is a defect. Its id is kept without words, so that its
    audio is not reported as well.

    Raises:
        OSError, UnicodeDecodeError: If the file is missing or is not text.
    """
    texts: Dict[str, str] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for utt_id, *words in filter(None, map(str.split, lines)):
        if utt_id in texts:
            defects.add("duplicate", utt_id, f"lines in {path}")
            words = []
        elif not words:
            defects.add("empty_text", utt_id, str(path))
        texts[utt_id] = " ".join(words)
    return texts


def read_chapter(chapter: Path, defects: Defects) -> Dict[str, Tuple[Path, str]]:
    """Return utterance id -> (audio path, words) of utterances without defects."""
    name = f"{chapter.parent.name}-{chapter.name}"
    try:
        texts = read_transcripts(chapter / f"{name}.trans.txt", defects)
    except (OSError, UnicodeDecodeError) as error:
        defects.add("no_trans", str(chapter), str(error))
        return {}
    paths: Dict[str, Path] = {}
    for path in sorted(p for p in chapter.iterdir() if p.suffix in EXTENSIONS):
        if not path.stem.startswith(f"{name}-"):
            defects.add("misnamed", str(path))
        elif path.stem in paths:
            defects.add("duplicate", path.stem, f"{paths[path.stem]}, {path.name}")
            texts[path.stem] = ""
        else:
            paths[path.stem] = path
    for utt_id in sorted(texts.keys() - paths.keys()):
        defects.add("no_audio", utt_id, str(chapter))
    for utt_id in sorted(paths.keys() - texts.keys()):
        defects.add("no_text", str(paths[utt_id]))
    return {u: (path, texts[u]) for u, path in paths.items() if texts.get(u)}


def check_audio(path: Path, sample_rate: int) -> Tuple[int, str, str]:
    """Return the number of samples, the kind of defect or "", and its value.

    libsndfile's header count is the decoded length, for Ogg Opus too.
    """
    try:
        if path.stat().st_size == 0:  # as an interrupted copy leaves it
            return 0, "empty_audio", "0 bytes"
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        return 0, "unreadable", getattr(error, "error_string", str(error))
    if info.samplerate != sample_rate:
        return 0, "sample_rate", f"{info.samplerate} Hz, not {sample_rate} Hz"
    if info.channels != 1:
        return 0, "channels", f"{info.channels} channels"
    if info.frames < 1:
        return 0, "empty_audio", "0 samples"
    return info.frames, "", ""


def read_subset(
    folder: Path, sample_rate: int, nj: int, defects: Defects
) -> List[Utterance]:
    """Return the utterances of a subset without defects, in ``LC_ALL=C sort`` order."""
    chapters: Dict[str, Tuple[Path, str]] = {}
    for chapter in sorted(p for p in folder.glob("*/*") if p.is_dir()):
        chapters.update(read_chapter(chapter, defects))
    # Python sorts by code point, which is the byte order of UTF-8 and thus C's order.
    utt_ids = sorted(chapters)
    with ThreadPoolExecutor(max(nj, 1)) as pool:
        checked = pool.map(lambda u: check_audio(chapters[u][0], sample_rate), utt_ids)
    utterances = []
    for utt_id, (num_samples, kind, got) in zip(utt_ids, checked):
        path, text = chapters[utt_id]
        if kind:
            defects.add(kind, str(path), got)
        else:
            speaker = path.parent.parent.name
            utterances.append(Utterance(utt_id, speaker, path, text, num_samples))
    return utterances


def write_data_dir(utterances: List[Utterance], outdir: Path) -> None:
    """Write the five files, ``wav.scp`` last.

    They are written beside ``outdir`` and moved: if there is a ``wav.scp``, all files
    are complete. Other files in ``outdir`` are kept.
    """
    spk2utt: Dict[str, List[str]] = defaultdict(list)
    for u in utterances:
        spk2utt[u.speaker].append(u.utt_id)
    files = {
        "text": [f"{u.utt_id} {u.text}" for u in utterances],
        "utt2spk": [f"{u.utt_id} {u.speaker}" for u in utterances],
        "spk2utt": [f"{spk} {' '.join(spk2utt[spk])}" for spk in sorted(spk2utt)],
        "utt2num_samples": [f"{u.utt_id} {u.num_samples}" for u in utterances],
        "wav.scp": [f"{u.utt_id} {u.path}" for u in utterances],
    }
    outdir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{outdir.name}.", dir=outdir.parent))
    try:
        for name, lines in files.items():
            text = "".join(f"{line}\n" for line in lines)
            (temporary / name).write_text(text, encoding="utf-8")
        outdir.mkdir(exist_ok=True)
        (outdir / "wav.scp").unlink(missing_ok=True)
        for name in files:
            os.replace(temporary / name, outdir / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prepare(args: argparse.Namespace) -> None:
    """Read, check, write, and log the closing line."""
    folder = find_subset(args.corpus, args.subset)
    defects = Defects()
    utterances = read_subset(folder, args.sample_rate, args.nj, defects)
    if args.on_error == "skip":
        defects.report(logging.WARNING, "; left out")
    elif defects.report(logging.ERROR, ", or leave them out by --on_error skip"):
        sys.exit(1)
    if not utterances:
        raise PrepareError(
            f"no utterance in {folder}: expected SPK/CHAPTER/SPK-CHAPTER-NNNN.flac "
            "(or .wav, .opus) with SPK-CHAPTER.trans.txt"
        )
    write_data_dir(utterances, Path(args.outdir).resolve())
    hours = sum(u.num_samples for u in utterances) / args.sample_rate / 3600
    num_speakers = len({u.speaker for u in utterances})
    logging.info(
        f"{args.outdir}: {len(utterances)} utterances, {num_speakers} speakers, "
        f"{hours:.2f} hours"
    )


def main(cmd: Optional[List[str]] = None) -> None:
    """Run the command line."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s",
    )
    args = get_parser().parse_args(cmd)
    try:
        prepare(args)
    except (PrepareError, OSError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
