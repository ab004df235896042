"""Before training: fill in and check what the index files say of themselves."""

import argparse
from typing import Any, Dict, List

from espnet_mvq.indexes import IndexMetadata
from espnet_mvq.plugin.config import FROM_METADATA
from espnet_mvq.plugin.data_type import NAME as DATA_TYPE

DATA_NAME = "codebook_indexes"


def complete_mvq_conf(args: argparse.Namespace) -> None:
    """Copy what the metadata say into `args.model_conf["mvq_conf"]`.

    Args:
        args: Options of an ESPnet training; `model_conf` is changed.

    Raises:
        ValueError: If there are no index files, they disagree with each other or with
            the yaml.
    """
    paths = index_paths(args)
    conf: Dict[str, Any] = dict(args.model_conf.get("mvq_conf") or {})
    if not paths:
        # All given by hand: a training that has no indexes, or gets them elsewhere.
        if all(conf.get(name) is not None for name in FROM_METADATA):
            return
        raise ValueError(
            f"model: mvq needs codebook indexes: got no data named {DATA_NAME!r} of "
            f"type {DATA_TYPE!r} in train_data_path_and_name_and_type. Add "
            f"'dump/raw/TRAIN_SET/codebook_indexes.scp,{DATA_NAME},{DATA_TYPE}' and "
            "allow_variable_data_keys: true"
        )
    first, *others = [(path, IndexMetadata.beside(path)) for path in paths]
    for path, metadata in others:
        differences = first[1].differences(metadata)
        if differences:
            raise ValueError(
                f"codebook indexes {first[0]} and {path} do not mean the same: "
                f"{'; '.join(differences)}. Extract both with one teacher and quantizer"
            )
    for name in FROM_METADATA:
        says = getattr(first[1], name)
        if conf.get(name) is not None and conf[name] != says:
            raise ValueError(
                f"mvq_conf {name}: got {conf[name]!r} in the yaml, but the indexes "
                f"{first[0]} have {says!r}. Leave it out of the yaml, or extract the "
                "indexes again"
            )
        conf[name] = says
    args.model_conf["mvq_conf"] = conf


def index_paths(args: argparse.Namespace) -> List[str]:
    """Return the paths of all codebook indexes in training and validation data.

    Raises:
        ValueError: If some have a name that the model does not know.
    """
    data = list(args.train_data_path_and_name_and_type or [])
    data += list(args.valid_data_path_and_name_and_type or [])
    for path, name, kind in data:
        if kind == DATA_TYPE and name != DATA_NAME:
            raise ValueError(
                f"{path} of type {DATA_TYPE!r}: got the name {name!r}, expected "
                f"{DATA_NAME!r}, by which the model looks for it"
            )
    return [path for path, name, kind in data if kind == DATA_TYPE]
