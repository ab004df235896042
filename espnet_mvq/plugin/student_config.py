"""Turning a training configuration of ESPnet into that of an MVQ student."""

import argparse
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch

from espnet_mvq.errors import one_line
from espnet_mvq.frame_timing.encoders import find_blocks
from espnet_mvq.frame_timing.tasks import TASKS
from espnet_mvq.plugin.config import (
    CODEBOOKS,
    DATA_NAME,
    EMBEDDINGS_NAME,
    POSTERIORS,
    POSTERIORS_NAME,
)
from espnet_mvq.plugin.data_type import NAME as DATA_TYPE
from espnet_mvq.plugin.layer_hook import LayerHook, works_on_chunks
from espnet_mvq.plugin.registration import import_task
from espnet_mvq.plugin.training_config import (
    DATA,
    add_options,
    parse_options,
    read_options,
)

# Building these encoders reads or downloads pretrained weights.
_PRETRAINED = ("avhubert", "beats", "hubert", "wav2vec2", "whisper")
# The number of blocks does not depend on the features.
_INPUT_SIZE = 80
_SHARE_OF_BLOCKS = 2 / 3
# Task of ESPnet, and the script in egs2/TEMPLATE that trains it with its options
_SCRIPTS = {"s2t_ctc": "s2t", "asr_transducer": "asr"}


@dataclass(frozen=True)
class StudentConfig:
    """The written configuration of an MVQ student.

    Attributes:
        path: File of the configuration.
        layer: Student layer.
        notes: Sentences about choices that the user may want to know.
        command: Next command to run in the recipe.
    """

    path: Path
    layer: int
    notes: Tuple[str, ...]
    command: str


def make_student_config(
    config: Path,
    data_dir: Optional[Path] = None,
    layer: Optional[int] = None,
    weight: float = 1.0,
    loss: str = CODEBOOKS,
    output: Optional[Path] = None,
    task: str = "asr",
) -> StudentConfig:
    """Write a training configuration with the MVQ loss; the input is not changed.

    Args:
        config: Training configuration of ESPnet, yaml.
        data_dir: Training set with the data of the loss. None: the only one in
            dump/raw.
        layer: Student layer, counted from 1; -1 = encoder output. None: at two thirds
            of the blocks, or -1 for an encoder without blocks that can be recorded and
            for posteriors.
        weight: Weight of the loss.
        loss: Loss of the student, a name of `LOSSES`.
        output: File to write. None: `X_mvq.yaml` beside `X.yaml`.
        task: Task of ESPnet, a name of `TASKS`.

    Raises:
        FileNotFoundError: If there is no such file, or no data.
        FileExistsError: If the output exists.
        ValueError: If the configuration cannot be that of a student, or the encoder has
            no such layer.
    """
    output = output or config.with_name(f"{config.stem}_mvq.yaml")
    if not 0 <= weight < math.inf:
        raise ValueError(f"--weight: got {weight}, expected a number from 0 up")
    options = read_options(config)
    _refuse_others(config, options, task)
    names = {CODEBOOKS: DATA_NAME, POSTERIORS: POSTERIORS_NAME}
    data_name = names.get(loss, EMBEDDINGS_NAME)
    if loss == POSTERIORS:
        if layer not in (None, -1):
            raise ValueError(
                f"--layer: got {layer}, expected none (-1) with --loss {POSTERIORS}, "
                "which is that of CTC on the encoder output"
            )
        layer = -1
    scp = _find_scp(data_dir, data_name)
    args = parse_options(config, task)
    chosen, streaming = _choose_layer(config, args, task, layer)
    metric = _metric(args, task)
    mvq_conf = {"weight": weight, "layer": chosen}
    if loss != CODEBOOKS:
        mvq_conf["loss"] = loss
    added = {
        "model_conf": {"mvq_conf": mvq_conf},
        "allow_variable_data_keys": True,
        DATA: [[str(scp), data_name, DATA_TYPE]],
    }
    for ours, base in TASKS[task].models.items():
        if args.model == base:
            added["model"] = ours
    changed, notes = _adapt(options, task, metric)
    student = add_options(config, {**added, **changed}, output)
    criterion = _checkpoint(student, metric)
    command = _next_command(output, task, criterion, streaming)
    return StudentConfig(output, chosen, tuple(notes), command)


def _refuse_others(config: Path, options: Dict[str, Any], task: str) -> None:
    """Refuse a configuration that has the MVQ loss already, or has no encoder."""
    model_conf = options.get("model_conf") or {}
    if TASKS[task].uses_mvq(options) or "mvq_conf" in model_conf:
        raise ValueError(
            f"{config}: got a configuration with the MVQ loss already, expected that "
            "of a baseline"
        )
    encoder = "encoder_conf" if task == "asr_transducer" else "encoder"
    if not options.get(encoder):
        raise ValueError(
            f"{config}: got no {encoder}, expected the training configuration of a "
            f"model of the task {task}; choose another task with --task"
        )
    bases = TASKS[task].models.values()
    model = options.get("model")
    if TASKS[task].models and model is not None and model not in bases:
        raise ValueError(
            f"{config}: got model: {model}, expected {' or '.join(bases)} or no model "
            f"in the task {task}; choose another task with --task"
        )


def _find_scp(data_dir: Optional[Path], name: str) -> Path:
    """Return the scp of a set, or of the only set in dump/raw that has one."""
    if data_dir is not None:
        scp = data_dir / f"{name}.scp"
        if not scp.is_file():
            raise FileNotFoundError(
                f"{scp}: no such file; run mvq.sh on this set first, or correct --set"
            )
        return scp
    found = sorted(Path("dump/raw").glob(f"*/{name}.scp"))
    if not found:
        raise FileNotFoundError(
            f"dump/raw/*/{name}.scp: no such file; run mvq.sh first, or give the "
            "training set with --set"
        )
    if len(found) > 1:
        raise ValueError(
            f"--set: got none, and {name}.scp is in several sets; expected one of: "
            + ", ".join(str(scp.parent) for scp in found)
        )
    return found[0]


def _choose_layer(
    config: Path, args: argparse.Namespace, task: str, layer: Optional[int]
) -> Tuple[int, bool]:
    """Return the student layer, and whether the encoder works on chunks."""
    name = getattr(args, "encoder", None)
    if name is not None and any(word in name for word in _PRETRAINED):
        # A layer that is not there is refused when the training starts.
        return (-1 if layer is None else layer), False
    try:
        encoder = _build_encoder(args, task)
    except Exception as error:
        raise ValueError(
            f"{config}: the encoder cannot be built ({type(error).__name__}: "
            f"{one_line(error)}); expected options that the installed ESPnet takes"
        ) from error
    streaming = works_on_chunks(encoder)
    if layer is None:
        blocks = None if streaming else find_blocks(encoder)
        layer = -1 if not blocks else max(1, round(_SHARE_OF_BLOCKS * len(blocks)))
    try:
        LayerHook(encoder, layer)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from error
    return layer, streaming


def _build_encoder(args: argparse.Namespace, task: str) -> torch.nn.Module:
    """Build the encoder without memory for its weights."""
    module = import_task(task)
    if TASKS[task].only_model and not hasattr(args, "encoder"):
        encoder = module.Encoder
    else:
        encoder = module.encoder_choices.get_class(args.encoder)
    with torch.device("meta"):
        return encoder(_INPUT_SIZE, **args.encoder_conf)


def _metric(args: argparse.Namespace, task: str) -> str:
    """Return the statistic of the validation that selects checkpoints best."""
    conf = args.model_conf or {}  # None: no value in the yaml
    if task == "asr_transducer" or getattr(args, "decoder", None) == "transducer":
        return "loss"
    if getattr(args, "model", None) == "maskctc":
        return "loss"
    if task != "s2t_ctc" and (task == "st" or conf.get("ctc_weight", 0.5) < 1):
        return "acc"
    return "cer_ctc" if conf.get("report_cer", True) else "loss"


def _adapt(
    options: Dict[str, Any], task: str, metric: str
) -> Tuple[Dict[str, Any], List[str]]:
    """Return options that have to change, and a sentence about each of them.

    Args:
        options: Options of the baseline.
        task: Task of ESPnet.
        metric: Statistic that selects checkpoints.
    """
    changed, notes = {}, []
    criteria = options.get("best_model_criterion") or []
    if metric != "acc" and criteria and all(c[1] == "acc" for c in criteria):
        changed["best_model_criterion"] = [["valid", metric, "min"]]
        notes.append(
            f"best_model_criterion: changed to valid {metric} min, because this model "
            "reports no acc"
        )
    if task in ("s2t", "s2t_ctc"):
        changed["preprocessor_conf"] = {"speech_init_silence": 0}
        notes.append(
            "preprocessor_conf: speech_init_silence set to 0, because silence before "
            "the speech would move it against the indexes"
        )
    return changed, notes


def _checkpoint(options: Dict[str, Any], metric: str) -> str:
    """Return the averaged checkpoint that the training keeps for decoding."""
    criteria = options.get("best_model_criterion")
    if criteria is None:  # ESPnet's default keeps both.
        return f"valid.{'acc' if metric == 'acc' else 'loss'}.ave.pth"
    usable = [c for c in criteria if c[1] != "acc" or metric == "acc"] or criteria
    # The last one, valid before train, and the best one before others
    phase, name, _ = max(usable, key=lambda c: (c[0] == "valid", c[1] == metric))
    return f"{phase}.{name}.ave.pth"


def _next_command(output: Path, task: str, checkpoint: str, streaming: bool) -> str:
    """Return the command that trains and decodes the student."""
    name = _SCRIPTS.get(task, task)
    words = ["./run.sh", "--stage", "6", "--python", "python3 -m espnet_mvq.run"]
    if name != task:
        words += [f"--{name}_task", task]
    words += [f"--{name}_config", str(output), f"--inference_{name}_model", checkpoint]
    if streaming:
        words += ["--use_streaming", "true"]
    return shlex.join(words)
