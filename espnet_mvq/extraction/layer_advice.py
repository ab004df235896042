"""Advice on the layer of a teacher, before hours of extraction and training."""

import contextlib
import logging
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch

from espnet_mvq.extraction.advice_files import Advice, write_advice
from espnet_mvq.extraction.layer_probe import (
    join_frames,
    reversal_ratio,
    standardise,
    text_error_rate,
)
from espnet_mvq.extraction.layer_speech import (
    LayerUtterance,
    choose_held_out,
    embed_copies,
    read_minutes,
)
from espnet_mvq.extraction.layer_verdict import LayerScore, judge
from espnet_mvq.extraction.selection import (
    check_no_segments,
    read_speakers,
    shuffle_over_speakers,
)
from espnet_mvq.files.scp import read_scp
from espnet_mvq.indexes.validation import CheckReport, check_text
from espnet_mvq.quantization import QuantizerTrainer
from espnet_mvq.quantization.quality import linear_probe
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.base import FrameSource

_CTC_SHIFT_S = 0.04  # 20 ms take twice the time and do not read better
_ROUNDS = 2  # of the quantizer's training; two more lower the error by 2 %
# CTC learns a character that occurs as often. Some minutes of Chinese have few of them,
# and the error rate would say nothing about the layer.
_OFTEN, _OFTEN_SHARE = 20, 0.8


def advise(
    load_teacher: Callable[[int], FrameSource],
    data_dir: Path,
    output_dir: Path,
    *,
    layers: Optional[Sequence[int]] = None,
    minutes: float = 6.0,
    num_codebooks: int = 8,
    codebook_size: int = 256,
    seed: int = 0,
    on_error: str = "stop",
) -> str:
    """Compare the layers of a teacher on some minutes of speech, and write the result.

    Args:
        load_teacher: Builds the teacher of a layer.
        data_dir: Data folder with `wav.scp`; `text` and `utt2spk` are used if there.
        output_dir: Folder of the files of `write_advice`; made if missing.
        layers: Layers to compare, -1 for the last; None: all from 1 on.
        minutes: Speech to use, of as many speakers as possible.
        num_codebooks: Codebooks of the quantizer whose error is measured.
        codebook_size: Their size.
        seed: Seed of the utterances, the noise and the trainings.
        on_error: stop or skip, for utterances that cannot be used.

    Returns:
        Verdict and table as markdown.

    Raises:
        OSError: If a file is missing or cannot be written.
        ValueError: If an argument is out of range, the teacher has no such layer, or
            the data are too few or cannot be used.
    """
    settings = {
        "num_codebooks": num_codebooks,
        "codebook_size": codebook_size,
        "num_iterations": _ROUNDS,
        "seed": seed,
    }
    _check(data_dir, output_dir, minutes, settings)
    places = read_scp(data_dir / "wav.scp")
    texts = _read_texts(data_dir / "text", places)
    speakers = read_speakers(None, str(data_dir / "wav.scp")) or {}
    needs_last = layers is None or -1 in layers
    teacher = load_teacher(-1 if needs_last else max(layers))
    if not isinstance(teacher, Teacher):
        raise ValueError(
            f"teacher {teacher.spec}: got stored embeddings, expected a model: noisy "
            "and reversed copies of the speech have to be embedded too"
        )
    chosen = _choose_layers(teacher, layers)
    order = shuffle_over_speakers(list(texts or places), speakers, seed)
    with _errors_of(data_dir):
        waveforms = read_minutes(teacher, order, places, minutes, on_error)
    held_out, held_out_words = choose_held_out(list(waveforms), speakers)
    utterances = embed_copies(teacher, chosen, waveforms, held_out, seed, on_error)
    if texts and not can_be_read([texts[u] for u in utterances if u not in held_out]):
        texts = {}
    shift_s = teacher.frame_shift_samples / teacher.sample_rate
    with _errors_of(data_dir):
        scores, log_mel_error_rate = score_layers(
            utterances, chosen, texts, max(1, round(_CTC_SHIFT_S / shift_s)), settings
        )
    used = {utt_id: waveforms[utt_id] for utt_id in utterances}
    advice = Advice(
        teacher=teacher.id,
        data_dir=str(data_dir),
        speech=f"{_describe(used, speakers, teacher.sample_rate)}, {held_out_words} "
        "held out",
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        log_mel_error_rate=log_mel_error_rate,
        scores=scores,
        verdict=judge(scores, log_mel_error_rate),
    )
    return write_advice(advice, output_dir)


def _describe(
    waveforms: Dict[str, torch.Tensor], speakers: Dict[str, str], sample_rate: int
) -> str:
    """Describe speech in words."""
    minutes = sum(map(len, waveforms.values())) / sample_rate / 60
    known = {speakers[utt_id] for utt_id in waveforms if utt_id in speakers}
    of = f" of {len(known)} speaker{'s' * (len(known) != 1)}" * bool(known)
    return f"{minutes:.1f} minutes, {len(waveforms)} utterances{of}"


@contextlib.contextmanager
def _errors_of(data_dir: Path) -> Iterator[None]:
    """Context whose errors are about too little speech: they name the data folder."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{data_dir}: {error}") from error


def _check(
    data_dir: Path, output_dir: Path, minutes: float, settings: Dict[str, Any]
) -> None:
    """Check arguments and data folder, before the teacher is loaded."""
    if not 0 < minutes < float("inf"):  # as NaN is not
        raise ValueError(f"--minutes: got {minutes}, expected a number above 0")
    try:
        QuantizerTrainer(1, **settings)
    except ValueError as error:
        raise ValueError(f"--{error}") from error  # it begins with the setting's name
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir: got the file {output_dir}, expected a folder")
    check_no_segments(data_dir)


def _read_texts(path: Path, places: Dict[str, str]) -> Dict[str, str]:
    """Read the texts of utterances that have audio and a text; none without a file."""
    if not path.is_file():
        logging.info(f"{path}: no such file; layers are compared without a text")
        return {}
    report = CheckReport()
    check_text(report, path, list(places))
    if report.problems:
        raise ValueError(report.problems[0])
    texts = read_scp(path, empty_values=True)
    return {utt_id: text for utt_id, text in texts.items() if text and utt_id in places}


def _choose_layers(teacher: Teacher, layers: Optional[Sequence[int]]) -> List[int]:
    """Return the layers to compare, in the teacher's order."""
    if layers is None:
        return teacher.layers[1:] or teacher.layers
    wanted = {teacher.layer if layer == -1 else layer for layer in layers}
    missing = wanted - set(teacher.layers)
    if missing:
        raise ValueError(
            f"teacher {teacher.spec}: got layer {min(missing)}, expected some of "
            f"{', '.join(map(str, teacher.layers))}"
        )
    return [layer for layer in teacher.layers if layer in wanted]


def can_be_read(texts: Sequence[str]) -> bool:
    """Whether texts have enough of each character to learn it; else log a warning."""
    counts = Counter("".join(texts))
    often = sum(count for count in counts.values() if count >= _OFTEN)
    share = often / max(1, sum(counts.values()))
    if share >= _OFTEN_SHARE:
        return True
    logging.warning(
        f"text: {100 * share:.0f} % of the characters occur {_OFTEN} times or more in "
        f"the {len(texts)} utterances to train on, expected {100 * _OFTEN_SHARE:.0f} %:"
        " layers are compared without the text; use more --minutes, or a text in "
        "phonemes or Latin letters"
    )
    return False


def score_layers(
    utterances: Dict[str, LayerUtterance],
    layers: Sequence[int],
    texts: Dict[str, str],
    frames_per_ctc_frame: int,
    settings: Dict[str, Any],
) -> Tuple[List[LayerScore], Optional[float]]:
    """Score layers on the held-out utterances.

    Args:
        utterances: Utterances by id.
        layers: Numbers of their layers.
        texts: Text of each utterance; none without texts.
        frames_per_ctc_frame: Frames that are averaged for CTC.
        settings: Of `QuantizerTrainer`.

    Returns:
        Scores of the layers, and the error rate of log-mel frames; None without texts.
    """
    seed = settings["seed"]

    def error_rate(frames_of: Callable[[LayerUtterance], torch.Tensor]):
        if not texts:
            return None
        parts = ([], [])
        for utt_id, utterance in utterances.items():
            frames = join_frames(frames_of(utterance), frames_per_ctc_frame)
            parts[utterance.is_held_out].append((frames, texts[utt_id]))
        return text_error_rate(*parts, seed=seed)

    ratios = reversal_ratio(
        torch.stack([u.move for u in utterances.values()]),
        torch.stack([u.reversed_move for u in utterances.values()]),
    )
    train = [u for u in utterances.values() if not u.is_held_out]
    test = [u for u in utterances.values() if u.is_held_out]
    scores = []
    for n, layer in enumerate(layers):
        logging.info(f"layer {layer}")
        x, y, noisy = standardise(
            torch.cat([u.frames[:, n] for u in train]),
            torch.cat([u.frames[:, n] for u in test]),
            torch.cat([u.noisy[:, n] for u in test]),
        )
        quantizer = QuantizerTrainer(x.shape[1], **settings, progress=False).fit(x)
        indexes = quantizer.encode(y)
        # Of few frames, a probe learns the largest codebook only.
        probe = linear_probe(
            (torch.cat([u.log_mel for u in train]), quantizer.encode(x)[:, :1]),
            (torch.cat([u.log_mel for u in test]), indexes[:, :1]),
            quantizer.codebook_size,
            seed=seed,
        )
        scores.append(
            LayerScore(
                layer=layer,
                error_rate=error_rate(lambda utterance: utterance.frames[:, n]),
                reversal_ratio=float(ratios[n]),
                quantizer_error=quantizer.relative_reconstruction_error(y, indexes),
                unchanged=float((quantizer.encode(noisy) == indexes).float().mean()),
                log_mel_nats=float(probe.entropy_nats - probe.cross_entropy_nats),
            )
        )
    return scores, error_rate(lambda utterance: utterance.log_mel)
