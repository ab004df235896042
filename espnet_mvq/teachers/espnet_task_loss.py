"""Task loss of ESPnet models."""

import argparse
import contextlib
import importlib
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch

from espnet_mvq.files.whole_file import file_sha256
from espnet_mvq.teachers.espnet_folder import (
    BUILD_FAILURE,
    fill,
    find_checkpoint,
    read_config,
    read_state,
    sample_rate_hz,
    stand_in_statistics,
)
from espnet_mvq.teachers.model_id import espnet_settings, weights_hash
from espnet_mvq.teachers.speech_model import TeacherError, loading
from espnet_mvq.teachers.task_loss import TaskLoss, TextError

# ESPnet's tasks whose models give a loss for speech and text alone
TASKS = {
    "asr": ("espnet2.tasks.asr", "ASRTask"),
    "slu": ("espnet2.tasks.slu", "SLUTask"),
}
# Supported models, and for a student of ours the stock model. Mask-CTC is not among
# them: its loss draws masks at random.
MODELS = {"espnet": "espnet", "mvq": "espnet"}
# Options that change the loss, beside those of the parts up to the encoder
_LOSS_OPTIONS = (
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
    """Training loss of an ESPnet model, as computed by its `forward`.

    CTC, attention, or both with the weights of its `model_conf`, label smoothing and
    intermediate CTC included; without the MVQ loss of a student of `model: mvq`. The
    experiment's own preprocessor makes labels of texts, as in validation. Each
    utterance runs alone.

    Differs from the training in three points, so that losses are in nats and compare
    between utterances: sums over labels even with `length_normalized_loss`; infinite,
    not zero, where no alignment exists (`zero_infinity`); no dropout in CTC, which
    ESPnet has in validation too.

    Args:
        spec: The whole name, for messages and the id.
        name: Experiment folder, with `config.yaml` and a checkpoint.
        device: Device of the model.
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
            state = {k: v for k, v in state.items() if not k.startswith("mvq.")}
        with loading(spec, f"ESPnet's task {task} cannot be imported"):
            task_class = getattr(
                importlib.import_module(TASKS[task][0]), TASKS[task][1]
            )
        args = argparse.Namespace(**_stock_config(config))
        self._model = _load_model(spec, task_class, args, state)
        self._model.to(device).eval().requires_grad_(False)
        self._preprocess = _build_preprocessor(spec, task_class, args)
        content = {
            **espnet_settings(config),
            **{n: config.get(n) for n in _LOSS_OPTIONS},
        }
        content.update(task=task, bpemodel=_hash_if_file(config.get("bpemodel")))
        weights = weights_hash(self._model.state_dict().items(), content)
        self.id = f"espnet/{folder.resolve().name}@{weights},loss"
        self.sample_rate = sample_rate_hz(f"teacher {spec}", config)

    def encode(self, text: str) -> torch.Tensor:
        """See `TaskLoss.encode`; tokens not in the token list become `<unk>`."""
        labels = torch.as_tensor(self._preprocess("", {"text": text})["text"])
        if len(labels) == 0:
            raise TextError(f"text {text!r}: contains no label, expected at least one")
        return labels

    def _losses(
        self, waveforms: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]
    ) -> List[float]:
        """See `TaskLoss._losses`."""
        return [self._loss_of_one(*pair) for pair in zip(waveforms, labels)]

    def _loss_of_one(self, waveform: torch.Tensor, labels: torch.Tensor) -> float:
        """Return the loss of an utterance (S,), labels (L,)."""
        # A copy: some front ends change their input.
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


def _stock_config(config: Dict[str, Any]) -> Dict[str, Any]:
    """Return options of the stock model, with a loss that compares utterances."""
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
    """Build a whole ESPnet model and load its weights."""
    hint = "; for a model of another task give --teacher_conf task=..."
    with contextlib.ExitStack() as stack:
        stack.enter_context(loading(spec, BUILD_FAILURE, hint))
        if getattr(args, "normalize", None) == "global_mvn":
            stats_file = stack.enter_context(stand_in_statistics(state))
            conf = args.normalize_conf or {}
            args.normalize_conf = {**conf, "stats_file": stats_file}
        model = task.build_model(args)
    fill(spec, model, state)
    return model


def _build_preprocessor(spec: str, task: Any, args: argparse.Namespace) -> Any:
    """Build the preprocessor that makes labels of texts, as in validation."""
    # ESPnet would open it at the first text only.
    if str(args.bpemodel).endswith(".model") and not Path(args.bpemodel).is_file():
        raise TeacherError(
            f"teacher {spec}: no such file {args.bpemodel}, the sentencepiece model of "
            "its tokens; run this in the recipe's folder, or give its path with "
            "--teacher_conf bpemodel=FILE"
        )
    if not args.use_preprocessor or args.token_type is None:
        raise TeacherError(
            f"teacher {spec}: it was trained on token numbers "
            "(use_preprocessor: false, or no token_type), expected an experiment that "
            "turns texts into tokens"
        )
    with loading(spec, "could not build the preprocessor of its texts"):
        preprocess = task.build_preprocess_fn(args, train=False)
        preprocess("", {"text": "a"})  # some parts are loaded at the first use
    return preprocess


def _hash_if_file(path: Optional[str]) -> str:
    """Return a hash of a file's bytes, or the name if there is no such file."""
    is_file = path is not None and Path(path).is_file()
    return file_sha256(path)[:12] if is_file else str(path)
