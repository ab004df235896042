"""ESPnet experiment folders: reading config and checkpoint, building models of them."""

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import numpy as np
import torch

from espnet_mvq.files import experiment
from espnet_mvq.teachers.speech_model import TeacherError

# In order of preference; asr.sh decodes with the first one.
CHECKPOINTS = (
    "valid.acc.ave.pth",
    "valid.cer_ctc.ave.pth",
    "valid.loss.ave.pth",
    "valid.acc.best.pth",
    "valid.cer_ctc.best.pth",
    "valid.loss.best.pth",
    "latest.pth",
)
BUILD_FAILURE = "could not build it from config.yaml"
_MAPPINGS = (
    "frontend_conf",
    "normalize_conf",
    "preencoder_conf",
    "encoder_conf",
    "ctc_conf",
    "model_conf",
)


def read_config(spec: str, path: Path) -> Dict[str, Any]:
    """Read `config.yaml` of a model that reads speech."""
    if not path.is_file():
        raise TeacherError(
            f"teacher {spec}: no such file {path}; expected an ESPnet experiment "
            "folder, with config.yaml and a checkpoint"
        )
    try:
        config = experiment.read_config(path)
    except ValueError as error:
        raise TeacherError(f"teacher {spec}: {error}") from error
    problem = _find_problem(config)
    if problem:
        raise TeacherError(f"teacher {spec}: {path} {problem}")
    return config


def _find_problem(config: Dict[str, Any]) -> Optional[str]:
    """Return why a config is not that of a supported model, else None."""
    if not config.get("encoder"):
        return "names no encoder; expected the config of an ASR, SSL or HuBERT model"
    for name in _MAPPINGS:
        if not isinstance(config.get(name) or {}, dict):
            return f"has {name}: {config[name]!r}, expected options by name"
    if config.get("input_size") not in (None, 1):
        return (
            f"is of a model that reads features of {config['input_size']} dimensions "
            "(feats_type extracted), expected a model that reads speech"
        )
    if config.get("use_adapter"):
        return (
            "is of a model that has adapters (use_adapter), which are not supported; "
            "merge them into the weights first"
        )
    return None


def find_checkpoint(
    spec: str,
    folder: Path,
    name: Optional[str],
    option: str = "--teacher_conf checkpoint=FILE",
) -> Path:
    """Return the checkpoint of a name, or the preferred one, in a folder.

    The option is the one that names a checkpoint, for the message.
    """
    names = sorted(path.name for path in folder.glob("*.pth"))
    if name is None:
        chosen = [known for known in CHECKPOINTS if known in names]
        if not chosen and len(names) == 1:
            chosen = names
        if chosen:
            logging.info(f"teacher {spec}: checkpoint {chosen[0]}")
            return folder / chosen[0]
    elif (folder / name).is_file():
        return folder / name
    raise TeacherError(
        f"teacher {spec}: got no {name or ' or '.join(CHECKPOINTS)} in {folder}, which "
        f"has {', '.join(names) or 'no .pth file'}; name one with {option}"
    )


def read_state(spec: str, path: Path) -> Dict[str, torch.Tensor]:
    """Read a state dict; code in its pickle is not run."""
    try:
        state = experiment.read_checkpoint(path)
    except ValueError as error:
        raise TeacherError(
            f"teacher {spec}: {error} with --teacher_conf checkpoint=FILE"
        ) from error
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}


def sample_rate_hz(whose: str, config: Dict[str, Any]) -> int:
    """Return the sample rate of the front end in Hz, given as 16000 or "16k"."""
    fs = str((config.get("frontend_conf") or {}).get("fs") or 16_000)  # as ESPnet's
    try:
        return int(float(fs[:-1]) * 1000 if fs.endswith("k") else float(fs))
    except ValueError:
        raise TeacherError(f"{whose}: frontend_conf fs: got {fs!r}, not Hz") from None


def fill(spec: str, module: torch.nn.Module, state: Dict[str, torch.Tensor]) -> None:
    """Load weights into a module; names and shapes must agree.

    Args:
        spec: The whole name of the teacher, for messages.
        module: Module built from the config.
        state: Weights of the checkpoint, by name.

    Raises:
        TeacherError: If names or shapes differ.
    """
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or extra or wrong:
        raise TeacherError(
            f"teacher {spec}: checkpoint and config.yaml are of different models: "
            f"{len(missing)} weights are missing, {len(extra)} too many, {len(wrong)} "
            f"of another shape, first {(missing + extra + wrong)[0]}"
        )
    module.load_state_dict(state)


@contextlib.contextmanager
def stand_in_statistics(state: Dict[str, torch.Tensor]) -> Iterator[str]:
    """Context with a file of statistics from which ESPnet can build its GlobalMVN.

    The values are loaded from the checkpoint later: a copied experiment folder comes
    without the file that its config names.
    """
    zeros = np.zeros_like(state["normalize.mean"].numpy())
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "stats.npz"))
        np.savez(path, count=1, sum=zeros, sum_square=zeros + 1)
        yield path
