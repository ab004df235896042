"""Import of codebook indexes that other programs extracted, such as icefall."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from tqdm import tqdm

from espnet_mvq import __version__
from espnet_mvq.exchange.lhotse import espnet_speed_id, read_manifests
from espnet_mvq.exchange.stored_arrays import (
    ArrayReader,
    StoredIndexes,
    find_arrays,
    to_uint8,
)
from espnet_mvq.files.scp import first_few, read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.indexes import IndexMetadata, ShardWriter
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME, check_number
from espnet_mvq.indexes.shard import shard_paths
from espnet_mvq.indexes.validation import compare_lengths
from espnet_mvq.quantization import Quantizer

# Fields of the metadata that have an option each. The level is the quantizer's or the
# metadata's; indexes from elsewhere are of frames.
FIELD_OPTIONS = tuple(
    name for name in IndexMetadata.MEANING if name not in ("encode", "level")
)
# For indexes of icefall: its teachers are of HuBERT's family
_DEFAULTS = {
    "codebook_size": 256,
    "sample_rate": 16000,
    "frame_offset_samples": 199.5,
}


def import_indexes(
    data_dir: Union[str, Path],
    *,
    manifests: Optional[List[str]],
    arrays: Optional[str],
    id_source: str,
    storage_dir: Optional[str],
    field: str,
    outdir: Optional[str],
    on_missing: str,
    quantizer: Optional[str],
    metadata: Optional[str],
    **given: Any,
) -> None:
    """Convert codebook indexes to an ark, its scp and its metadata in a data folder.

    Args:
        data_dir: Data folder. Its `wav.scp` gives the utterances and their order.
        manifests: Cut manifests of lhotse; see `read_manifests`, as for `id_source`,
            `storage_dir` and `field`. None: `arrays` are read.
        arrays: Arrays without a manifest; see `find_arrays`.
        outdir: Folder of the ark; None: `codebook_indexes` in the data folder.
        on_missing: "skip" accepts utterances without indexes and indexes without
            utterances, "stop" does not.
        quantizer: File of the quantizer that the indexes were made with; see
            `load_quantizer`.
        metadata: Metadata of exported indexes.
        given: Values of the fields in `FIELD_OPTIONS`; None: taken from quantizer,
            metadata, manifests or arrays, or a default.

    Raises:
        FileNotFoundError: If an input is missing.
        ValueError: If an input is damaged, inputs contradict each other, or the indexes
            do not fit the speech.
    """
    for name, value in given.items():
        if value is not None and name not in ("teacher", "quantizer_id"):
            check_number(name, value, f"--{name}")
    data_dir = Path(data_dir)
    utt_ids = list(read_scp(data_dir / "wav.scp"))
    if manifests:
        stored = read_manifests(manifests, id_source, storage_dir, field)
    else:
        stored = find_arrays(arrays)
    source = ", ".join(manifests or [arrays])
    stored = _match(utt_ids, stored, data_dir, source, id_source, on_missing)
    outdir = outdir or data_dir / "codebook_indexes"
    with ArrayReader() as reader:
        meaning = _make_metadata(given, quantizer, metadata, stored, reader)
        with ShardWriter(outdir, 1, meaning) as shard:
            num_frames = _convert(stored, reader, shard)
            if meaning.level == "frame":
                utt2num_samples = data_dir / "utt2num_samples"
                warning = compare_lengths(utt2num_samples, num_frames, meaning)
                if warning:
                    logging.warning(warning)
            # The ark may be the one that the folder's scp points to. From here on its
            # files are invalid until both are written again, the metadata last.
            (data_dir / METADATA_NAME).unlink(missing_ok=True)
    scp = shard_paths(outdir, 1)[1].read_text(encoding="utf-8")
    write_text(data_dir / SCP_NAME, scp)
    meaning.save(data_dir / METADATA_NAME)
    logging.info(
        f"{data_dir / SCP_NAME}: {meaning.num_utterances} of {len(utt_ids)} "
        f"utterances, {meaning.num_frames} frames, {meaning.num_codebooks} codebooks "
        f"of {meaning.codebook_size}, quantizer {meaning.quantizer_id}"
    )


def load_quantizer(path: str) -> Quantizer:
    """Load `*.safetensors`, or with any other ending a multi_quantization checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no quantizer.
    """
    if Path(path).suffix == ".safetensors":
        return Quantizer.load(path)
    return Quantizer.from_multi_quantization(path)


def _match(
    utt_ids: List[str],
    stored: Dict[str, StoredIndexes],
    data_dir: Path,
    source: str,
    id_source: str,
    on_missing: str,
) -> Dict[str, StoredIndexes]:
    """Return the stored indexes of the data folder's utterances, in its order."""
    # Exact matches take precedence over ids with the speed moved to the front.
    names = {espnet_speed_id(name): name for name in stored}
    names.update({name: name for name in stored})
    matched = {utt_id: names[utt_id] for utt_id in utt_ids if utt_id in names}
    if not matched:
        stored_ids = first_few(list(stored)) or "none"
        raise ValueError(
            f"no utterance of {data_dir}/wav.scp (first "
            f"{first_few(utt_ids)}) is in {source} (got {stored_ids}); "
            f"choose by --utt_id, now {id_source}, whose ids are taken. Of icefall's "
            "manifests give those joined with the corpus: the others have no "
            "supervisions"
        )
    missing = [utt_id for utt_id in utt_ids if utt_id not in matched]
    used = set(matched.values())
    unused = [name for name in stored if name not in used]
    messages = []
    if missing:
        messages.append(
            f"{len(missing)} of {len(utt_ids)} utterances in {data_dir}/wav.scp "
            f"have no codebook indexes, first {first_few(missing)}"
        )
    if unused:
        messages.append(
            f"{len(unused)} of {len(stored)} indexes in {source} have no utterance in "
            f"wav.scp, first {first_few(unused)}"
        )
    if messages and on_missing == "stop":
        raise ValueError(
            f"{'; '.join(messages)}; accept it by --on_missing skip: utterances "
            "without indexes train without the MVQ loss"
        )
    for message in messages:
        logging.warning(message)
    return {utt_id: stored[name] for utt_id, name in matched.items()}


def _make_metadata(
    given: Dict[str, Any],
    quantizer: Optional[str],
    metadata: Optional[str],
    stored: Dict[str, StoredIndexes],
    reader: ArrayReader,
) -> IndexMetadata:
    """Combine options, quantizer or metadata, manifests, arrays and defaults."""
    origin = metadata or quantizer or "--quantizer_id"
    known: Dict[str, Any] = {}
    if metadata:
        known = dataclasses.asdict(IndexMetadata.load(metadata))
    elif quantizer:
        known = _described_by(load_quantizer(quantizer))
    values: Dict[str, Any] = {}
    for name in FIELD_OPTIONS:
        option, value = given[name], known.get(name)
        if None not in (option, value) and option != value:
            raise ValueError(
                f"--{name}: got {option!r}, but {origin} has {value!r}; leave the "
                "option out, or give the file these indexes were made with"
            )
        candidates = (option, value, _DEFAULTS.get(name))
        values[name] = next((v for v in candidates if v is not None), None)
    shift = _manifests_frame_shift(stored, values["sample_rate"])
    if values["frame_shift_samples"] is None:
        values["frame_shift_samples"] = shift
    elif shift not in (None, values["frame_shift_samples"]):
        raise ValueError(
            f"frame shift: got {values['frame_shift_samples']} samples from options or "
            f"{origin}, but {shift} from the manifests; expected the same"
        )
    if values["num_codebooks"] is None:
        first = next(iter(stored.values()))
        values["num_codebooks"] = reader.load(first).shape[1]
    missing = [f"--{name}" for name, value in values.items() if value is None]
    if missing:
        raise ValueError(
            f"neither the inputs nor {origin} have values for {', '.join(missing)}; "
            "give these options"
        )
    return IndexMetadata(
        encode=known.get("encode", {}),
        level=known.get("level", "frame"),
        espnet_mvq_version=__version__,
        **values,
    )


def _described_by(quantizer: Quantizer) -> Dict[str, Any]:
    """Return the fields of the metadata that a quantizer knows."""
    return {
        "teacher": quantizer.provenance.get("teacher"),
        "layer": quantizer.provenance.get("layer"),
        "level": quantizer.provenance.get("level", "frame"),
        "quantizer_id": quantizer.id,
        "num_codebooks": quantizer.num_codebooks,
        "codebook_size": quantizer.codebook_size,
    }


def _manifests_frame_shift(
    stored: Dict[str, StoredIndexes], sample_rate: int
) -> Optional[int]:
    """Return the frame shift of all manifests in samples; None for plain arrays."""
    first = next(iter(stored.values()))
    if first.frame_shift_s is None:
        return None
    for other in stored.values():
        if other.frame_shift_s != first.frame_shift_s:
            raise ValueError(
                f"{other.origin} has a frame shift of {other.frame_shift_s} s, "
                f"{first.origin} of {first.frame_shift_s} s; expected one teacher's"
            )
    samples = first.frame_shift_s * sample_rate
    if round(samples) < 1 or abs(samples - round(samples)) > 1e-3:
        raise ValueError(
            f"{first.origin}: frame shift {first.frame_shift_s} s at {sample_rate} Hz "
            f"is {samples} samples, expected a whole number; give --sample_rate"
        )
    return round(samples)


def _convert(
    stored: Dict[str, StoredIndexes], reader: ArrayReader, shard: ShardWriter
) -> Dict[str, int]:
    """Write all indexes into a shard; return the number of frames of each utterance."""
    metadata, num_frames = shard.metadata, {}
    for utt_id, place in tqdm(stored.items(), unit="utt", mininterval=5):
        try:
            indexes = to_uint8(
                reader.load(place), metadata.codebook_size, metadata.num_codebooks
            )
        except ValueError as error:
            raise ValueError(f"utterance {utt_id} ({place.origin}): {error}") from error
        shard.write(utt_id, indexes)
        num_frames[utt_id] = len(indexes)
    return num_frames
