"""The teacher's task losses on the training set: what AdaKD weighs utterances by."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Set

import torch

from espnet_mvq.files.scp import read_list
from espnet_mvq.files.teacher_loss import read_teacher_losses
from espnet_mvq.plugin.config import TEACHER_LOSS_NAME, parse_weighting
from espnet_mvq.plugin.data_type import (
    LIST_NAME,
    LOSS_NAME,
    skipped_utterances,
)


def complete_weighting(conf: Dict[str, Any], args: argparse.Namespace) -> None:
    """Fill in what a weighting takes from the training set's teacher losses.

    Args:
        conf: `mvq_conf`, whose `weighting` is changed.
        args: Options of an ESPnet training.

    Raises:
        ValueError: If losses are needed and none are given, or one that is not
            unlabelled has none.
    """
    weighting = parse_weighting(conf)
    if weighting is None or not weighting.needs_teacher_loss:
        return
    data = list(args.train_data_path_and_name_and_type or [])
    paths = [path for path, name, kind in data if kind == LOSS_NAME]
    if not paths:
        raise ValueError(
            f"mvq_conf weighting {weighting.type}: got no data of type {LOSS_NAME!r} "
            "in train_data_path_and_name_and_type, expected the teacher's task loss "
            "on each utterance. Write it with 'python3 -m "
            "espnet_mvq.bin.teacher_loss', and add 'dump/raw/TRAIN_SET/"
            f"{TEACHER_LOSS_NAME},{TEACHER_LOSS_NAME},{LOSS_NAME}' and "
            "allow_variable_data_keys: true"
        )
    losses: Dict[str, float] = {}
    skipped: Set[str] = set()
    for path in _pieces(paths):
        losses.update(read_teacher_losses(path))
        skipped.update(skipped_utterances(path))
    texts = _pieces([path for path, name, _ in data if name == "text"])
    lists = _pieces([path for path, _, kind in data if kind == LIST_NAME])
    unlabelled = {utt_id for path in lists for utt_id in read_list(path)}
    labelled = [
        utt_id
        for path in texts
        for utt_id in _read_utterances(path)
        if utt_id not in unlabelled
    ]
    missing = [u for u in labelled if u not in losses and u not in skipped]
    if missing:
        raise ValueError(
            f"{paths[0]}: utterance {missing[0]} and {len(missing) - 1} more of the "
            "training set have no teacher loss; run espnet_mvq.bin.teacher_loss on "
            "this training set, and name those without text in a list of type "
            f"{LIST_NAME}"
        )
    known = [losses[u] for u in labelled or losses if u in losses]
    resolved = weighting.resolved(torch.tensor(known, dtype=torch.float64))
    conf["weighting"] = {"type": resolved.type, **dataclasses.asdict(resolved)}


def _pieces(paths: List[str]) -> List[Path]:
    """Return the files of data that `--num_splits_asr` may have cut into pieces."""
    return [
        piece
        for path in map(Path, paths)
        for piece in (sorted(path.glob("split.*")) if path.is_dir() else [path])
    ]


def _read_utterances(path: Path) -> List[str]:
    """Return the utterances of a file of texts, each once."""
    with path.open(encoding="utf-8") as lines:
        return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
