"""Cut manifests of lhotse that point at codebook indexes.

icefall's recipes attach a `TemporalArray` named `codebook_indexes` to each cut: storage
of an array (T, N), its frame shift and the time of its first frame. lhotse itself is
not needed.
"""

import gzip
import json
import logging
import math
import re
import zlib
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from espnet_mvq.exchange.stored_arrays import StoredIndexes
from espnet_mvq.files.scp import first_few
from espnet_mvq.files.whole_file import replace_when_whole

FIELD = "codebook_indexes"
ID_SOURCES = ("supervision", "cut", "recording")
_CUT_TYPES = ("MonoCut", "MultiCut")
_SPEED_SUFFIX = re.compile(r"(.+)_sp(\d+(?:\.\d+)?)")
_TOLERANCE_FRAMES = 3  # teachers round lengths in their own ways


def read_manifests(
    paths: Iterable[Union[str, Path]],
    id_source: str = "supervision",
    storage_dir: Optional[Union[str, Path]] = None,
    field: str = FIELD,
) -> Dict[str, StoredIndexes]:
    """Read the places of codebook indexes from cut manifests.

    Cuts without the field are left out, with a warning that counts them.

    Args:
        paths: Manifests, `.jsonl.gz` or `.jsonl`, one cut a line.
        id_source: Origin of the utterance id: "supervision" (the cut's only one; a cut
            without any gives its own id), "cut" or "recording".
        storage_dir: Folder to which relative storage paths refer; default: the working
            directory, as in lhotse.
        field: Name of the cuts' custom field.

    Returns:
        Stored indexes by utterance id, in the order of the manifests.

    Raises:
        FileNotFoundError: If a manifest is missing.
        ValueError: If a manifest is damaged, a cut does not stand for one utterance, or
            an utterance is repeated.
    """
    indexes: Dict[str, StoredIndexes] = {}
    without: List[str] = []
    for path in paths:
        for origin, cut in _read_cuts(Path(path)):
            try:
                cut_origin = f"{origin}: cut {cut['id']}"
                utt_id = _utterance_id(cut, id_source)
                stored = _stored_indexes(cut, field, storage_dir, cut_origin)
            except ValueError as error:
                raise ValueError(f"{cut_origin}: {error}") from error
            except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
                # A missing key, or a value of another type
                raise ValueError(
                    f"{origin}: not a cut as lhotse writes it "
                    f"({type(error).__name__}: {error})"
                ) from error
            if stored is None:
                without.append(utt_id)
            elif utt_id in indexes:
                raise ValueError(
                    f"{origin}: utterance {utt_id} again, it is in "
                    f"{indexes[utt_id].origin} too; expected each once: give other "
                    f"manifests, or another source of ids than {id_source!r}"
                )
            else:
                indexes[utt_id] = stored
    if without:
        logging.warning(
            f"{len(without)} cuts have no field {field!r}, first "
            f"{first_few(without)}"
        )
    return indexes


def make_cut(
    utt_id: str,
    stored: StoredIndexes,
    recording: Optional[Dict[str, Any]] = None,
) -> Dict[str, Any]:
    """Return an utterance and its indexes as a `MonoCut` of lhotse.

    Args:
        utt_id: Id of the cut.
        stored: Place, shape and frame shift of the indexes.
        recording: Result of `make_recording`; None: the cut is as long as its frames.
    """
    duration = round(stored.shape[0] * stored.frame_shift_s, 8)
    array = {
        "storage_type": stored.storage_type,
        "storage_path": stored.storage_path,
        "storage_key": stored.storage_key,
        "shape": list(stored.shape),
    }
    temporal_array = {
        "array": array,
        "temporal_dim": 0,
        "frame_shift": stored.frame_shift_s,
        "start": 0,
    }
    return {
        "id": utt_id,
        "start": 0,
        "duration": recording["duration"] if recording else duration,
        "channel": 0,
        "supervisions": [],
        **({"recording": recording} if recording else {}),
        "custom": {FIELD: temporal_array},
        "type": "MonoCut",
    }


def make_recording(
    utt_id: str, place: str, num_samples: int, sample_rate: int
) -> Optional[Dict[str, Any]]:
    """Return audio as a `Recording` of lhotse, None if lhotse cannot read it.

    Args:
        utt_id: Id of the recording.
        place: Value of `wav.scp`: a file, or a command that ends in "|".
        num_samples: Number of samples per channel.
        sample_rate: Sample rate in Hz.
    """
    if re.search(r"\.ark:\d+$", place):
        return None
    is_command = place.endswith("|")
    source = {
        "type": "command" if is_command else "file",
        "channels": [0],
        "source": place.rstrip("| ") if is_command else place,
    }
    return {
        "id": utt_id,
        "sources": [source],
        "sampling_rate": sample_rate,
        "num_samples": num_samples,
        "duration": round(num_samples / sample_rate, 8),
        "channel_ids": [0],
    }


def write_manifest(path: Union[str, Path], cuts: Iterable[Dict[str, Any]]) -> None:
    """Write cuts as gzipped JSON, one a line, atomically."""
    with replace_when_whole(path) as temporary, temporary.open("wb") as file:
        # Without name and time in the header, equal cuts give equal bytes.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            for cut in cuts:
                packed.write((json.dumps(cut, ensure_ascii=False) + "\n").encode())


def espnet_speed_id(utt_id: str) -> str:
    """Convert lhotse's id of a speed-perturbed utterance to Kaldi's.

    Example:
        >>> espnet_speed_id("84-121123-0000_sp0.9")
        'sp0.9-84-121123-0000'
        >>> espnet_speed_id("84-121123-0000")
        '84-121123-0000'
    """
    match = _SPEED_SUFFIX.fullmatch(utt_id)
    return f"sp{match[2]}-{match[1]}" if match else utt_id


def _read_cuts(path: Path) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Yield `MANIFEST:LINE` and cut."""
    if not path.name.endswith((".jsonl.gz", ".jsonl")):
        raise ValueError(f"manifest {path}: expected the ending .jsonl.gz or .jsonl")
    if not path.is_file():
        raise FileNotFoundError(
            f"manifest {path}: no such file; expected cuts as lhotse writes them"
        )
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield f"{path}:{number}", json.loads(line)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"manifest {path}: not readable near line {max(1, number)} ({error}); "
            "expected one cut a line as JSON, copy or write it again"
        ) from error


def _utterance_id(cut: Dict[str, Any], id_source: str) -> str:
    """Return the utterance id of a cut."""
    kind = cut.get("type", "MonoCut")
    if kind not in _CUT_TYPES:
        raise ValueError(
            f"got a {kind}, expected one of {', '.join(_CUT_TYPES)}; "
            "give the manifest from before cuts were mixed or padded"
        )
    if id_source == "recording":
        if not cut.get("recording"):
            raise ValueError(
                "got no recording, expected one to take the id from; "
                "take it from the cut instead"
            )
        return cut["recording"]["id"]
    supervisions = cut.get("supervisions") or []
    if id_source == "cut" or not supervisions:
        return cut["id"]
    if len(supervisions) > 1:
        raise ValueError(
            f"got {len(supervisions)} supervisions, expected one to "
            "take the id from; take it from the cut or the recording instead"
        )
    return supervisions[0]["id"]


def _stored_indexes(
    cut: Dict[str, Any],
    field: str,
    storage_dir: Optional[Union[str, Path]],
    origin: str,
) -> Optional[StoredIndexes]:
    """Return the place of a cut's indexes, None if it has none."""
    temporal = (cut.get("custom") or {}).get(field)
    if temporal is None:
        return None
    if "array" not in temporal or temporal["temporal_dim"] != 0:
        raise ValueError(
            f"field {field!r}: got {json.dumps(temporal)[:80]}, "
            "expected a TemporalArray with temporal_dim 0"
        )
    array, frame_shift_s = temporal["array"], temporal["frame_shift"]
    start, duration = cut["start"], cut["duration"]
    first_frame = _num_frames(start - temporal["start"], frame_shift_s)
    if first_frame < 0:
        raise ValueError(
            f"starts at {start} s, but its field {field!r} at "
            f"{temporal['start']} s; expected indexes for the whole cut"
        )
    max_frames = _num_frames(duration, frame_shift_s)
    # The array must reach to the cut's end, and not beyond its recording's: lhotse's
    # perturb_speed leaves cuts with the indexes of the unchanged speech.
    end = (cut.get("recording") or {}).get("duration", start + duration)
    at_most = _num_frames(end - temporal["start"], frame_shift_s) + _TOLERANCE_FRAMES
    at_least = first_frame + max_frames - _TOLERANCE_FRAMES
    if not at_least <= array["shape"][0] <= at_most:
        raise ValueError(
            f"field {field!r}: got {array['shape'][0]} frames, "
            f"expected {at_least} to {at_most} by its times; was its speed changed "
            "after the extraction?"
        )
    # Other storage types, which are refused when loaded, may have no path and keys of
    # other types.
    return StoredIndexes(
        storage_type=array["storage_type"],
        storage_path=str(Path(storage_dir or "", array.get("storage_path") or "")),
        storage_key=str(array["storage_key"]),
        origin=origin,
        shape=tuple(array["shape"]),
        frame_shift_s=frame_shift_s,
        first_frame=first_frame,
        max_frames=max_frames,
    )


def _num_frames(seconds: float, frame_shift_s: float) -> int:
    """Return a number of frames as lhotse does: rounded, halves upwards."""
    # The inner rounding removes errors of binary fractions.
    return math.floor(round(seconds / frame_shift_s, 8) + 0.5)
