"""Checks before a training starts.

Missing values of `mvq_conf` are read from the metadata of the training data. Options
that disagree with the metadata, the speech or an earlier training are refused.
"""

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import torch

from espnet_mvq.files.experiment import read_checkpoint, read_config
from espnet_mvq.files.scp import read_ids, read_list
from espnet_mvq.indexes.teacher_losses import read_teacher_losses
from espnet_mvq.options import check_options
from espnet_mvq.plugin.completion import load_metadata, metadata_values
from espnet_mvq.plugin.config import (
    CODEBOOKS,
    TEACHER_LOSS_NAME,
    TEACHER_NAME,
    UNLABELLED_NAME,
    MVQConfig,
    as_mapping,
    check_name,
    from_metadata,
    is_of,
    lone_name,
    parse_weighting,
    split_targets,
)
from espnet_mvq.plugin.data_type import LIST_NAME, LOSS_NAME
from espnet_mvq.plugin.data_type import NAME as DATA_TYPE
from espnet_mvq.plugin.data_type import skipped_utterances
from espnet_mvq.teachers import Teacher, build_teacher
from espnet_mvq.teachers.espnet import sample_rate_hz

COUNTER = "mvq.num_updates"
# Effects of ESPnet's preprocessor that move the speech away from its indexes
_MOVING_EFFECTS = ("speed_perturb", "time_stretch", "reverse")
# Preprocessors of ESPnet that pad speech to 30 s
_PADDING = ("s2t", "s2t_ctc")
# Data types of which the model knows one name alone
_NAMES = {LOSS_NAME: TEACHER_LOSS_NAME, LIST_NAME: UNLABELLED_NAME}


def complete_mvq_conf(args: argparse.Namespace) -> None:
    """Fill in `args.model_conf["mvq_conf"]` from the metadata of the training data.

    Args:
        args: Options of an ESPnet training; `model_conf` is changed.

    Raises:
        ValueError: If index files are missing, or disagree with each other or with the
            yaml; if augmentation moves the speech under its indexes; if `--init_param`
            copies the count of updates; if the checkpoint to resume from has other
            indexes; or if new checkpoints would lack the plugin's weights.
    """
    refuse_moving_effects(args)
    refuse_counted_updates(args)
    refuse_lost_heads(args)
    conf = as_mapping("", args.model_conf.get("mvq_conf"))
    shared, targets = split_targets(conf)
    paths = stored_paths(args)
    names = list(targets) or [lone_name(conf)] * (not paths or "teacher" in conf)
    names += [name for name in paths if name not in names]
    completed = {}
    for name in names:
        options = {**shared, **targets.get(name, {})}
        check_options("mvq_conf", MVQConfig, options)
        values = missing_values(options, name, paths.get(name, []), args)
        if {**options, **values}.get("level") == "utterance":
            refuse_means_of_padding(args, name, options)
        elif name in paths and pads_speech(args):
            values["speech_is_padded"] = True
        completed[name] = {**targets.get(name, {}), **values}
    if not targets and names == [lone_name(conf)]:
        conf.update(completed[names[0]])
    else:
        conf["targets"] = completed
    complete_weighting(conf, args)
    refuse_other_indexes(args, conf)
    args.model_conf["mvq_conf"] = conf


def refuse_moving_effects(args: argparse.Namespace) -> None:
    """Refuse augmentation on the fly that moves or stretches the speech.

    Raises:
        ValueError: Naming the effects.
    """
    conf = getattr(args, "preprocessor_conf", None) or {}
    moving = sorted(set(_words(conf.get("data_aug_effects"))) & set(_MOVING_EFFECTS))
    if moving and conf.get("data_aug_prob", 0) > 0:
        raise ValueError(
            f"preprocessor_conf data_aug_effects: got {', '.join(moving)}, which move "
            "the speech under its codebook indexes; remove them. Speed perturbation "
            "before the extraction (speed_perturb_factors of asr.sh) is supported"
        )


def _words(value: Any) -> Iterator[str]:
    """Yield all texts in nested lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _words(list(value.items()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _words(item)


def refuse_counted_updates(args: argparse.Namespace) -> None:
    """Refuse an `--init_param` that copies the count of updates of an MVQ model.

    Schedules, AdaKD's k and `head_init` would start where that training ended.

    Args:
        args: Options of an ESPnet training.

    Raises:
        ValueError: Naming the checkpoint and the text to add to the option.
    """
    for init_param in getattr(args, "init_param", None) or []:
        path, source, target, excluded = (init_param.split(":", 3) + [""] * 3)[:4]
        if (source, target) not in (("", ""), ("mvq", "mvq")):
            continue
        if COUNTER.startswith(tuple(filter(None, excluded.split(",")))):
            continue
        number = _read_counter(path)
        if number > 0:
            raise ValueError(
                f"--init_param {init_param}: got a model after {number} updates with "
                "the MVQ loss, expected weights without the count, on which "
                f"schedules, AdaKD's k and head_init depend. Write {path}:::{COUNTER} "
                f"to keep the model's heads, or {path}:::mvq. for new heads"
            )


def _read_counter(path: str) -> int:
    """Return the updates in a checkpoint; 0 if unreadable, which ESPnet reports."""
    if not Path(path).is_file():
        return 0
    try:
        return int(read_checkpoint(Path(path)).get(COUNTER, 0))
    except ValueError:
        return 0


def refuse_lost_heads(args: argparse.Namespace) -> None:
    """Refuse checkpoints of adapters alone: a resumed training would get new heads.

    Args:
        args: Options of an ESPnet training.

    Raises:
        ValueError: Naming the option and its expected values.
    """
    strategy = getattr(args, "save_strategy", None)
    if getattr(args, "use_adapter", False) and strategy == "adapter_only":
        raise ValueError(
            f"save_strategy: got {strategy}, whose checkpoints lack the weights of the "
            "MVQ loss and its count of updates, so that a training cannot resume; "
            "expected required_grad_only or all"
        )


def stored_paths(args: argparse.Namespace) -> Dict[str, List[str]]:
    """Return the paths of a teacher's data among those of a training, by name.

    Raises:
        ValueError: If data of the plugin have a name that the model does not know.
    """
    train = list(args.train_data_path_and_name_and_type or [])
    data = train + list(args.valid_data_path_and_name_and_type or [])
    in_training = {name for _, name, _ in train}
    paths: Dict[str, List[str]] = {}
    for path, name, kind in data:
        if name != _NAMES.get(kind, name):
            raise ValueError(
                f"{path} of type {kind!r}: got the name {name!r}, expected "
                f"{_NAMES[kind]!r}, by which the model looks for it"
            )
        if kind != DATA_TYPE:
            continue
        if name not in in_training:
            raise ValueError(
                f"{path} of type {DATA_TYPE!r}: {name} is in the validation data "
                "alone, expected it in train_data_path_and_name_and_type too"
            )
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(f"{path} of type {DATA_TYPE!r}: {error}") from error
        paths.setdefault(name, []).append(path)
    return paths


def missing_values(
    options: Dict[str, Any], name: str, paths: List[str], args: argparse.Namespace
) -> Dict[str, Any]:
    """Read missing values of a target from its files or its teacher.

    Args:
        options: Options of the target in the yaml.
        name: Name of the target.
        paths: Its files.
        args: Options of an ESPnet training.

    Raises:
        ValueError: If there is no source of missing values, or it disagrees with the
            yaml.
    """
    wanted = from_metadata(name, options.get("loss", CODEBOOKS))
    has_teacher = is_of(name, TEACHER_NAME)
    if not paths and all(options.get(option) is not None for option in wanted):
        # All given by hand: a training that has no indexes, or gets them elsewhere, as
        # from the data sets of ESPnet-EZ, which have no paths
        if args.train_data_path_and_name_and_type and not has_teacher:
            logging.warning(
                f"mvq_conf: no data named {name!r} of type {DATA_TYPE!r}: the student "
                "trains without this loss"
            )
        return {}
    if has_teacher:
        source, metadata = options.get("teacher"), _build_teacher(options)
    elif paths:
        source, metadata = paths[0], load_metadata(name, paths)
    else:
        raise ValueError(
            f"mvq_conf needs codebook indexes: got no data named {name!r} of type "
            f"{DATA_TYPE!r} in train_data_path_and_name_and_type. Add "
            f"'dump/raw/TRAIN_SET/{name}.scp,{name},{DATA_TYPE}' and "
            "allow_variable_data_keys: true"
        )
    gives_rate = (getattr(args, "frontend_conf", None) or {}).get("fs") is not None
    if gives_rate or has_teacher:
        _refuse_other_rate(args, metadata.sample_rate, source)
    return metadata_values(options, name, metadata, source)


def _build_teacher(options: Dict[str, Any]) -> Teacher:
    """Load the teacher that runs in training, whose attributes describe its frames."""
    spec = options["teacher"]
    conf = as_mapping("teacher_conf", options.get("teacher_conf"))
    taken = sorted({"spec", "layer", "device"} & set(conf))
    if taken:
        raise ValueError(
            f"mvq_conf teacher_conf: got {', '.join(taken)}, expected options of the "
            "teacher's back end, dtype or batch_s; the layer is teacher_layer"
        )
    teacher = build_teacher(spec, layer=options.get("teacher_layer", -1), **conf)
    if not teacher.reads_audio:
        raise ValueError(
            f"mvq_conf teacher: got {spec}, which are stored embeddings, expected a "
            "model that reads speech; to train on stored embeddings, extract them with "
            "mvq.sh --target embeddings"
        )
    return teacher


def _refuse_other_rate(args: argparse.Namespace, rate: int, source: str) -> None:
    """Refuse a student of another sample rate than its teacher."""
    student = sample_rate_hz("student", vars(args))
    if student != rate:
        raise ValueError(
            f"mvq_conf: {source} is of speech at {rate} Hz, but the student reads "
            f"{student} Hz (frontend_conf fs), expected the same; train at {rate} Hz, "
            "or use a teacher for the student's rate"
        )


def refuse_means_of_padding(
    args: argparse.Namespace, name: str, options: Dict[str, Any]
) -> None:
    """Refuse targets of whole utterances where the preprocessor pads the speech.

    The mean of the student's frames would include the padding, whose length the model
    does not know.

    Raises:
        ValueError: Naming the target.
    """
    if _has_padding_preprocessor(args) or options.get("speech_is_padded"):
        raise ValueError(
            f"mvq_conf level of {name}: got utterance where the preprocessor pads the "
            "speech, so that the mean over the student's frames would include the "
            "padding; expected frame, or a task whose preprocessor does not pad"
        )


def pads_speech(args: argparse.Namespace) -> bool:
    """Whether ESPnet's preprocessor pads speech, as those of the s2t tasks do.

    Raises:
        ValueError: If it also puts silence of random length before the speech.
    """
    if not _has_padding_preprocessor(args):
        return False
    conf = getattr(args, "preprocessor_conf", None) or {}
    silence = conf.get("speech_init_silence", 1.0)  # ESPnet's default
    if silence > 0:
        raise ValueError(
            f"preprocessor_conf speech_init_silence: got {silence}, the maximum "
            "seconds of silence before the speech, which move it under its codebook "
            "indexes; set it to 0, or use a teacher that runs in training (mvq_conf "
            "teacher)"
        )
    return True


def _has_padding_preprocessor(args: argparse.Namespace) -> bool:
    """Whether the training uses one of ESPnet's preprocessors that pad speech."""
    uses = getattr(args, "use_preprocessor", False)
    return uses and getattr(args, "preprocessor", None) in _PADDING


def complete_weighting(conf: Dict[str, Any], args: argparse.Namespace) -> None:
    """Fill in the values of a weighting that depend on the teacher losses.

    Args:
        conf: `mvq_conf`, whose `weighting` is changed.
        args: Options of an ESPnet training.

    Raises:
        ValueError: If losses are needed and there are none, or a labelled utterance has
            none.
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
        for utt_id in dict.fromkeys(read_ids(path))
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
    """Return the files of the data, which `--num_splits_asr` may have split."""
    return [
        piece
        for path in map(Path, paths)
        for piece in (sorted(path.glob("split.*")) if path.is_dir() else [path])
    ]


def refuse_lone_loss(args: argparse.Namespace, with_mvq: bool) -> None:
    """Refuse the loss `mvq` without the model `mvq`, and the model without the loss.

    ESPnet's own model would train with loss 0.

    Args:
        args: Options of a training of the task ssl.
        with_mvq: Whether the model is ours.

    Raises:
        ValueError: Saying what is missing.
    """
    losses = [loss["name"] for loss in args.loss]
    if ("mvq" in losses) != with_mvq:
        raise ValueError(
            f"got model: {args.model} with the losses {', '.join(losses)}, expected "
            "model: mvq together with loss: [{name: mvq}], or neither of them"
        )


def refuse_other_indexes(args: argparse.Namespace, conf: Dict[str, Any]) -> None:
    """Refuse to resume a training with data of another quantizer or teacher.

    A finished training would otherwise pass for one with the new indexes.

    Args:
        args: Options of an ESPnet training.
        conf: Its `mvq_conf`, filled in.

    Raises:
        ValueError: Naming the experiment and both quantizers or teachers.
    """
    folder = Path(getattr(args, "output_dir", None) or "")
    written = folder / "config.yaml"
    has_checkpoint = (folder / "checkpoint.pth").is_file() and written.is_file()
    if not (getattr(args, "resume", False) and has_checkpoint):
        return
    before = read_config(written)
    before = _origins((before.get("model_conf") or {}).get("mvq_conf") or {})
    for (name, kind), origin in _origins(conf).items():
        if before.get((name, kind), origin) != origin:
            raise ValueError(
                f"{folder}: was trained with {name} of {kind} {before[name, kind]}, "
                f"but the data are of {kind} {origin}; start a new experiment "
                "(asr.sh: --asr_tag, our recipes: --exp_tag), or delete this one"
            )


def _origins(conf: Dict[str, Any]) -> Dict[Tuple[str, str], str]:
    """Return the known quantizer and teacher of each target's data."""
    targets = conf.get("targets") or {lone_name(conf): conf}
    return {
        (name, kind): options[f"{kind}_id"]
        for name, options in targets.items()
        for kind in ("quantizer", "teacher")
        if options and options.get(f"{kind}_id") is not None
    }
