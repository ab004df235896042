"""What a training starts from, or goes on from: weights of another one, or its own."""

import argparse
import pickle
from pathlib import Path
from typing import Any, Dict

import torch
import yaml

from espnet_mvq.plugin.config import lone_name

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
        has_counter = (source, target) in (("", ""), ("mvq", "mvq"))
        if not has_counter or COUNTER.startswith(_excluded_prefixes(excluded)):
            continue
        number = _read_counter(path)
        if number > 0:
            raise ValueError(
                f"--init_param {init_param}: got a model after {number} updates with "
                "the MVQ loss, expected weights without their count, which schedules, "
                f"AdaKD's k and head_init go by. Write {path}:::{COUNTER} to keep its "
                f"heads, or {path}:::mvq. for new ones"
            )


def refuse_other_indexes(args: argparse.Namespace, conf: Dict[str, Any]) -> None:
    """Refuse to go on with a training whose indexes were those of another quantizer.

    A training that is done would be taken for one of the new indexes.

    Args:
        args: Options of an ESPnet training.
        conf: Its `mvq_conf`, filled in.

    Raises:
        ValueError: Naming the experiment and both quantizers.
    """
    folder = Path(getattr(args, "output_dir", None) or "")
    written = folder / "config.yaml"
    if not (getattr(args, "resume", False) and (folder / "checkpoint.pth").is_file()):
        return
    if not written.is_file():
        return
    before = yaml.safe_load(written.read_text(encoding="utf-8")) or {}
    before = _quantizers((before.get("model_conf") or {}).get("mvq_conf") or {})
    for name, quantizer in _quantizers(conf).items():
        if None not in (quantizer, before.get(name)) and quantizer != before[name]:
            raise ValueError(
                f"{folder}: was trained with {name} of quantizer {before[name]}, but "
                f"those here are of {quantizer}; name another experiment (asr.sh: "
                "--asr_tag, our recipes: --exp_tag), or delete this one"
            )


def refuse_lost_heads(args: argparse.Namespace) -> None:
    """Refuse checkpoints of adapters alone: a training would go on with new heads.

    Args:
        args: Options of an ESPnet training.

    Raises:
        ValueError: Naming the option and what to set.
    """
    strategy = getattr(args, "save_strategy", None)
    if getattr(args, "use_adapter", False) and strategy == "adapter_only":
        raise ValueError(
            f"save_strategy: got {strategy}, whose checkpoints lack the weights of the "
            "MVQ loss and its count of updates, so that a training cannot go on; "
            "expected required_grad_only or all"
        )


def _quantizers(conf: Dict[str, Any]) -> Dict[str, Any]:
    """Return the id of the quantizer of each target's indexes."""
    targets = conf.get("targets") or {lone_name(conf): conf}
    return {name: (said or {}).get("quantizer_id") for name, said in targets.items()}


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
