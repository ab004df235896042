"""Quality report of a quantizer on embeddings of a file or of a teacher."""

import json
import logging
from pathlib import Path
from typing import Callable, Iterator, Optional, Tuple

import numpy as np
import torch

from espnet_mvq import __version__
from espnet_mvq.extraction.embedding_stream import embed_utterances
from espnet_mvq.extraction.frame_sampling import draw_frames
from espnet_mvq.extraction.pipeline import check_quantizer
from espnet_mvq.extraction.selection import shuffle_over_speakers
from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.classifier_quantizer import ClassifierQuantizer
from espnet_mvq.quantization.quality import measure_quality
from espnet_mvq.quantization.quality_text import (
    REPORT_FORMAT,
    REPORT_NAME,
    REPORT_VERSION,
    text_report,
)
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.feature_files import read_features

_CHUNK_FRAMES = 8192  # frames of a memory map that are read at once


def inspect_quantizer(
    quantizer: Quantizer,
    path: str,
    folder: Path,
    *,
    feats: Optional[str] = None,
    wav_scp: Optional[str] = None,
    load_teacher: Optional[Callable[[], Teacher]] = None,
    max_frames: int = 20_000,
    seed: int = 0,
    on_error: str = "stop",
) -> None:
    """Print how good a quantizer is, and write it to `quantizer_report.json`.

    Args:
        quantizer: The quantizer.
        path: Its file.
        folder: Folder of the report; made if missing.
        feats: File of embeddings; all are read.
        wav_scp: Audio in place of embeddings; random utterances are embedded until
            twice `max_frames` were seen.
        load_teacher: Builds the teacher that embeds the audio.
        max_frames: Frames measured at most, a random sample.
        seed: Seed of the sample and of the measurements.
        on_error: See `embed_utterances`.

    Raises:
        OSError: If a file is missing or cannot be written.
        ValueError: If the embeddings do not fit the quantizer, or are too few.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir: got the file {folder}, expected a folder")
    if feats:
        sample = draw_frames(read_chunks(feats, quantizer.dim), max_frames, seed)
    else:
        places = read_scp(wav_scp)
        teacher = load_teacher()
        level = quantizer.provenance.get("level", "frame")
        check_quantizer(quantizer, teacher, path, level)
        utt_ids = shuffle_over_speakers(list(places), None, seed)
        stream = embed_utterances(teacher, utt_ids, places, level, on_error)
        sample = draw_frames(stream, max_frames, seed, 2 * max_frames)
    source = feats or wav_scp
    if not sample.num_seen:
        raise ValueError(f"{source}: got no frames, expected at least 2")
    logging.info(f"frames: {len(sample.frames)} measured of {sample.num_seen} seen")
    try:
        quality = measure_quality(
            quantizer, sample.frames, utt_ids=sample.utt_ids, seed=seed
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    content = {
        "format": REPORT_FORMAT,
        "version": REPORT_VERSION,
        "espnet_mvq_version": __version__,
        "quantizer": {
            "file": path,
            "id": quantizer.id,
            "num_codebooks": quantizer.num_codebooks,
            "codebook_size": quantizer.codebook_size,
            "dim": quantizer.dim,
            "has_classifier": isinstance(quantizer, ClassifierQuantizer),
            "provenance": quantizer.provenance,
        },
        "frames": {
            "source": source,
            "measured": quality.num_frames,
            "seen": sample.num_seen,
            "utterances": len(set(sample.utt_ids)),
        },
        "seed": seed,
        "quality": quality.to_dict(),
    }
    print(text_report(content), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False)
    write_text(folder / REPORT_NAME, text + "\n")


def read_chunks(path: str, dim: int) -> Iterator[Tuple[str, torch.Tensor]]:
    """Read a file of embeddings, big arrays in pieces.

    Args:
        path: File of embeddings, see `read_features`.
        dim: The quantizer's dimension.

    Yields:
        Utterance and embeddings, float32, (T, D).

    Raises:
        ValueError: If the embeddings have another dimension.
    """
    for utt_id, embeddings in read_features(path):
        if embeddings.shape[1] != dim:
            raise ValueError(
                f"utterance {utt_id} in {path}: got dimension {embeddings.shape[1]}, "
                f"expected {dim} as the quantizer has; give embeddings of "
                "the teacher and layer it was trained on"
            )
        for start in range(0, len(embeddings), _CHUNK_FRAMES):
            part = embeddings[start : start + _CHUNK_FRAMES]
            yield utt_id, torch.from_numpy(np.array(part, dtype=np.float32))
