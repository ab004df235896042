"""Completion of `mvq_conf` from the metadata of stored data.

Trainings complete their yaml here, and Python users make an `mvq_conf` here.
"""

from pathlib import Path
from typing import Any, Dict, List, Union

from espnet_mvq.indexes.metadata import (
    KINDS,
    METADATA_NAME,
    SCP_NAME,
    FrameMetadata,
    IndexMetadata,
)
from espnet_mvq.options import check_options
from espnet_mvq.plugin.config import (
    CODEBOOKS,
    MVQConfig,
    check_name,
    from_metadata,
    is_of,
    lone_name,
    parse_mask,
    parse_targets,
    parse_weighting,
)
from espnet_mvq.quantization import Quantizer


def make_mvq_conf(source: Union[str, Path], **options: Any) -> Dict[str, Any]:
    """Make a complete `mvq_conf`; see `espnet_mvq.mvq_conf`."""
    scp = _find_scp(Path(source))
    name = scp.stem
    check_name(name)
    whole = {name: options.pop(name, None) for name in ("weighting", "mask")}
    check_options("mvq_conf", MVQConfig, options)
    values = metadata_values(options, name, load_metadata(name, [scp]), str(source))
    conf: Dict[str, Any] = {**options, **values}
    if name != lone_name(conf):
        conf = {"targets": {name: conf}}
    conf.update((name, value) for name, value in whole.items() if value is not None)
    parse_targets(conf)
    parse_weighting(conf)
    parse_mask(conf)
    return conf


def _find_scp(source: Path) -> Path:
    """Return the scp of a json, an scp or a data folder; only its name is used."""
    if source.is_dir():
        return source / SCP_NAME
    if source.suffix not in (".json", ".scp"):
        expected = f"expected {METADATA_NAME}, its scp or the data folder of both"
        if source.exists():
            raise ValueError(f"{source}: got another file, {expected}")
        raise FileNotFoundError(f"{source}: no such file or folder; {expected}")
    return source.with_suffix(".scp")


def load_metadata(name: str, paths: List[Union[str, Path]]) -> FrameMetadata:
    """Load the metadata of one target's files, all of which must agree.

    Args:
        name: Name of the target.
        paths: Its scp files.

    Raises:
        FileNotFoundError: If one has no metadata.
        ValueError: If metadata are damaged, of another kind, or differ.
    """
    kind = next((k for stem, k in KINDS.items() if is_of(name, stem)), IndexMetadata)
    (first, metadata), *others = [(path, kind.beside(path)) for path in paths]
    for path, other in others:
        differences = metadata.differences(other)
        if differences:
            raise ValueError(
                f"{first} and {path} have different metadata: "
                f"{'; '.join(differences)}. Extract both with one teacher and quantizer"
            )
    return metadata


def metadata_values(
    options: Dict[str, Any], name: str, metadata: Any, source: str
) -> Dict[str, Any]:
    """Return the values of a target that metadata give.

    Args:
        options: Options of the target that the user gave.
        name: Name of the target.
        metadata: Object with the values as attributes: metadata, or a teacher.
        source: File or teacher, for messages.

    Raises:
        ValueError: If a given option disagrees.
    """
    wanted = from_metadata(name, options.get("loss", CODEBOOKS))
    values = {option: getattr(metadata, option, None) for option in wanted}
    known = {o: getattr(metadata, o, None) for o in ("level", "teacher_id")}
    values.update((k, value) for k, value in known.items() if value is not None)
    if "dim" in wanted and values["dim"] is None and options.get("quantizer"):
        values["dim"] = Quantizer.load(options["quantizer"]).dim
    for option, value in values.items():
        if options.get(option) is not None and options[option] != value:
            raise ValueError(
                f"mvq_conf {option}: got {options[option]!r}, but {source} ({name}) "
                f"has {value!r}. Leave this option out, or run the extraction again"
            )
    return values
