"""Reading an ESPnet experiment folder: its config and one of its checkpoints."""

import logging
from pathlib import Path
from typing import Any, Dict, Optional

import torch
import yaml

from espnet_mvq.teachers.base import TeacherError

# What asr.sh decodes with comes first.
CHECKPOINTS = (
    "valid.acc.ave.pth",
    "valid.loss.ave.pth",
    "valid.acc.best.pth",
    "valid.loss.best.pth",
    "latest.pth",
)
_MAPPINGS = (
    "frontend_conf",
    "normalize_conf",
    "preencoder_conf",
    "encoder_conf",
    "ctc_conf",
    "model_conf",
)


def read_config(spec: str, path: Path) -> Dict[str, Any]:
    """Read `config.yaml`."""
    if not path.is_file():
        raise TeacherError(
            f"teacher {spec}: no such file {path}; expected an ESPnet experiment "
            "folder, with config.yaml and a checkpoint"
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TeacherError(f"teacher {spec}: {path} is no yaml: {error}") from error
    if not isinstance(config, dict) or not config.get("encoder"):
        raise TeacherError(
            f"teacher {spec}: {path} names no encoder; expected the config of an ASR, "
            "SSL or HuBERT model"
        )
    for name in _MAPPINGS:
        if not isinstance(config.get(name) or {}, dict):
            raise TeacherError(
                f"teacher {spec}: {path} has {name}: {config[name]!r}, expected "
                "options by name"
            )
    if config.get("input_size") not in (None, 1):
        raise TeacherError(
            f"teacher {spec}: it reads features of {config['input_size']} dimensions "
            "(feats_type extracted), expected a model that reads speech"
        )
    if config.get("use_adapter"):
        raise TeacherError(
            f"teacher {spec}: it has adapters (use_adapter), which are not supported; "
            "merge them into the weights first"
        )
    return config


def find_checkpoint(spec: str, folder: Path, name: Optional[str]) -> Path:
    """Pick the checkpoint in an experiment folder."""
    there = sorted(path.name for path in folder.glob("*.pth"))
    if name is None:
        names = [known for known in CHECKPOINTS if known in there]
        if not names and len(there) == 1:
            names = there
        if names:
            logging.info(f"teacher {spec}: checkpoint {names[0]}")
            return folder / names[0]
    elif (folder / name).is_file():
        return folder / name
    raise TeacherError(
        f"teacher {spec}: got no {name or ' or '.join(CHECKPOINTS)} in {folder}, which "
        f"has {', '.join(there) or 'no .pth file'}; name one with --teacher_conf "
        "checkpoint=FILE"
    )


def read_state(spec: str, path: Path) -> Dict[str, torch.Tensor]:
    """Read a state dict, without running code that a pickle may bring along."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's, by kind of damage
        raise TeacherError(
            f"teacher {spec}: {path} is not a checkpoint of weights alone "
            f"({type(error).__name__}; pickled objects are not loaded, they could run "
            "code): copy it again, or name another with --teacher_conf checkpoint=FILE"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("module"), dict):
        state = state["module"]  # of deepspeed
    if not isinstance(state, dict):
        raise TeacherError(
            f"teacher {spec}: {path} holds a {type(state).__name__}, expected weights "
            "by name"
        )
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
