"""Extraction of a shard: audio -> teacher -> quantizer, if any -> ark."""

import logging
import time
from typing import Callable, Dict, Iterable, Iterator, List, Optional

import numpy as np
import torch
from tqdm import tqdm

from espnet_mvq import __version__
from espnet_mvq.distillation import sparse_posteriors
from espnet_mvq.extraction.embedding_stream import (
    embed_batches,
    plan_batches,
    read_num_samples,
    stop_or_skip,
    to_level,
    usable_results,
)
from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import file_sha256
from espnet_mvq.indexes import IndexMetadata, ShardWriter
from espnet_mvq.indexes.metadata import (
    EmbeddingMetadata,
    FrameMetadata,
    PosteriorMetadata,
)
from espnet_mvq.indexes.shard import finished_shard, shard_paths
from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.search import default_pair_candidates
from espnet_mvq.teachers import Teacher
from espnet_mvq.teachers.audio import AudioError


def extract_shard(
    load_teacher: Callable[[], Teacher],
    quantizer_path: Optional[str],
    wav_scp: str,
    outdir: str,
    *,
    job: int = 1,
    level: str = "frame",
    top_k: Optional[int] = None,
    encode_options: Optional[Dict[str, Optional[int]]] = None,
    utt2num_samples: Optional[str] = None,
    on_error: str = "stop",
    num_workers: int = 2,
) -> None:
    """Write the indexes, embeddings or posteriors of one job's share of a corpus.

    A shard that is whole and of the same settings is kept. One that broke off keeps
    its whole utterances.

    Args:
        load_teacher: Builds the teacher; called after the other arguments are checked.
        quantizer_path: The quantizer; None: embeddings are stored, in float16, or
            posteriors.
        wav_scp: The job's share of `wav.scp`.
        outdir: Folder of the shards.
        job: Number of the job, from 1.
        level: frame; or utterance: one vector of each, see `to_level`.
        top_k: For posteriors of a `CTCTeacher`: the tokens of each frame that are
            stored one by one. None: no posteriors.
        encode_options: Options of `Quantizer.encode`.
        utt2num_samples: See `read_num_samples`.
        on_error: stop or skip, for utterances whose audio cannot be used or has no
            finite embeddings.
        num_workers: Threads that read and decode audio.

    Raises:
        OSError: If a file is missing or cannot be written.
        ValueError: If an argument is out of range, the quantizer was not trained on
            this teacher, or an utterance cannot be used.
    """
    for option, value in (("job", job), ("num_workers", num_workers)):
        if value < 1:
            raise ValueError(f"--{option}: got {value}, expected at least 1")
    places = read_scp(wav_scp)
    if not places:
        raise ValueError(f"{wav_scp}: got no utterance, expected at least one")
    quantizer = None if quantizer_path is None else Quantizer.load(quantizer_path)
    teacher = load_teacher()
    if quantizer is not None:
        check_quantizer(quantizer, teacher, quantizer_path, level)
        quantizer = quantizer.to(teacher.device)
    metadata = shard_metadata(teacher, quantizer, level, encode_options, top_k)
    if _is_finished(outdir, job, metadata, teacher, places, on_error):
        logging.info(f"job {job} in {outdir} is done already")
        return
    num_samples = dict.fromkeys(places, 0)
    if teacher.reads_audio:
        num_samples = read_num_samples(places, utt2num_samples, wav_scp)
    with ShardWriter(outdir, job, metadata, resume_for=places) as shard:
        kept = set(shard.kept)
        planned = plan_batches(teacher, num_samples, done=kept)
        batches = embed_batches(teacher, planned, places, num_workers)
        batches = usable_results(batches, on_error, metadata.skipped)
        samples_left = sum(num_samples[u] for batch in planned for u in batch)
        for batch in _with_progress(batches, teacher, samples_left, metadata):
            arrays = to_arrays(list(batch.values()), quantizer, metadata)
            for utt_id, array in zip(batch, arrays):
                if utt_id not in kept:
                    shard.write(utt_id, array)


def shard_metadata(
    teacher: Teacher,
    quantizer: Optional[Quantizer],
    level: str = "frame",
    encode_options: Optional[Dict[str, Optional[int]]] = None,
    top_k: Optional[int] = None,
) -> FrameMetadata:
    """Metadata of codebook indexes; without a quantizer of posteriors or embeddings."""
    frames = dict(
        teacher=teacher.id,
        layer=teacher.layer,
        sample_rate=teacher.sample_rate,
        frame_shift_samples=teacher.frame_shift_samples,
        frame_offset_samples=teacher.frame_offset_samples,
        level=level,
        espnet_mvq_version=__version__,
    )
    if top_k is not None:
        tokens = teacher.token_list
        if not 1 <= top_k <= len(tokens):
            raise ValueError(
                f"--top_k: got {top_k}, expected 1 to {len(tokens)}, the tokens of the "
                f"teacher {teacher.spec}"
            )
        return PosteriorMetadata(top_k=top_k, token_list=tokens, **frames)
    if quantizer is None:
        return EmbeddingMetadata(dim=teacher.dim, **frames)
    options = dict(encode_options or {})
    if options.get("pair_candidates") is None:
        options["pair_candidates"] = default_pair_candidates(quantizer.num_codebooks)
    return IndexMetadata(
        quantizer_id=quantizer.id,
        num_codebooks=quantizer.num_codebooks,
        codebook_size=quantizer.codebook_size,
        encode=options,
        **frames,
    )


def to_arrays(
    embeddings: List[torch.Tensor],
    quantizer: Optional[Quantizer],
    metadata: FrameMetadata,
) -> List[np.ndarray]:
    """Turn the embeddings of a batch of utterances into the arrays to store.

    Args:
        embeddings: Embeddings of each utterance, [(T_1, D), ...].
        quantizer: The quantizer, on their device; None: no codebook indexes.
        metadata: Metadata of the arrays: kind, level and settings.

    Returns:
        Codebook indexes, uint8, [(T_1, N), ...]; embeddings, float16; or posteriors of
        logits, uint16, see `sparse_posteriors`. At utterance level each has one row.
    """
    if isinstance(metadata, PosteriorMetadata):
        sparse = [sparse_posteriors(logits, metadata.top_k) for logits in embeddings]
        return [part.cpu().numpy().astype(np.uint16) for part in sparse]
    vectors = [to_level(frames, metadata.level) for frames in embeddings]
    if quantizer is None:
        return [part.half().cpu().numpy() for part in vectors]
    indexes = quantizer.encode(torch.cat(vectors), **metadata.encode).cpu()
    return [part.numpy() for part in indexes.split([len(v) for v in vectors])]


def check_quantizer(
    quantizer: Quantizer, teacher: Teacher, path: str, level: str = "frame"
) -> None:
    """Refuse a quantizer that was trained on another teacher, layer or level.

    Raises:
        ValueError: If it was.
    """
    provenance = quantizer.provenance
    for name, trained_on, given in (
        ("dim", quantizer.dim, teacher.dim),
        ("teacher", provenance.get("teacher", teacher.id), teacher.id),
        ("layer", provenance.get("layer", teacher.layer), teacher.layer),
    ):
        if trained_on != given:
            raise ValueError(
                f"quantizer {path}: made for {name} {trained_on!r}, but the teacher "
                f"{teacher.spec} has {given!r}; train a quantizer for this teacher, or "
                "name the one it was trained on"
            )
    trained_level = provenance.get("level", "frame")  # older ones do not have it
    if trained_level != level:
        raise ValueError(
            f"quantizer {path}: made for --level {trained_level}, got --level {level}; "
            "train a quantizer for this level, or extract at the one it was trained on"
        )


def _is_finished(
    outdir: str,
    job: int,
    metadata: FrameMetadata,
    teacher: Teacher,
    places: Dict[str, str],
    on_error: str,
) -> bool:
    """Whether the shard is whole, and of these settings and utterances.

    Utterances that were skipped are tried again: they count as done while they still
    cannot be used.
    """
    try:
        finished = finished_shard(outdir, job, type(metadata))
    except ValueError as error:
        logging.warning(f"{error}: the shard is made again")
        return False
    if finished is None:
        return False
    ark, scp, _ = shard_paths(outdir, job, metadata.STEM)
    differences = finished.differences(metadata)
    if differences:
        logging.info(f"{scp} has other settings and is made again: {differences}")
        return False
    # A second writer spoils an ark on a file system without working locks.
    if file_sha256(ark) != finished.shards.get(ark.name):
        logging.warning(f"{ark}: its checksum is wrong; the shard is made again")
        return False
    skipped = [utt_id for utt_id in finished.skipped if utt_id in places]
    if set(read_scp(scp)) != set(places).difference(skipped):
        return False
    errors = [
        result
        for batch in embed_batches(teacher, ([u] for u in skipped), places)
        for result in batch.values()
        if isinstance(result, AudioError)
    ]
    if errors and on_error == "stop":
        raise errors[0]
    if len(errors) < len(skipped):
        logging.info(f"{scp}: {len(skipped) - len(errors)} skipped before can be used")
        return False
    for error in errors:
        stop_or_skip(error, on_error)
    return True


def _with_progress(
    batches: Iterable[Dict[str, torch.Tensor]],
    teacher: Teacher,
    num_samples: int,
    metadata: FrameMetadata,
) -> Iterator[Dict[str, torch.Tensor]]:
    """Pass batches on, show hours of speech and speed, and log both at the end."""
    samples_per_hour = 3600 * teacher.sample_rate
    total, hours, start = num_samples / samples_per_hour, 0.0, time.perf_counter()
    bar_format = "{percentage:3.0f}% of {total:.2f} h [{elapsed}<{remaining}{postfix}]"
    with tqdm(
        total=total or None,
        unit="h",
        mininterval=5,
        bar_format=bar_format if total else None,
    ) as progress:
        for batch in batches:
            yield batch
            num_frames = sum(map(len, batch.values()))
            done = num_frames * teacher.frame_shift_samples / samples_per_hour
            hours += done
            progress.update(done)
            elapsed = time.perf_counter() - start
            progress.set_postfix_str(f"{elapsed / 3600 / hours:.4f} s per s")
    elapsed = time.perf_counter() - start
    logging.info(
        f"{metadata.num_utterances} utterances, {hours:.2f} h of speech in "
        f"{elapsed:.0f} s ({elapsed / 3600 / max(hours, 1e-9):.4f} s per s), "
        f"{len(metadata.skipped)} skipped"
    )
