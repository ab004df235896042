"""Students that start from layers of their teacher, through ESPnet's `--init_param`.

ESPnet reads `FILE:SOURCE:TARGET:EXCLUDED`: of a checkpoint's weights, those whose names
begin with SOURCE are loaded into the submodule TARGET, except names that begin with one
of EXCLUDED. One such text for each block renumbers blocks. So the student's yaml alone
says where its weights come from, and no further checkpoint is written.
"""

import argparse
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch

from espnet_mvq.errors import one_line
from espnet_mvq.files.experiment import read_checkpoint
from espnet_mvq.frame_timing.tasks import DECODED, TASKS
from espnet_mvq.plugin.registration import find_task, import_task, register
from espnet_mvq.plugin.training_config import (
    add_options,
    parse_options,
    read_options,
)
from espnet_mvq.teachers.espnet_folder import find_checkpoint, read_config

# Tasks in which one token list describes all that comes after the encoder
INIT_TASKS = tuple(name for name in DECODED if not TASKS[name].only_model)
_STREAMING = "contextual_block_"
# Options of an encoder that weights depend on beyond their shapes
_SHARED = (
    *("output_size", "attention_heads", "activation_type", "normalize_before"),
    "rel_pos_type",  # streaming encoders have none
)
# Parts of a model that do not depend on tokens; one part of an encoder does.
_SPEECH = ("frontend", "preencoder", "encoder", "postencoder")
_OF_TOKENS = "encoder.conditioning_layer"
# Names in an offline encoder's input layer and blocks, and in its streaming form's
_RENAMED = (("out.0", "out"), ("norm_mha", "norm1"), ("norm_ff", "norm2"))
_BLOCK = re.compile(r"^encoder\.encoders\.(\d+)\.")

# By name, of all weights and buffers of a model
Shapes = Dict[str, torch.Size]


@dataclass(frozen=True)
class StudentInit:
    """The written configuration of a student that starts from its teacher.

    Attributes:
        path: File of the configuration.
        blocks: Block of the teacher for each block of the student, counted from 1.
        notes: Sentences about what is taken, and what is not and why.
    """

    path: Path
    blocks: Tuple[int, ...]
    notes: Tuple[str, ...]


def start_from_teacher(
    teacher_exp: Path,
    config: Path,
    checkpoint: Optional[str] = None,
    blocks: Optional[Sequence[int]] = None,
    token_list: Optional[Path] = None,
    output: Optional[Path] = None,
    task: str = "asr",
) -> StudentInit:
    """Write a student's configuration with `init_param`; the input is not changed.

    Args:
        teacher_exp: Experiment folder of the teacher, a model of ESPnet.
        config: Training configuration of the student, with the MVQ loss or without.
        checkpoint: File in the folder. None: the first that exists of
            `espnet_folder.CHECKPOINTS`.
        blocks: Block of the teacher for each block of the student, counted from 1.
            None: evenly spread, the last one included.
        token_list: Tokens of the student. None: those in its configuration; if it has
            none, nothing after the encoder is taken.
        output: File to write. None: `X_init.yaml` beside `X.yaml`.
        task: Task of ESPnet, one of `INIT_TASKS`.

    Raises:
        FileNotFoundError: If configuration or token list do not exist.
        FileExistsError: If the output exists.
        ValueError: If teacher or student cannot be read or built, or the student does
            not fit its teacher.
    """
    register()  # for model: mvq
    output = output or config.with_name(f"{config.stem}_init.yaml")
    options, args = read_options(config), parse_options(config, task)
    if options.get("init_param"):
        raise ValueError(
            f"{config}: got init_param already, expected a student without; remove it"
        )
    described = read_config(str(teacher_exp), teacher_exp / "config.yaml")
    _refuse_other_encoder(config, args, described, task)
    path = find_checkpoint(str(teacher_exp), teacher_exp, checkpoint, "--checkpoint")
    if ":" in str(path):
        raise ValueError(
            f"{path}: got a path with a colon, which separates the parts of "
            "init_param, expected one without; rename the folder"
        )
    state = read_checkpoint(path)
    teacher = {k: v.shape for k, v in state.items() if isinstance(v, torch.Tensor)}
    tokens = _read_tokens(args, token_list)
    stand_in = described.get("token_list") or ["<blank>", "<unk>", "<sos/eos>"]
    student = _build_student(config, args, task, tokens or stand_in)
    blocks = _choose_blocks(config, path, _count(student), _count(teacher), blocks)
    difference = _difference(tokens, described.get("token_list"))
    pairs, refused = _pair(student, teacher, blocks, difference)
    origins = _find_origins(pairs, student, teacher)
    taken = {k: v for k, v in origins.items() if teacher[v] == student[k]}
    # All models have counts without dimension, of batch normalisation.
    if not any(_BLOCK.match(name) and student[name] for name in taken):
        raise ValueError(
            f"{config}: no weight of the blocks has name and shape of one in {path}, "
            "expected a smaller student of the teacher's kind"
        )
    added = {"init_param": _init_param(path, pairs, taken, teacher)}
    add_options(config, added, output)
    notes = _describe(student, teacher, pairs, origins, taken, refused)
    return StudentInit(output, tuple(blocks), tuple(notes))


def _refuse_other_encoder(
    config: Path, args: argparse.Namespace, teacher: Dict[str, Any], task: str
) -> None:
    """Refuse a student whose encoder is of another kind or width than the teacher's."""
    student = vars(args)
    kinds = {str(o["encoder"]).removeprefix(_STREAMING) for o in (student, teacher)}
    if len(kinds) > 1:
        raise ValueError(
            f"{config}: got encoder {args.encoder}, expected that of the teacher, "
            f"{teacher['encoder']}, or its streaming form"
        )
    choices = import_task(task).encoder_choices
    for name in _SHARED:
        values = []
        for described in (student, teacher):
            kind = choices.get_class(described["encoder"])
            parameter = inspect.signature(kind).parameters.get(name)
            conf = described.get("encoder_conf") or {}
            if parameter is not None:
                values.append(conf.get(name, parameter.default))
        if len(values) == 2 and values[0] != values[1]:
            raise ValueError(
                f"{config}: got {name} {values[0]} in encoder_conf, expected "
                f"{values[1]} as in the teacher, on which its weights depend"
            )


def _read_tokens(
    args: argparse.Namespace, token_list: Optional[Path]
) -> Optional[List[str]]:
    """Return the tokens of the student; None if nothing says them."""
    tokens = token_list or args.token_list
    if not isinstance(tokens, (str, Path)):
        return tokens
    if not Path(tokens).is_file():
        raise FileNotFoundError(
            f"{tokens}: no such file; give the tokens of the student to --token_list "
            "(asr.sh: data/*token_list/*/tokens.txt)"
        )
    with open(tokens, encoding="utf-8") as file:
        return [line.rstrip() for line in file]


def _build_student(
    config: Path, args: argparse.Namespace, task: str, tokens: List[str]
) -> Shapes:
    """Return the shapes of the student without the plugin, as ESPnet builds it.

    Parts without weights, such as the statistics of features, are left out.
    """
    args.model = TASKS[task].models.get(args.model, args.model)
    args.model_conf = dict(args.model_conf or {})
    args.model_conf.pop("mvq_conf", None)
    args.token_list = list(tokens)
    args.normalize, args.normalize_conf = None, {}  # asr.sh gives it beside the yaml
    try:
        with torch.random.fork_rng(devices=[]):
            model = find_task(task).build_model(args)
    except Exception as error:
        raise ValueError(
            f"{config}: the student cannot be built ({type(error).__name__}: "
            f"{one_line(error)}); expected options that the installed ESPnet takes"
        ) from error
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    state = model.state_dict().items()
    return {k: value.shape for k, value in state if k.split(".")[0] in parts}


def _count(shapes: Shapes) -> int:
    """Return the number of blocks of an encoder."""
    return len({match[1] for name in shapes if (match := _BLOCK.match(name))})


def _choose_blocks(
    config: Path,
    path: Path,
    student: int,
    teacher: int,
    blocks: Optional[Sequence[int]],
) -> List[int]:
    """Return the block of the teacher for each block of the student."""
    if not student:
        raise ValueError(
            f"{config}: got an encoder without numbered blocks, expected one with "
            "blocks, such as conformer"
        )
    if student > teacher:
        raise ValueError(
            f"{config}: got num_blocks {student}, expected at most {teacher}, the "
            f"blocks in {path}"
        )
    if blocks is None:
        return [
            (2 * n * teacher + student) // (2 * student) for n in range(1, student + 1)
        ]
    expected = sorted(set(blocks) & set(range(1, teacher + 1)))
    if list(blocks) != expected or len(blocks) != student:
        raise ValueError(
            f"--blocks: got {' '.join(map(str, blocks))}, expected {student} ascending "
            f"numbers from 1 to {teacher}, one for each block of the student"
        )
    return expected


def _difference(
    tokens: Optional[List[str]], teacher_tokens: Optional[List[str]]
) -> Optional[str]:
    """Return why parts that depend on tokens are not taken; None if they are."""
    if tokens is None:
        return "the student's tokens are not known; give --token_list"
    return None if tokens == teacher_tokens else "the teacher has other tokens"


def _pair(
    student: Shapes, teacher: Shapes, blocks: Sequence[int], difference: Optional[str]
) -> Tuple[List[Tuple[str, str]], Dict[str, str]]:
    """Pair submodules of the teacher with those of the student.

    Args:
        student: Shapes of the student.
        teacher: Shapes of the teacher.
        blocks: Block of the teacher for each block of the student, counted from 1.
        difference: Why no part that depends on tokens is taken, if so.

    Returns:
        Names of submodules in teacher and student, and for parts that depend on tokens
        and are not taken, why. Those are taken whole or not at all.
    """
    pairs, refused = [], {}
    for name in dict.fromkeys(map(_submodule, student)):
        if name == "encoder.encoders":
            for number, block in enumerate(blocks):
                pairs += _renamed(f"{name}.{block - 1}", f"{name}.{number}")
        elif name.split(".")[0] in _SPEECH and name != _OF_TOKENS:
            pairs += _renamed(name, name)
        elif difference:
            refused[name] = difference
        elif _inside(student, name) != _inside(teacher, name):
            refused[name] = "the teacher has none, or one of other sizes"
        else:
            pairs.append((name, name))
    return pairs, refused


def _renamed(source: str, target: str) -> Iterator[Tuple[str, str]]:
    """Yield a pair of submodules, after those inside that may have another name."""
    for offline, streaming in _RENAMED:
        yield f"{source}.{offline}", f"{target}.{streaming}"
        yield f"{source}.{streaming}", f"{target}.{offline}"
    yield source, target


def _submodule(name: str) -> str:
    """Return the part of the model, or of its encoder, that a weight belongs to."""
    words = name.split(".")
    return ".".join(words[: 2 if words[0] == "encoder" else 1])


def _inside(shapes: Shapes, name: str) -> Shapes:
    """Return the shapes of a submodule."""
    return {k: v for k, v in shapes.items() if k.startswith(f"{name}.")}


def _find_origins(
    pairs: Sequence[Tuple[str, str]], student: Shapes, teacher: Shapes
) -> Dict[str, str]:
    """Return the names in the teacher of those of the student's weights that it has."""
    origins: Dict[str, str] = {}
    for source, target in pairs:
        for name in _inside(student, target):
            if (there := source + name[len(target) :]) in teacher:
                origins.setdefault(name, there)
    return origins


def _init_param(
    path: Path,
    pairs: Sequence[Tuple[str, str]],
    taken: Dict[str, str],
    teacher: Shapes,
) -> List[str]:
    """Return the texts of `init_param`.

    ESPnet refuses a weight that the student lacks or that has another shape, so that
    all others than the taken ones are excluded.
    """
    texts = []
    for source, target in pairs:
        own = {
            there
            for name, there in taken.items()
            if name.startswith(f"{target}.") and there == source + name[len(target) :]
        }
        if own:
            excluded = _excluded(source, teacher, own)
            texts.append(":".join([str(path), source, target, *excluded]))
    return texts


def _excluded(source: str, teacher: Shapes, kept: Set[str]) -> List[str]:
    """Return the last part of a text of `init_param`, if it needs one.

    ESPnet compares beginnings: encoder.encoders.1 is also that of encoder.encoders.10.
    Each prefix is the shortest one that no kept name has.
    """
    prefixes = {}
    for name in teacher:
        if name.startswith(source) and name not in kept:
            words = name.split(".")
            candidates = (".".join(words[:n]) for n in range(1, len(words) + 1))
            free = (c for c in candidates if not any(k.startswith(c) for k in kept))
            prefixes[next(free)] = None
    return [",".join(prefixes)] if prefixes else []


def _describe(
    student: Shapes,
    teacher: Shapes,
    pairs: Sequence[Tuple[str, str]],
    origins: Dict[str, str],
    taken: Dict[str, str],
    refused: Dict[str, str],
) -> List[str]:
    """Return sentences about what is taken, and what is not and why."""
    counts = [sum(student[k].numel() for k in names) for names in (taken, student)]
    parts = dict.fromkeys(map(_submodule, taken))
    notes = [f"taken: {counts[0]} of {counts[1]} values, in {', '.join(parts)}"]
    notes += [f"random: {name}: {reason}" for name, reason in refused.items()]
    for name, shape in student.items():
        if name in taken or _submodule(name) in refused:
            continue
        reason = "the teacher has none"
        if name in origins:
            reason = f"{tuple(shape)}, in the teacher {tuple(teacher[origins[name]])}"
        notes.append(f"random: {name}: {reason}")
    used = set(origins.values())
    for source, _ in pairs:
        left = [name for name in _inside(teacher, source) if name not in used]
        notes += [
            f"left out: {name} of the teacher: the student has none" for name in left
        ]
    # Sentences about blocks differ by their numbers alone.
    return list(dict.fromkeys(re.sub(r"(\.encoders)\.\d+", r"\1.*", n) for n in notes))
