"""Task losses of models in ESPnet experiments."""

import argparse
import contextlib
import hashlib
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch

from espnet_mvq.teachers.base import TeacherError, weights_hash
from espnet_mvq.teachers.espnet import (
    building,
    encoder_config,
    fill,
    sample_rate_hz,
    write_stand_in,
)
from espnet_mvq.teachers.espnet_folder import find_checkpoint, read_config, read_state
from espnet_mvq.teachers.task_loss import TaskLoss, TextError

# ESPnet's tasks whose models give a loss for speech and text alone
TASKS = {
    "asr": ("espnet2.tasks.asr", "ASRTask"),
    "slu": ("espnet2.tasks.slu", "SLUTask"),
}
# Their models, and of a student of ours the model of ESPnet below it. Mask-CTC is not
# among them: its loss draws masks at random.
MODELS = {"espnet": "espnet", "mvq": "espnet"}
_PLUGIN_WEIGHTS = "mvq."
# What of the config decides on the loss beside the parts up to the encoder
_DECISIVE = (
    "postencoder",
    "postencoder_conf",
    "decoder",
    "decoder_conf",
    "ctc_conf",
    "joint_net_conf",
    "model_conf",
    "token_list",
    "token_type",
    "cleaner",
    "g2p",
    "non_linguistic_symbols",
    "preprocessor",
    "preprocessor_conf",
    "speech_volume_normalize",
)


class ESPnetTaskLoss(TaskLoss):
    """The loss that an ESPnet model was trained with, as its `forward` gives it.

    CTC, attention, or both in the weights of its `model_conf`, label smoothing and
    intermediate CTC included; the MVQ loss of a student of `model: mvq` is not. Text
    goes through the experiment's own preprocessor, as in validation. Each utterance
    runs alone.

    Differs from the training in three points, for the loss to be one in nats that tells
    utterances apart: sums over labels even with `length_normalized_loss`; infinite,
    not zero, where no alignment exists (`zero_infinity`); no dropout in CTC, which
    ESPnet has in validation too.

    Args:
        spec: The whole name, for messages and the id.
        name: Experiment folder, with `config.yaml` and a checkpoint.
        device: Where it runs.
        checkpoint: File in the folder; default: as `ESPnetTeacher`.
        task: Task of ESPnet, one of `TASKS`.
        bpemodel: File of the sentencepiece model; default: the one the config names.

    Raises:
        TeacherError: If folder, config, checkpoint or sentencepiece model are missing,
            damaged, or of a model without such a loss.
    """

    kind = "espnet"
    label = "token of the experiment's token list"

    def __init__(
        self,
        spec: str,
        name: str,
        device: torch.device,
        checkpoint: Optional[str] = None,
        task: str = "asr",
        bpemodel: Optional[str] = None,
    ):
        self.spec = spec
        self.device = device
        folder = Path(name).expanduser()
        config = read_config(spec, folder / "config.yaml")
        model_name = config.get("model") or "espnet"
        if task not in TASKS or model_name not in MODELS:
            raise TeacherError(
                f"teacher {spec}: got model {model_name!r} in the task {task!r}, which "
                "has no loss on speech and text alone here; expected model "
                f"{' or '.join(MODELS)} in the task {' or '.join(TASKS)}"
            )
        if bpemodel is not None:
            config["bpemodel"] = bpemodel
        state = read_state(spec, find_checkpoint(spec, folder, checkpoint))
        if model_name == "mvq":
            state = {k: v for k, v in state.items() if not _is_of_plugin(k)}
        task_class = _find_task(spec, task)
        args = argparse.Namespace(**_stock_config(config))
        self._model = _load_model(spec, task_class, args, state)
        self._model.to(device).eval().requires_grad_(False)
        self._preprocess = _build_preprocessor(spec, task_class, args)
        content = {**encoder_config(config), **{n: config.get(n) for n in _DECISIVE}}
        content.update(task=task, bpemodel=_file_hash(config.get("bpemodel")))
        weights = weights_hash(self._model.state_dict().items(), content)
        self.id = f"espnet/{folder.resolve().name}@{weights},loss"
        self.sample_rate = sample_rate_hz(f"teacher {spec}", config)

    def encode(self, text: str) -> torch.Tensor:
        """See `TaskLoss.encode`; what the token list does not have is its `<unk>`."""
        labels = torch.as_tensor(self._preprocess("", {"text": text})["text"])
        if len(labels) == 0:
            raise TextError(f"text {text!r}: holds no label, expected one at least")
        return labels

    def _losses(
        self, waveforms: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> List[float]:
        """See `TaskLoss._losses`."""
        return [self._loss_of_one(*pair) for pair in zip(waveforms, labels)]

    def _loss_of_one(self, waveform: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the loss of an utterance (S,), labels (L,)."""
        # A copy: some front ends write into what they are given.
        data = self._preprocess("", {"speech": waveform.numpy().copy()})
        speech = torch.as_tensor(data["speech"], dtype=torch.float32)
        batch = {"speech": speech, "text": labels}
        lengths = {f"{k}_lengths": torch.tensor([len(v)]) for k, v in batch.items()}
        batch = {k: v.unsqueeze(0) for k, v in batch.items()}
        batch = {k: v.to(self.device) for k, v in {**batch, **lengths}.items()}
        try:
            with self._autocast():
                loss, _, _ = self._model(**batch)
        except ImportError as error:
            raise TeacherError(
                f"teacher {self.spec}: a package its loss needs cannot be imported "
                f"({error}); install it"
            ) from error
        except Exception as error:
            # ESPnet has several exceptions of this name.
            if type(error).__name__ != "TooShortUttError":
                raise
            return float("inf")
        return float(loss)


def _is_of_plugin(weight: str) -> bool:
    """Say whether a weight is of the MVQ loss."""
    return weight.startswith(_PLUGIN_WEIGHTS)


def _find_task(spec: str, task: str) -> Any:
    """Return the class of one of `TASKS`."""
    module_name, class_name = TASKS[task]
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise TeacherError(
            f"teacher {spec}: ESPnet cannot be imported ({error}); pip install espnet"
        ) from error


def _stock_config(config: Dict[str, Any]) -> Dict[str, Any]:
    """Return options of ESPnet's own model, whose loss tells utterances apart."""
    model_conf = {
        **(config.get("model_conf") or {}),
        "length_normalized_loss": False,
        "report_cer": False,
        "report_wer": False,
    }
    model_conf.pop("mvq_conf", None)
    ctc_conf = dict(config.get("ctc_conf") or {})
    ctc_conf.pop("ignore_nan_grad", None)  # the old name of zero_infinity
    ctc_conf.update(zero_infinity=False, dropout_rate=0.0)
    return {
        **config,
        "model": MODELS[config.get("model") or "espnet"],
        "model_conf": model_conf,
        "ctc_conf": ctc_conf,
        "specaug": None,
        "init": None,
    }


def _load_model(
    spec: str, task: Any, args: argparse.Namespace, state: Dict[str, torch.Tensor]
) -> torch.nn.Module:
    """Build a whole model of ESPnet and fill it."""
    hint = "; is it of another task? Say it with --teacher_conf task=..."
    with contextlib.ExitStack() as stack:
        stack.enter_context(building(spec, hint))
        if getattr(args, "normalize", None) == "global_mvn":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stats_file = write_stand_in(folder, state["normalize.mean"])
            conf = args.normalize_conf or {}
            args.normalize_conf = {**conf, "stats_file": stats_file}
        model = task.build_model(args)
    fill(spec, model, state)
    return model


def _build_preprocessor(spec: str, task: Any, args: argparse.Namespace) -> Any:
    """Build what turns texts into labels, as it is in validation."""
    # ESPnet would look for it at the first text.
    if str(args.bpemodel).endswith(".model") and not Path(args.bpemodel).is_file():
        raise TeacherError(
            f"teacher {spec}: no such file {args.bpemodel}, the sentencepiece model of "
            "its tokens; run this in the recipe's folder, or say where it is with "
            "--teacher_conf bpemodel=FILE"
        )
    if not args.use_preprocessor or args.token_type is None:
        raise TeacherError(
            f"teacher {spec}: it was trained on ready token numbers "
            "(use_preprocessor: false, or no token_type), expected an experiment that "
            "knows how to turn texts into tokens"
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):
            preprocess = task.build_preprocess_fn(args, train=False)
            preprocess("", {"text": "a"})  # some of it is loaded when first used
    except Exception as error:  # missing files, unknown cleaners and others
        raise TeacherError(
            f"teacher {spec}: could not build the preprocessor of its texts "
            f"({type(error).__name__}: {error})"
        ) from error
    return preprocess


def _file_hash(path: Optional[str]) -> str:
    """Return a hash of a file's bytes; of the name if it is no file."""
    if path is None or not Path(path).is_file():
        return str(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
