"""Before training: fill in and check what the index files say of themselves."""

import argparse
from typing import Any, Dict, Iterator, List

from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.plugin.config import DATA_NAME, FROM_METADATA, check_name
from espnet_mvq.plugin.data_type import NAME as DATA_TYPE

# Effects of ESPnet's preprocessor after which indexes lie elsewhere in the speech
_MOVING_EFFECTS = ("speed_perturb", "time_stretch", "reverse")


def complete_mvq_conf(args: argparse.Namespace) -> None:
    """Copy what the metadata say into `args.model_conf["mvq_conf"]`.

    Args:
        args: Options of an ESPnet training; `model_conf` is changed.

    Raises:
        ValueError: If there are no index files, they disagree with each other or with
            the yaml, or the speech is changed in a way that indexes cannot follow.
    """
    refuse_moving_effects(args)
    conf: Dict[str, Any] = dict(args.model_conf.get("mvq_conf") or {})
    targets = {n: dict(options or {}) for n, options in _targets(conf).items()}
    paths = index_paths(args)
    if not paths and _all_given(conf, targets):
        # All given by hand: a training that has no indexes, or gets them elsewhere.
        return
    if not paths or (targets and set(targets) - set(paths)):
        missing = sorted(set(targets) - set(paths)) or [DATA_NAME]
        raise ValueError(
            f"mvq_conf needs codebook indexes: got no data named {missing[0]!r} of "
            f"type {DATA_TYPE!r} in train_data_path_and_name_and_type. Add "
            f"'dump/raw/TRAIN_SET/{missing[0]}.scp,{missing[0]},{DATA_TYPE}' and "
            "allow_variable_data_keys: true"
        )
    if not targets and list(paths) == [DATA_NAME]:
        conf.update(_complete(conf, DATA_NAME, paths[DATA_NAME]))
    else:
        conf["targets"] = {
            name: {
                **targets.get(name, {}),
                **_complete({**conf, **targets.get(name, {})}, name, paths[name]),
            }
            for name in paths
        }
    args.model_conf["mvq_conf"] = conf


def refuse_moving_effects(args: argparse.Namespace) -> None:
    """Refuse augmentation on the fly that moves or stretches the speech.

    Raises:
        ValueError: Naming the effects.
    """
    conf = getattr(args, "preprocessor_conf", None) or {}
    found = sorted(set(_words(conf.get("data_aug_effects"))) & set(_MOVING_EFFECTS))
    if found and conf.get("data_aug_prob", 0) > 0:
        raise ValueError(
            f"preprocessor_conf data_aug_effects: got {', '.join(found)}, which move "
            "the speech under its codebook indexes; take them out. Speed perturbation "
            "before the extraction (speed_perturb_factors of asr.sh) is fine"
        )


def index_paths(args: argparse.Namespace) -> Dict[str, List[str]]:
    """Return the paths of codebook indexes in training and validation data, by name.

    Raises:
        ValueError: If some have a name that the model does not know.
    """
    data = list(args.train_data_path_and_name_and_type or [])
    data += list(args.valid_data_path_and_name_and_type or [])
    paths: Dict[str, List[str]] = {}
    for path, name, kind in data:
        if kind == DATA_TYPE:
            try:
                check_name(name)
            except ValueError as error:
                raise ValueError(f"{path} of type {DATA_TYPE!r}: {error}") from error
            paths.setdefault(name, []).append(path)
    return paths


def _targets(conf: Dict[str, Any]) -> Dict[str, Any]:
    return conf.get("targets") or {}


def _all_given(conf: Dict[str, Any], targets: Dict[str, Any]) -> bool:
    """Say whether the yaml has all that metadata would say."""
    return all(
        {**conf, **options}.get(name) is not None
        for options in (targets or {DATA_NAME: {}}).values()
        for name in FROM_METADATA
    )


def _complete(conf: Dict[str, Any], name: str, paths: List[str]) -> Dict[str, Any]:
    """Return what the metadata of one target say, all of its files and the yaml."""
    first, *others = [(path, IndexMetadata.beside(path)) for path in paths]
    for path, metadata in others:
        differences = first[1].differences(metadata)
        if differences:
            raise ValueError(
                f"codebook indexes {first[0]} and {path} do not mean the same: "
                f"{'; '.join(differences)}. Extract both with one teacher and quantizer"
            )
    says = {option: getattr(first[1], option) for option in FROM_METADATA}
    for option, value in says.items():
        if conf.get(option) is not None and conf[option] != value:
            raise ValueError(
                f"mvq_conf {option}: got {conf[option]!r} in the yaml, but the indexes "
                f"{first[0]} ({name}) have {value!r}. Leave it out of the yaml, or "
                "extract the indexes again"
            )
    return says


def _words(value: Any) -> Iterator[str]:
    """Yield all texts in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _words(list(value.items()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _words(item)
