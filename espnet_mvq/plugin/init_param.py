"""Weights that a training starts from: what of them must stay away."""

import argparse
import pickle
from pathlib import Path

import torch

COUNTER = "mvq.num_updates"


def refuse_counted_updates(args: argparse.Namespace) -> None:
    """Refuse `--init_param` of an MVQ model that brings the updates made so far along.

    Schedules, AdaKD's k and `head_init` would take a new training for one that goes on.

    Args:
        args: Options of an ESPnet training.

    Raises:
        ValueError: Naming the checkpoint and what to add.
    """
    for init_param in getattr(args, "init_param", None) or []:
        path, source, target, excluded = (init_param.split(":", 3) + [""] * 3)[:4]
        is_whole = not source and not target
        if not is_whole or COUNTER.startswith(_excluded_prefixes(excluded)):
            continue
        number = _read_counter(path)
        if number > 0:
            raise ValueError(
                f"--init_param {init_param}: got a model after {number} updates with "
                "the MVQ loss, expected weights without their count, which schedules, "
                f"AdaKD's k and head_init go by. Write {path}:::{COUNTER} to keep its "
                f"heads, or {path}:::mvq. for new ones"
            )


def _excluded_prefixes(excluded: str) -> tuple:
    """Return the prefixes that ESPnet leaves out."""
    return tuple(prefix for prefix in excluded.split(",") if prefix)


def _read_counter(path: str) -> int:
    """Return the updates that a checkpoint counts; 0 if ESPnet is to judge it."""
    if not Path(path).is_file():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):
        return 0
    state = state.get("module", state)
    return int(state.get(COUNTER, 0))
