"""Export of an experiment with `model: mvq` to plain ESPnet, and the proof of it."""

import copy
import inspect
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Type

import torch
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

from espnet_mvq.files.experiment import read_checkpoint
from espnet_mvq.frame_timing.tasks import TASKS
from espnet_mvq.plugin.data_type import LIST_NAME, LOSS_NAME, NAME
from espnet_mvq.plugin.encode_noise import PREFIX, encode_noise
from espnet_mvq.plugin.registration import find_task, register

# The original has hooks in its encoder. Torch's own transformer layers, which some
# encoders use, do not take their fused path then, and that rounds differently.
TOLERANCE = 1e-6  # of the largest value
_DATA = ("train_data_path_and_name_and_type", "valid_data_path_and_name_and_type")
_WITHOUT_PLUGIN = """
import runpy, sys
sys.modules["espnet_mvq"] = None  # from now on, importing it fails
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def plain_config(config: Dict[str, Any], task: str, output_dir: str) -> Dict[str, Any]:
    """Remove the plugin from the options of a training.

    Args:
        config: Content of `config.yaml`; it is not changed.
        task: Name of the task.
        output_dir: Folder of the new experiment, for the option of this name.

    Returns:
        The options of a training of the plugin's base model, else unchanged.

    Raises:
        ValueError: If the model is none of the plugin's in this task.
    """
    models = TASKS[task].models
    if models and not TASKS[task].uses_mvq(config):
        raise ValueError(
            f"got model: {config.get('model')}, expected {' or '.join(models)}; an "
            "experiment that was not trained with espnet_mvq needs no export"
        )
    if not TASKS[task].uses_mvq(config):
        raise ValueError(
            f"got no mvq_conf in model_conf, which experiments of the task {task} with "
            "espnet_mvq have; others need no export"
        )
    config = copy.deepcopy(config)
    if models:
        config["model"] = models[config["model"]]
    config["output_dir"] = output_dir
    (config.get("model_conf") or {}).pop("mvq_conf", None)
    data_names = set()
    for part in _DATA:
        if config.get(part):
            config[part] = [
                entry
                for entry in config[part]
                if entry[2] not in (NAME, LOSS_NAME, LIST_NAME)
            ]
            data_names.update(name for _, name, _ in config[part])
    # ESPnet needs allow_variable_data_keys for data that its task does not know, such
    # as ours. Without any, its default comes back, which reports misspelt names.
    if config.get("allow_variable_data_keys"):
        task_class = find_task(task)
        known = {
            *task_class.required_data_names(train=True, inference=False),
            *task_class.optional_data_names(train=True, inference=False),
        }
        config["allow_variable_data_keys"] = not data_names <= known
    return config


def write_config(config: Dict[str, Any], path: Path) -> None:
    """Write `config.yaml` as ESPnet's trainings do."""
    with path.open("w", encoding="utf-8") as file:
        yaml_no_alias_safe_dump(config, file, indent=4, sort_keys=False)


def read_state(path: Path) -> Dict[str, torch.Tensor]:
    """Read the weights of a model, without running code that a pickle may contain.

    Raises:
        ValueError: If the file is damaged or holds other objects than weights.
    """
    state = read_checkpoint(path)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path}: {name!r} is a {type(value).__name__}, expected weights "
                "alone, as in ESPnet's 1epoch.pth; name the checkpoints to export with "
                "--checkpoints"
            )
    return state


def strip_checkpoint(source: Path, target: Path) -> Dict[str, int]:
    """Write a checkpoint without the plugin's weights, all others bit for bit.

    Args:
        source: Checkpoint of an experiment with the plugin.
        target: File to write.

    Returns:
        Number of weights `kept` and `removed`.

    Raises:
        ValueError: If the source is damaged or no checkpoint, or the file does not
            read back as written.
    """
    state = read_state(source)
    removed = [name for name in state if name.startswith(PREFIX)]
    for name in removed:
        del state[name]
    # Torch's versions of the modules, beside the weights
    versions = getattr(state, "_metadata", {})
    for name in [name for name in versions if f"{name}.".startswith(PREFIX)]:
        del versions[name]
    torch.save(state, target)
    written = read_state(target)
    if list(written) != list(state):
        raise ValueError(f"{target}: read back, it has other weights than written")
    for name, value in state.items():
        if not _same_bits(written[name], value):
            raise ValueError(f"{target}: {name} does not read back as written")
    return {"kept": len(state), "removed": len(removed)}


def verify(
    task: str, original: Path, exported: Path, checkpoints: List[str]
) -> Dict[str, str]:
    """Check that stock ESPnet gets the student of each checkpoint, without espnet_mvq.

    Args:
        task: Name of the task.
        original: Folder of the experiment with the plugin.
        exported: Folder of the experiment without.
        checkpoints: Files in both.

    Returns:
        By checkpoint, how closely the outputs of `encode()` agree, in words.

    Raises:
        ValueError: If a model cannot be built, a checkpoint does not fit it (all its
            weights must be there, and no others), or the outputs differ.
    """
    register()
    task_class = find_task(task)
    expected = encode_noise(
        task_class, original / "config.yaml", [original / name for name in checkpoints]
    )
    actual = _encode_noise_without_plugin(
        task_class, exported / "config.yaml", [exported / name for name in checkpoints]
    )
    return {
        name: _compare(exported / name, *outputs)
        for name, *outputs in zip(checkpoints, actual, expected)
    }


def _encode_noise_without_plugin(
    task: Type, config: Path, checkpoints: List[Path]
) -> List[List[torch.Tensor]]:
    """Run `encode_noise` in a new process that cannot import espnet_mvq."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output.pt")
        script = inspect.getfile(encode_noise)
        words = [sys.executable, "-c", _WITHOUT_PLUGIN, script, output]
        # The same number of threads as in this process: torch's sums depend on it
        words += [torch.get_num_threads(), task.__module__, task.__name__]
        done = subprocess.run(
            [str(word) for word in (*words, config, *checkpoints)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode == 0:
            return torch.load(output, weights_only=True)
    logging.debug(done.stderr)
    lines = done.stderr.strip().splitlines() or ["no message"]
    errors = [line for line in lines if "Error: " in line]
    raise ValueError(
        "stock ESPnet, without espnet_mvq, could not use the export (exit code "
        f"{done.returncode}): {(errors or lines)[-1]}"
    )


def _compare(
    path: Path, actual: List[torch.Tensor], expected: List[torch.Tensor]
) -> str:
    """Describe how closely two outputs of `encode()` agree.

    Raises:
        ValueError: If they differ by more than `TOLERANCE`.
    """
    shapes = [[tuple(x.shape) for x in outputs] for outputs in (actual, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{path}: encode() of stock ESPnet returns shapes {shapes[0]}, expected "
            f"{shapes[1]} as the original"
        )
    if all(_same_bits(x, y) for x, y in zip(actual, expected)):
        return "equal bit for bit"
    worst = 0.0
    for x, y in zip(actual, expected):
        x, y = x.double(), y.double()
        difference = float((x - y).abs().max() / y.abs().max().clamp(min=1e-30))
        if not difference <= TOLERANCE:  # NaN too
            raise ValueError(
                f"{path}: encode() of stock ESPnet differs from the original's by "
                f"{difference:.2g} of the largest value, expected at most "
                f"{TOLERANCE:g}; please report this"
            )
        worst = max(worst, difference)
    return f"equal to {worst:.1g} of the largest value"


def _same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two tensors are the same, NaN and the sign of 0 included."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    x, y = (value.contiguous().reshape(-1).view(torch.uint8) for value in (x, y))
    return torch.equal(x, y)
