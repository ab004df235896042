"""Before training: fill in and check what the index files say of themselves."""

import argparse
import logging
from typing import Any, Dict, Iterator, List

from espnet_mvq.indexes.metadata import (
    EmbeddingMetadata,
    FrameMetadata,
    IndexMetadata,
)
from espnet_mvq.plugin.config import (
    CODEBOOKS,
    EMBEDDINGS_NAME,
    NOT_TARGETS,
    TEACHER_LOSS_NAME,
    TEACHER_NAME,
    UNLABELLED_NAME,
    as_mapping,
    check_name,
    checked_types,
    from_metadata,
    is_of,
    lone_name,
)
from espnet_mvq.plugin.data_type import LIST_NAME, LOSS_NAME
from espnet_mvq.plugin.data_type import NAME as DATA_TYPE
from espnet_mvq.plugin.start_point import (
    refuse_counted_updates,
    refuse_lost_heads,
    refuse_other_indexes,
)
from espnet_mvq.plugin.teacher_loss import complete_weighting
from espnet_mvq.quantization import Quantizer
from espnet_mvq.teachers import Teacher, build_teacher
from espnet_mvq.teachers.espnet import sample_rate_hz

# Effects of ESPnet's preprocessor after which indexes lie elsewhere in the speech
_MOVING_EFFECTS = ("speed_perturb", "time_stretch", "reverse")
# Preprocessors of ESPnet that pad speech to 30 s
_PADDING = ("s2t", "s2t_ctc")
# Data types of which the model knows one name alone
_NAMES = {LOSS_NAME: TEACHER_LOSS_NAME, LIST_NAME: UNLABELLED_NAME}


def complete_mvq_conf(args: argparse.Namespace) -> None:
    """Copy what the metadata say into `args.model_conf["mvq_conf"]`.

    Args:
        args: Options of an ESPnet training; `model_conf` is changed.

    Raises:
        ValueError: If there are no index files, they disagree with each other or with
            the yaml, or the speech is changed in a way that indexes cannot follow, or
            the model starts from one whose updates are counted, or the training from
            a checkpoint of other indexes, or its own would lack weights of ours.
    """
    refuse_moving_effects(args)
    refuse_counted_updates(args)
    refuse_lost_heads(args)
    conf = as_mapping("", args.model_conf.get("mvq_conf"))
    targets = {
        name: as_mapping(f"targets {name}", options)
        for name, options in as_mapping("targets", conf.get("targets")).items()
    }
    for name in targets:
        check_name(name)
    shared = {name: value for name, value in conf.items() if name not in NOT_TARGETS}
    paths = stored_paths(args)
    names = list(targets) or [lone_name(conf)] * (not paths or "teacher" in conf)
    names += [name for name in paths if name not in names]
    filled = {}
    for name in names:
        options = checked_types({**shared, **targets.get(name, {})})
        said = _complete(options, name, paths.get(name, []), args)
        if {**options, **said}.get("level") == "utterance":
            refuse_means_of_padding(args, name, options)
        elif name in paths and pads_speech(args):
            said["speech_is_padded"] = True
        filled[name] = {**targets.get(name, {}), **said}
    if not targets and names == [lone_name(conf)]:
        conf.update(filled[names[0]])
    else:
        conf["targets"] = filled
    complete_weighting(conf, args)
    refuse_other_indexes(args, conf)
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


def pads_speech(args: argparse.Namespace) -> bool:
    """Say whether ESPnet's preprocessor pads speech, as those of the s2t tasks.

    Raises:
        ValueError: If it does so in front too, at random.
    """
    if not _has_padding_preprocessor(args):
        return False
    conf = getattr(args, "preprocessor_conf", None) or {}
    silence = conf.get("speech_init_silence", 1.0)  # ESPnet's default
    if silence > 0:
        raise ValueError(
            f"preprocessor_conf speech_init_silence: got {silence}, up to so many "
            "seconds of silence before the speech, which move it under its codebook "
            "indexes; set it to 0, or take a teacher in the loop"
        )
    return True


def refuse_means_of_padding(
    args: argparse.Namespace, name: str, options: Dict[str, Any]
) -> None:
    """Refuse one index for an utterance where most of it may be silence.

    The mean of the student's frames would be that of the padding, whose length the
    model is not told.

    Raises:
        ValueError: Naming the target.
    """
    if _has_padding_preprocessor(args) or options.get("speech_is_padded"):
        raise ValueError(
            f"mvq_conf level of {name}: got utterance where the preprocessor pads the "
            "speech, so that the mean over the student's frames would be one of "
            "silence; expected frame, or a task whose preprocessor does not pad"
        )


def _has_padding_preprocessor(args: argparse.Namespace) -> bool:
    """Say whether speech passes one of ESPnet's preprocessors that pad it."""
    uses = getattr(args, "use_preprocessor", False)
    return uses and getattr(args, "preprocessor", None) in _PADDING


def stored_paths(args: argparse.Namespace) -> Dict[str, List[str]]:
    """Return the paths of our files in training and validation data, by name.

    Raises:
        ValueError: If some have a name that the model does not know.
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
        if kind == DATA_TYPE and name not in in_training:
            raise ValueError(
                f"{path} of type {DATA_TYPE!r}: {name} are data of the validation "
                "alone, expected some in train_data_path_and_name_and_type too"
            )
        if kind == DATA_TYPE:
            try:
                check_name(name)
            except ValueError as error:
                raise ValueError(f"{path} of type {DATA_TYPE!r}: {error}") from error
            paths.setdefault(name, []).append(path)
    return paths


def _complete(
    options: Dict[str, Any], name: str, paths: List[str], args: argparse.Namespace
) -> Dict[str, Any]:
    """Return what files or teacher of a target say, which must fit the yaml."""
    wanted = from_metadata(name, options.get("loss", CODEBOOKS))
    if not paths and all(options.get(option) is not None for option in wanted):
        # All given by hand: a training that has no indexes, or gets them elsewhere.
        if not is_of(name, TEACHER_NAME):
            logging.warning(
                f"mvq_conf: no data named {name!r} of type {DATA_TYPE!r}: the student "
                "trains without this loss"
            )
        return {}
    if is_of(name, TEACHER_NAME):
        source, found = options.get("teacher"), _ask_teacher(options)
    elif paths:
        source, found = paths[0], _read_metadata(name, paths)
    else:
        raise ValueError(
            f"mvq_conf needs codebook indexes: got no data named {name!r} of type "
            f"{DATA_TYPE!r} in train_data_path_and_name_and_type. Add "
            f"'dump/raw/TRAIN_SET/{name}.scp,{name},{DATA_TYPE}' and "
            "allow_variable_data_keys: true"
        )
    says_rate = (getattr(args, "frontend_conf", None) or {}).get("fs") is not None
    if says_rate or is_of(name, TEACHER_NAME):
        _refuse_other_rate(args, found.sample_rate, source)
    says = {option: getattr(found, option, None) for option in (*wanted, "level")}
    if says["level"] is None:
        del says["level"]
    if "dim" in wanted and says["dim"] is None and options.get("quantizer"):
        says["dim"] = Quantizer.load(options["quantizer"]).dim
    for option, value in says.items():
        if options.get(option) is not None and options[option] != value:
            raise ValueError(
                f"mvq_conf {option}: got {options[option]!r} in the yaml, but "
                f"{source} ({name}) has {value!r}. Leave it out of the yaml, or "
                "run the extraction again"
            )
    return says


def _read_metadata(name: str, paths: List[str]) -> FrameMetadata:
    """Return what is said beside the files of one target, all of which must agree."""
    kind = EmbeddingMetadata if is_of(name, EMBEDDINGS_NAME) else IndexMetadata
    (first, metadata), *others = [(path, kind.beside(path)) for path in paths]
    for path, other in others:
        differences = metadata.differences(other)
        if differences:
            raise ValueError(
                f"{first} and {path} do not mean the same: {'; '.join(differences)}. "
                "Extract both with one teacher and quantizer"
            )
    return metadata


def _ask_teacher(options: Dict[str, Any]) -> Teacher:
    """Load the teacher that is to run in training, to learn what its frames are."""
    spec, conf = options["teacher"], as_mapping(
        "teacher_conf", options.get("teacher_conf")
    )
    taken = sorted({"spec", "layer", "device"} & set(conf))
    if taken:
        raise ValueError(
            f"mvq_conf teacher_conf: got {', '.join(taken)}, expected options of the "
            "teacher's back end, dtype or batch_s; the layer is teacher_layer"
        )
    teacher = build_teacher(spec, layer=options.get("teacher_layer", -1), **conf)
    if not teacher.reads_audio:
        raise ValueError(
            f"mvq_conf teacher: got {spec}, which are embeddings of a corpus, expected "
            "a model that can hear; store them with mvq.sh --target embeddings"
        )
    return teacher


def _refuse_other_rate(args: argparse.Namespace, rate: int, source: str) -> None:
    """Refuse a student that hears at another rate than its teacher."""
    student = sample_rate_hz("student", vars(args))
    if student != rate:
        raise ValueError(
            f"mvq_conf: {source} is of speech at {rate} Hz, but the student hears "
            f"{student} Hz (frontend_conf fs), expected the same; train at {rate} Hz, "
            "or take a teacher for the student's rate"
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
