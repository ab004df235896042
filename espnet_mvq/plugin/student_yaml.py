"""The training configuration of an MVQ student, from that of a baseline."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from espnet_mvq.errors import one_line
from espnet_mvq.frame_timing.encoders import find_blocks
from espnet_mvq.frame_timing.tasks import TASKS, ESPnetTask
from espnet_mvq.indexes.metadata import EmbeddingMetadata, IndexMetadata
from espnet_mvq.plugin.config import CODEBOOKS, DATA_NAME, EMBEDDINGS_NAME
from espnet_mvq.plugin.data_type import NAME as DATA_TYPE
from espnet_mvq.plugin.layer_hook import LayerHook
from espnet_mvq.plugin.registration import import_task

# ESPnet's default; statistics that a model lacks are left out when it is used.
_DEFAULT_CRITERIA = [["valid", "acc", "max"], ["valid", "loss", "min"]]
_LOSS_CRITERION = ["valid", "loss", "min"]
# The student's size of the input does not change its blocks.
_NUM_FEATURES = 80


@dataclass
class StudentYaml:
    """The configuration of an MVQ student.

    Attributes:
        text: The yaml.
        layer: Student layer that it chose or was given.
        criterion: Statistic of the validation that chooses the checkpoint to decode.
        is_streaming: Whether the encoder works on chunks.
        notes: Remarks for the user.
    """

    text: str
    layer: Union[int, str]
    criterion: str
    is_streaming: bool
    notes: List[str]


def make_student_yaml(
    path: Path,
    data_dir: Optional[Path] = None,
    layer: Optional[Union[int, str]] = None,
    weight: float = 1.0,
    loss: str = CODEBOOKS,
    task: str = "asr",
) -> StudentYaml:
    """Add the MVQ loss to a training configuration of ESPnet.

    Comments and the order of the options are kept.

    Args:
        path: The baseline's yaml.
        data_dir: Data folder of the training set, with codebook indexes or embeddings.
            Default: the only one in dump/raw that has them.
        layer: Student layer, counted from 1; -1 = encoder output; or the path of a
            submodule. Default: the block at two thirds of the encoder; the encoder
            output if the encoder has no blocks, or works on chunks.
        weight: Weight of the loss.
        loss: codebooks, or an embedding loss.
        task: Task of ESPnet.

    Raises:
        ValueError: If the yaml is not that of a baseline of this task, the layer is
            not there, or the data folder has no codebook indexes (or embeddings).
        OSError: If a file cannot be read.
    """
    row = TASKS[task]
    yaml = _round_trip_yaml()
    try:
        options = yaml.load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: got no yaml ({one_line(error)})") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path}: got no options, expected those of a training")
    if row.uses_mvq(options):
        raise ValueError(
            f"{path}: got a configuration with the MVQ loss, expected that of a "
            "baseline; edit this one, or give the baseline's"
        )
    encoder_key = "encoder_conf" if task == "asr_transducer" else "encoder"
    if not options.get(encoder_key):
        raise ValueError(
            f"{path}: got no {encoder_key}, expected the training configuration of a "
            f"model of the task {task}"
        )
    name = DATA_NAME if loss == CODEBOOKS else EMBEDDINGS_NAME
    scp = (data_dir or _find_data_dir(name)) / f"{name}.scp"
    (IndexMetadata if loss == CODEBOOKS else EmbeddingMetadata).beside(str(scp))

    notes: List[str] = []
    encoder = _build_encoder(path, task, notes)
    is_streaming = bool(getattr(encoder, "hop_size", 0) and encoder.block_size)
    if layer is None:
        layer = _default_layer(encoder, is_streaming)
    elif encoder is not None:
        LayerHook(encoder, layer)  # refuses a layer that is not there
    _add_loss(options, row, {"weight": weight, "layer": layer}, loss)
    options["allow_variable_data_keys"] = True
    data = options.setdefault("train_data_path_and_name_and_type", [])
    data.append([str(scp), name, DATA_TYPE])
    criterion = _criterion(options, task, notes)

    text = io.StringIO()
    yaml.dump(options, text)
    return StudentYaml(text.getvalue(), layer, criterion, is_streaming, notes)


def _round_trip_yaml() -> YAML:
    """Return a reader and writer that keeps comments, in the style of ESPnet."""
    yaml = YAML(typ="rt")
    yaml.version = None
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=4, sequence=4, offset=0)
    return yaml


def _find_data_dir(name: str) -> Path:
    """Return the only folder in dump/raw with codebook indexes, or embeddings."""
    found = sorted(Path("dump/raw").glob(f"*/{name}.scp"))
    if len(found) != 1:
        names = ", ".join(path.parent.name for path in found) or "none"
        raise ValueError(
            f"--set: got none, and the folders in dump/raw with {name}.scp are: "
            f"{names}; expected one. Give the training set, as --set "
            "dump/raw/TRAIN_SET; mvq.sh writes its file"
        )
    return found[0].parent


def _build_encoder(
    path: Path, task: str, notes: List[str]
) -> Optional[torch.nn.Module]:
    """Build the encoder of a configuration; None, with a note, if it needs more."""
    module = import_task(task)
    if module is None:
        raise ValueError(f"--task {task}: the installed ESPnet does not have this task")
    parser = getattr(module, TASKS[task].class_name).get_parser()
    try:
        args = parser.parse_args(["--config", str(path)])
    except SystemExit as error:
        raise ValueError(
            f"{path}: ESPnet does not accept it as a configuration of the task {task}; "
            "the line above has the reason, give another --task if it is of another"
        ) from error
    try:
        if task == "asr_transducer":
            return module.Encoder(_NUM_FEATURES, **args.encoder_conf)
        return module.encoder_choices.get_class(args.encoder)(
            input_size=_NUM_FEATURES, **args.encoder_conf
        )
    except Exception as error:  # a download, a package, a bad option: ESPnet tells
        notes.append(
            f"the encoder cannot be built here ({one_line(error)}), so its blocks are "
            "not known; the default layer is -1, the encoder output"
        )
        return None


def _default_layer(encoder: Optional[torch.nn.Module], is_streaming: bool) -> int:
    """Return the block at two thirds of the encoder, -1 if there are no blocks."""
    blocks = None if encoder is None or is_streaming else find_blocks(encoder)
    return -1 if blocks is None else max(1, round(2 * len(blocks) / 3))


def _add_loss(
    options: Dict[str, Any], row: ESPnetTask, conf: Dict[str, Any], loss: str
) -> None:
    """Add `mvq_conf`, and the model's name where the task has names."""
    if loss != CODEBOOKS:
        conf = {"loss": loss, **conf}
    if not options.get("model_conf"):
        options["model_conf"] = {}
    options["model_conf"]["mvq_conf"] = conf
    if row.models:
        baseline = options.get("model", next(iter(row.models.values())))
        ours = [name for name, base in row.models.items() if base == baseline]
        if not ours:
            raise ValueError(
                f"model: got {baseline}, expected one of "
                f"{', '.join(row.models.values())}, which can learn from a teacher"
            )
        options["model"] = ours[0]


def _criterion(options: Dict[str, Any], task: str, notes: List[str]) -> str:
    """Return the statistic that chooses the checkpoint, and mend `options` if needed.

    Transducers and models with CTC alone report no accuracy.
    """
    model_conf = options["model_conf"]
    has_accuracy = (
        task not in ("asr_transducer", "s2t_ctc")
        and options.get("decoder") not in (None, "none", "transducer")
        and model_conf.get("ctc_weight", 0.5) < 1
    )
    criteria = options.get("best_model_criterion") or _DEFAULT_CRITERIA
    usable = [
        name
        for phase, name, _ in criteria
        if phase == "valid" and (has_accuracy or name != "acc")
    ]
    if not usable:
        options["best_model_criterion"] = [_LOSS_CRITERION]
        notes.append(
            "best_model_criterion is now the validation loss: got "
            f"{', '.join('.'.join(c[:2]) for c in criteria)}, which this model does "
            "not report on the validation set"
        )
        return _LOSS_CRITERION[1]
    return "acc" if "acc" in usable else usable[0]


def run_options(student: StudentYaml, task: str, output: Path) -> List[str]:
    """Return the options of ESPnet's run.sh for this student."""
    prefix = {"asr_transducer": "asr", "s2t_ctc": "s2t"}.get(task, task)
    options = [f"--{prefix}_config", str(output)]
    options += [
        f"--inference_{prefix}_model",
        f"valid.{student.criterion}.ave.pth",
    ]
    if student.is_streaming:
        options += ["--use_streaming", "true"]
    return options
