"""Some minutes of speech, embedded at several layers: as it is, noisy and reversed."""

import logging
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set, Tuple

import torch
from tqdm import tqdm

from espnet_mvq.extraction.embedding_stream import stop_or_skip
from espnet_mvq.extraction.layer_probe import (
    add_white_noise,
    log_mel_context,
    noise_move,
)
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.base import EmbeddingError

_LONGEST_S = 30.0  # CTC's time grows with the square of an utterance's length
_LEAST_UTTERANCES = 4
_HELD_OUT_EVERY = 4  # every fourth speaker or utterance
_SNR_DB = 20.0


@dataclass
class LayerUtterance:
    """An utterance and its embeddings at several layers, on the CPU.

    Attributes:
        is_held_out: It is not to be trained on.
        log_mel: See `log_mel_context`, (T, M).
        frames: Embeddings, float, (T, L, D).
        noisy: The same of the utterance in noise, if it is held out.
        move: `noise_move` of the utterance, (L,).
        reversed_move: The same of its reversed copy in the same noise, (L,).
    """

    is_held_out: bool
    log_mel: torch.Tensor
    frames: torch.Tensor
    noisy: Optional[torch.Tensor]
    move: torch.Tensor
    reversed_move: torch.Tensor


def read_minutes(
    teacher: Teacher,
    utt_ids: Sequence[str],
    places: Dict[str, str],
    minutes: float,
    on_error: str = "stop",
) -> Dict[str, torch.Tensor]:
    """Read utterances of at most 30 s until they last so long.

    Args:
        teacher: The teacher, which reads.
        utt_ids: Utterances, in the order of their choice.
        places: Audio by utterance.
        minutes: Duration.
        on_error: stop or skip, for audio that cannot be used.

    Returns:
        Waveforms (S,) by utterance.

    Raises:
        AudioError: If audio cannot be used and `on_error` is stop.
        ValueError: If there are fewer than four.
    """
    waveforms: Dict[str, torch.Tensor] = {}
    seconds, num_long = 0.0, 0
    for utt_id in utt_ids:
        if seconds >= 60 * minutes and len(waveforms) >= _LEAST_UTTERANCES:
            break
        try:
            waveform = teacher.read(utt_id, places[utt_id])
        except AudioError as error:
            stop_or_skip(error, on_error)
            continue
        duration = len(waveform) / teacher.sample_rate
        if duration > _LONGEST_S:
            num_long += 1
            continue
        waveforms[utt_id] = waveform
        seconds += duration
    if len(waveforms) < _LEAST_UTTERANCES:
        raise ValueError(
            f"got {len(waveforms)} utterances that can be used, and {num_long} of more "
            f"than {_LONGEST_S:g} s; expected at least {_LEAST_UTTERANCES}, better "
            f"{minutes:g} minutes of many speakers"
        )
    if seconds < 60 * minutes:
        logging.warning(
            f"got {seconds / 60:.1f} minutes of speech, fewer than {minutes:g}: the "
            "scores are less certain"
        )
    return waveforms


def choose_held_out(
    utt_ids: Sequence[str], speakers: Dict[str, str]
) -> Tuple[Set[str], str]:
    """Choose the utterances of every fourth speaker.

    Args:
        utt_ids: Utterances.
        speakers: Speaker by utterance; an utterance without one counts as a speaker.

    Returns:
        The held-out utterances, and in words what they are. With fewer than four
        speakers, or none known, every fourth utterance is held out.
    """
    speaker_of = {utt_id: speakers.get(utt_id, utt_id) for utt_id in utt_ids}
    names = list(dict.fromkeys(speaker_of.values()))
    if speakers and len(names) >= _HELD_OUT_EVERY:
        chosen = set(names[::_HELD_OUT_EVERY])
        held_out = {u for u in utt_ids if speaker_of[u] in chosen}
        return held_out, f"{len(held_out)} of other speakers"
    held_out = set(utt_ids[::_HELD_OUT_EVERY])
    return (
        held_out,
        f"{len(held_out)} of {'the same' if speakers else 'unknown'} speakers",
    )


def embed_copies(
    teacher: Teacher,
    layers: Sequence[int],
    waveforms: Dict[str, torch.Tensor],
    held_out: Set[str],
    seed: int = 0,
    on_error: str = "stop",
) -> Dict[str, LayerUtterance]:
    """Embed utterances as they are, with white noise at 20 dB, and both reversed.

    Args:
        teacher: The teacher.
        layers: Layers to keep, out of the teacher's.
        waveforms: Waveforms (S,) by utterance.
        held_out: The utterances that are held out.
        seed: Seed of the noise.
        on_error: stop or skip, for utterances without finite embeddings.

    Returns:
        Embeddings by utterance.

    Raises:
        EmbeddingError: If an utterance has none and `on_error` is stop.
        ValueError: If no utterance is left to train on, or none to test on.
    """
    generator = torch.Generator().manual_seed(seed)
    utterances: Dict[str, LayerUtterance] = {}
    for utt_id, waveform in tqdm(waveforms.items(), unit="utterance", mininterval=5):
        noisy = add_white_noise(waveform, _SNR_DB, generator)
        copies = [waveform, noisy, waveform.flip(0), noisy.flip(0)]
        try:
            embedded = _embed(teacher, layers, utt_id, copies)
        except EmbeddingError as error:
            stop_or_skip(error, on_error)
            continue
        frames, noisy_frames, backward, noisy_backward = embedded
        utterances[utt_id] = LayerUtterance(
            is_held_out=utt_id in held_out,
            log_mel=log_mel_context(
                waveform,
                len(frames),
                sample_rate=teacher.sample_rate,
                frame_shift_samples=teacher.frame_shift_samples,
                frame_offset_samples=teacher.frame_offset_samples,
            ),
            frames=frames,
            noisy=noisy_frames if utt_id in held_out else None,
            move=noise_move(frames, noisy_frames),
            reversed_move=noise_move(backward, noisy_backward),
        )
    parts = [sum(u.is_held_out == part for u in utterances.values()) for part in (0, 1)]
    if 0 in parts:
        raise ValueError(
            f"got {parts[0]} utterances to train probes on and {parts[1]} to test them "
            "on, all others were skipped; expected some of both: see the warnings above"
        )
    return utterances


def _embed(
    teacher: Teacher,
    layers: Sequence[int],
    utt_id: str,
    waveforms: List[torch.Tensor],
) -> List[torch.Tensor]:
    """Embed copies of an utterance; [(T, L, D), ...] of the layers, on the CPU."""
    try:
        if list(layers) == [teacher.layer]:
            # Also of models whose layers differ in shape
            embedded = [e.unsqueeze(1) for e in teacher.embed_batch(waveforms)]
        else:
            columns = [teacher.layers.index(layer) for layer in layers]
            embedded = [e[:, columns] for e in teacher.embed_layers(waveforms)]
    except EmbeddingError as error:
        raise EmbeddingError(f"utterance {utt_id}: {error}") from error
    if not all(e.isfinite().all() for e in embedded):
        raise EmbeddingError(
            f"utterance {utt_id}: the teacher {teacher.spec} gives NaN or infinity; "
            "check the audio and the teacher's precision"
        )
    return [e.cpu() for e in embedded]
