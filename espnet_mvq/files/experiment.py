"""ESPnet's experiment folders: `config.yaml` and checkpoints."""

from pathlib import Path
from typing import Any, Dict

import torch
import yaml

from espnet_mvq.errors import one_line


def read_config(path: Path) -> Dict[str, Any]:
    """Read the options of a training; empty if the file is.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not yaml, or has no options by name.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not readable as yaml ({one_line(error)}); copy it again"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{path}: got a {type(config).__name__}, expected the options of a "
            "training by name, as ESPnet writes them"
        )
    return config


def read_checkpoint(path: Path) -> Dict[str, Any]:
    """Read a state dict; code in its pickle is not run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds other objects than a state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise ValueError(
            f"{path}: damaged, or holds other objects than weights, which are not "
            f"loaded because they could run code ({type(error).__name__}); copy it "
            "again, or choose another checkpoint"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("module"), dict):
        state = state["module"]  # of deepspeed
    if not isinstance(state, dict):
        raise ValueError(
            f"{path}: got a {type(state).__name__}, expected weights by name; "
            "choose another checkpoint"
        )
    return state
