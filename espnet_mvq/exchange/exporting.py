"""Export of codebook indexes to other programs, such as icefall's recipes."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import numpy as np
from tqdm import tqdm

from espnet_mvq.exchange.lhotse import make_cut, make_recording, write_manifest
from espnet_mvq.exchange.stored_arrays import StoredIndexes, write_hdf5, write_npy
from espnet_mvq.files.scp import first_few, read_counts, read_scp
from espnet_mvq.indexes import FrameReader, IndexMetadata
from espnet_mvq.indexes.metadata import METADATA_NAME


def export_indexes(
    scp: Union[str, Path],
    *,
    hdf5: Optional[str],
    npy_dir: Optional[str],
    manifest: Optional[str],
    data_dir: Optional[str],
) -> None:
    """Write codebook indexes as HDF5 or `.npy` files, with their metadata.

    Args:
        scp: `codebook_indexes.scp` with its json.
        hdf5: HDF5 file to write; None: `.npy` files are written.
        npy_dir: Folder of the `.npy` files.
        manifest: Cut manifest to write; None: none.
        data_dir: Data folder whose audio becomes the recordings of the cuts; None: the
            cuts have no recordings.

    Raises:
        FileNotFoundError: If an input is missing.
        ValueError: If an input is damaged, or the data folder lacks utterances.
    """
    reader = FrameReader(scp)
    if not isinstance(reader.metadata, IndexMetadata):
        raise ValueError(
            f"{scp}: got {reader.metadata.STEM}, expected codebook indexes; kaldiio "
            "reads others as they are"
        )
    recordings = _find_recordings(data_dir, reader) if data_dir else {}
    if hdf5:
        Path(hdf5).parent.mkdir(parents=True, exist_ok=True)
        num_frames = write_hdf5(hdf5, _utterances(reader))
        json_path = Path(hdf5).with_suffix(".json")
    else:
        num_frames = write_npy(npy_dir, _utterances(reader))
        json_path = Path(npy_dir) / METADATA_NAME
    # The checksums are of arks, which are not exported.
    dataclasses.replace(reader.metadata, shards={}).save(json_path)
    logging.info(
        f"{hdf5 or npy_dir}: {len(num_frames)} utterances, "
        f"{sum(num_frames.values())} frames; metadata in {json_path}"
    )
    if manifest:
        cuts = _make_cuts(reader.metadata, num_frames, recordings, hdf5, npy_dir)
        Path(manifest).parent.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, cuts)
        logging.info(f"{manifest}: {len(num_frames)} cuts")


def _utterances(reader: FrameReader) -> Iterator[Tuple[str, np.ndarray]]:
    """Yield utterance ids and codebook indexes, uint8, (T, N)."""
    for utt_id in tqdm(reader, unit="utt", mininterval=5):
        yield utt_id, reader[utt_id].astype(np.uint8)


def _find_recordings(
    data_dir: str, reader: FrameReader
) -> Dict[str, Optional[Dict[str, Any]]]:
    """Return the recording of each utterance, None where lhotse cannot read it."""
    places = read_scp(Path(data_dir) / "wav.scp")
    num_samples = read_counts(Path(data_dir) / "utt2num_samples")
    missing = [u for u in reader if u not in places or u not in num_samples]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(reader)} utterances with codebook indexes are not "
            f"in wav.scp or utt2num_samples of {data_dir}, first "
            f"{first_few(missing)}; give their data folder, or none"
        )
    sample_rate = reader.metadata.sample_rate
    recordings = {
        utt_id: make_recording(utt_id, places[utt_id], num_samples[utt_id], sample_rate)
        for utt_id in reader
    }
    without = [utt_id for utt_id, recording in recordings.items() if recording is None]
    if without:
        logging.warning(
            f"{len(without)} cuts get no recording: lhotse reads no audio from arks, "
            f"first {first_few(without)}"
        )
    return recordings


def _make_cuts(
    metadata: IndexMetadata,
    num_frames: Dict[str, int],
    recordings: Dict[str, Optional[Dict[str, Any]]],
    hdf5: Optional[str],
    npy_dir: Optional[str],
) -> Iterator[Dict[str, Any]]:
    """Yield a cut for each exported array."""
    # Absolute paths: the recipe that reads the cuts runs in another folder.
    storage_type = "numpy_hdf5" if hdf5 else "numpy_files"
    storage_path = str(Path(hdf5 or npy_dir).resolve())
    for utt_id, count in num_frames.items():
        stored = StoredIndexes(
            storage_type,
            storage_path,
            storage_key=utt_id if hdf5 else f"{utt_id}.npy",
            origin=storage_path,
            shape=(count, metadata.num_codebooks),
            frame_shift_s=metadata.frame_shift_samples / metadata.sample_rate,
        )
        yield make_cut(utt_id, stored, recordings.get(utt_id))
