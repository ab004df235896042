"""A quantizer trained on a teacher's embeddings of random utterances."""

import hashlib
import logging
import math
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Optional, Union

from espnet_mvq.extraction.frame_sampling import num_held_out, sample_training_frames
from espnet_mvq.extraction.selection import read_speakers
from espnet_mvq.files.scp import read_scp
from espnet_mvq.quantization import Quantizer, QuantizerTrainer
from espnet_mvq.quantization.quantizer_file import DamagedQuantizerError
from espnet_mvq.teachers import Teacher

# Default number of codebooks by level
_NUM_CODEBOOKS = {"frame": 16, "utterance": 1}
# Values of options that files do not have in their provenance if they are older
_OLDER = {"level": "frame"}


def train_quantizer(
    load_teacher: Callable[[], Teacher],
    wav_scp: str,
    path: Union[str, Path],
    settings: Dict[str, Any],
    *,
    num_codebooks: Optional[int] = None,
    level: str = "frame",
    oversampling: float = 2.0,
    utt2spk: Optional[str] = None,
    on_error: str = "stop",
) -> None:
    """Train a quantizer and write it, unless the file exists with the same options.

    Args:
        load_teacher: Builds the teacher; called after all other arguments are checked.
        wav_scp: `wav.scp` of the training set.
        path: The quantizer's file, safetensors.
        settings: Further arguments of `QuantizerTrainer`: codebook_size, max_frames,
            num_iterations, normalize and seed, which draws utterances and frames too.
        num_codebooks: Codebooks; default: 16, at utterance level 1.
        level: See `to_level`.
        oversampling: See `sample_frames`.
        utt2spk: Speakers; default: the file of this name beside `wav_scp`, if any.
        on_error: See `embed_utterances`.

    Raises:
        OSError: If a file is missing or cannot be written.
        ValueError: If an argument is out of range, the corpus is too small, or an
            utterance cannot be used.
    """
    path = Path(path)
    if num_codebooks is None:
        num_codebooks = _NUM_CODEBOOKS[level]
    settings = {"num_codebooks": num_codebooks, **settings}
    _check_settings(settings, oversampling)
    _check_path(path)
    places = read_scp(wav_scp)
    _check_enough(len(places), wav_scp, level, settings)
    speakers = read_speakers(utt2spk, wav_scp)
    _warn_of_unknown_speakers(places, speakers)
    teacher = load_teacher()
    provenance = {
        "teacher": teacher.id,
        "layer": teacher.layer,
        "level": level,
        **settings,
        "oversampling": oversampling,
        "corpus_utterances": len(places),
        "corpus": _hash_ids(places),
    }
    if path.is_file() and _is_trained_with(path, provenance):
        logging.info(f"{path} exists, trained with these options")
        return
    _check_room(path, 4 * num_codebooks * settings["codebook_size"] * teacher.dim)
    checkpoint = path.with_suffix(".checkpoint.pt")
    trainer = QuantizerTrainer(
        teacher.dim, **settings, device=teacher.device, checkpoint=checkpoint
    )
    frames, held_out = sample_training_frames(
        teacher,
        places,
        settings["max_frames"],
        settings["seed"],
        speakers=speakers,
        oversampling=oversampling,
        level=level,
        on_error=on_error,
    )
    quantizer = trainer.fit(frames, held_out, provenance)
    quantizer.save(path)
    checkpoint.unlink(missing_ok=True)
    logging.info(f"wrote {path}: {quantizer}")


def _check_settings(settings: Dict[str, Any], oversampling: float) -> None:
    """Check the trainer's settings, before the teacher is loaded."""
    if not 1 <= oversampling < math.inf:
        raise ValueError(
            f"--oversampling: got {oversampling}, expected a number of at least 1"
        )
    try:
        QuantizerTrainer(1, **settings)
    except ValueError as error:
        raise ValueError(f"--{error}") from error  # it begins with the setting's name


def _check_path(path: Path) -> None:
    """Refuse a folder, and a path below a file."""
    if path.is_dir():
        raise ValueError(
            f"--quantizer: got the folder {path}, expected a file, as "
            f"{path / 'quantizer.safetensors'}"
        )
    for folder in path.parents:
        if folder.exists() and not folder.is_dir():
            raise ValueError(
                f"--quantizer: got {path}, but {folder} is a file; expected a folder"
            )


def _check_enough(
    num_utterances: int, wav_scp: str, level: str, settings: Dict[str, Any]
) -> None:
    """Refuse a corpus of too few utterances."""
    if num_utterances < 2:
        raise ValueError(
            f"--wav_scp: got {num_utterances} utterances in {wav_scp}, expected at "
            "least 2: one is held out"
        )
    num_vectors = num_utterances - num_held_out(num_utterances)
    num_vectors = min(settings["max_frames"], num_vectors)
    if level == "utterance" and num_vectors < settings["codebook_size"]:
        raise ValueError(
            f"--codebook_size: got {settings['codebook_size']}, expected at most "
            f"{num_vectors}: at utterance level the {num_utterances} utterances give "
            "that many training vectors; use smaller codebooks or more utterances"
        )


def _warn_of_unknown_speakers(
    places: Dict[str, str], speakers: Optional[Dict[str, str]]
) -> None:
    """Log the number of utterances without a speaker, where others have one."""
    unknown = [] if speakers is None else [u for u in places if u not in speakers]
    if unknown:
        logging.warning(
            f"utt2spk: {len(unknown)} of {len(places)} utterances are not in it, first "
            f"{unknown[0]}; each counts as a speaker of its own"
        )


def _hash_ids(utt_ids: Iterable[str]) -> str:
    """Hash the utterances of a corpus, whatever their order."""
    return hashlib.sha256("\n".join(sorted(utt_ids)).encode()).hexdigest()[:16]


def _is_trained_with(path: Path, provenance: Dict[str, object]) -> bool:
    """Whether a quantizer file is whole and was trained with these options."""
    try:
        stored = Quantizer.load(path).provenance
    except ValueError as error:
        damaged = isinstance(error, DamagedQuantizerError)
        if not damaged or path.suffix != ".safetensors":
            raise ValueError(
                f"--quantizer: {error}; the file is not replaced: name another one, or "
                "take it away"
            ) from error
        logging.warning(f"{error}; it is trained again")
        return False
    stored = {**_OLDER, "corpus": provenance["corpus"], **stored}
    other = [key for key, value in provenance.items() if stored.get(key) != value]
    if other:
        logging.warning(
            f"{path} was trained with another {', '.join(other)}; it is replaced when "
            "the training is done"
        )
    return not other


def _check_room(path: Path, num_bytes: int) -> None:
    """Make the folder of a quantizer and check its free space with a temporary file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(num_bytes))
    except OSError as error:
        raise OSError(
            f"--quantizer: {path} cannot be written ({error.strerror}), expected "
            f"{num_bytes} bytes of free space; make room, or choose another folder"
        ) from error
