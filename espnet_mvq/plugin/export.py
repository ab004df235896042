"""Making a plain ESPnet experiment of one trained with `model: mvq`, and proving it.

Only functions import espnet_mvq here, not the module itself: for the proof this very
file runs in a process in which espnet_mvq cannot be imported.
"""

import copy
import importlib
import inspect
import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Type

import torch
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

# ESPnet's tasks that have models of the plugin, by their module below espnet2.tasks:
# the task's class, and for each model of the plugin the model of ESPnet below it. A
# task without a choice of models has `mvq_conf` in its options instead. The config does
# not say of which task it is.
TASKS = {
    "asr": ("ASRTask", {"mvq": "espnet", "mvq_maskctc": "maskctc"}),
    "slu": ("SLUTask", {"mvq": "espnet"}),
    "s2t": ("S2TTask", {"mvq": "espnet"}),
    "s2t_ctc": ("S2TTask", {"mvq": "espnet_ctc"}),
    "asr_transducer": ("ASRTransducerTask", {}),
    "st": ("STTask", {}),
}
PREFIX = "mvq."  # of all weights of the plugin
NOISE_SAMPLES = (24_000, 20_000, 12_000)
# The original has hooks in its encoder. Torch's own transformer layers, which some
# encoders use, do not take their fused path then, and that rounds differently.
TOLERANCE = 1e-6  # of the largest value
_DATA = ("train_data_path_and_name_and_type", "valid_data_path_and_name_and_type")
_WITHOUT_PLUGIN = """
import runpy, sys
sys.modules["espnet_mvq"] = None  # from here on, importing it fails
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def find_task(name: str) -> Type:
    """Return the class of one of ESPnet's tasks."""
    try:
        module = importlib.import_module(f"espnet2.tasks.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"espnet2.tasks.{name}":
            raise
        raise ValueError(f"the installed ESPnet has no task {name}") from error
    return getattr(module, TASKS[name][0])


def plain_config(config: Dict[str, Any], task: str, output_dir: str) -> Dict[str, Any]:
    """Take the plugin out of the options of a training.

    Args:
        config: Content of `config.yaml`; it is not changed.
        task: Name of the task.
        output_dir: Folder of the new experiment, for the option of this name.

    Returns:
        The options of a training of the plugin's base model, else unchanged.

    Raises:
        ValueError: If the model is none of the plugin's in this task.
    """
    from espnet_mvq.plugin.data_type import LIST_NAME, LOSS_NAME, NAME

    models, model = TASKS[task][1], config.get("model")
    if models and model not in models:
        raise ValueError(
            f"got model: {model}, expected {' or '.join(models)}; an experiment that "
            "was not trained with espnet_mvq needs no export"
        )
    if not models and "mvq_conf" not in (config.get("model_conf") or {}):
        raise ValueError(
            f"got no mvq_conf in model_conf, which experiments of the task {task} with "
            "espnet_mvq have; others need no export"
        )
    config = copy.deepcopy(config)
    if models:
        config["model"] = models[model]
    config["output_dir"] = output_dir
    (config.get("model_conf") or {}).pop("mvq_conf", None)
    left, ours = set(), (NAME, LOSS_NAME, LIST_NAME)
    for part in _DATA:
        if config.get(part):
            config[part] = [entry for entry in config[part] if entry[2] not in ours]
            left.update(name for _, name, _ in config[part])
    # Without allow_variable_data_keys ESPnet refuses data that its task does not know,
    # as codebook indexes. Where they were all of that kind, its default comes back, so
    # that it again catches misspelt names; where the user has added others, a training
    # from this config still needs the option.
    if config.get("allow_variable_data_keys"):
        task_class = find_task(task)
        known = {
            *task_class.required_data_names(train=True, inference=False),
            *task_class.optional_data_names(train=True, inference=False),
        }
        config["allow_variable_data_keys"] = not left <= known
    return config


def write_config(config: Dict[str, Any], path: Path) -> None:
    """Write `config.yaml` as ESPnet's trainings do."""
    with path.open("w", encoding="utf-8") as file:
        yaml_no_alias_safe_dump(config, file, indent=4, sort_keys=False)


def read_state(path: Path) -> Dict[str, torch.Tensor]:
    """Read the weights of a model, without running code that a pickle may bring.

    Raises:
        ValueError: If the file is damaged or holds something else than weights.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # pickle's, zip's and torch's, by kind of damage
        raise ValueError(
            f"{path}: damaged, or holds other objects than weights, which are not "
            f"loaded because they could run code ({type(error).__name__}); copy it "
            "again, or name the checkpoints to export with --checkpoints"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path}: got a {type(state).__name__}, expected weights by name, as "
            "ESPnet's trainings write"
        )
    others = [k for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if others:
        raise ValueError(
            f"{path}: {others[0]!r} is a {type(state[others[0]]).__name__}, expected "
            "weights alone, as in ESPnet's 1epoch.pth; name the checkpoints to export "
            "with --checkpoints"
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
        ValueError: If the source is damaged or no checkpoint, or what was written does
            not read as it should.
    """
    state = read_state(source)
    total = len(state)
    for name in [name for name in state if name.startswith(PREFIX)]:
        del state[name]
    # Torch's versions of the modules, beside the weights
    versions = getattr(state, "_metadata", {})
    for name in [name for name in versions if f"{name}.".startswith(PREFIX)]:
        del versions[name]
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        torch.save(state, temporary)
        written = read_state(temporary)
        if list(written) != list(state):
            raise ValueError(f"{target}: read back, it has other weights than written")
        for name, value in state.items():
            if not _same_bits(written[name], value):
                raise ValueError(f"{target}: {name} does not read back as written")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return {"kept": len(state), "removed": total - len(state)}


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
        How well the outputs of `encode()` agree, in words, by checkpoint.

    Raises:
        ValueError: If a model cannot be built, a checkpoint does not fit it (all its
            weights must be there, and no others), or the outputs differ.
    """
    from espnet_mvq import register

    register()
    config = "config.yaml"
    expected = encode_noise(
        task, original / config, [original / name for name in checkpoints]
    )
    found = _encode_noise_without_plugin(
        task, exported / config, [exported / name for name in checkpoints]
    )
    return {
        name: _compare(exported / name, *outputs)
        for name, *outputs in zip(checkpoints, found, expected)
    }


def encode_noise(
    task: str, config: Path, checkpoints: List[Path]
) -> List[List[torch.Tensor]]:
    """Build a model, and encode the same noise with the weights of each checkpoint.

    Args:
        task: Name of the task.
        config: Its `config.yaml`.
        checkpoints: Its checkpoints. They must hold the model's weights, all and no
            others. If the model has the plugin, its weights are not looked at: they
            may be of another version of espnet_mvq, and encoding does not use them.

    Returns:
        For each checkpoint what `encode()` returns: embeddings (B, T, C), lengths (B,)
        and what the encoder may add to them.

    Raises:
        ValueError: If the model cannot be built or a checkpoint does not fit it.
    """
    task_class, outputs = find_task(task), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model, options = task_class.build_model_from_file(config, None, "cpu")
        except Exception as error:  # whatever the options make ESPnet raise
            raise ValueError(
                f"{config}: the task {task} could not build the model "
                f"({type(error).__name__}: {_one_line(error)}); is it of another "
                "--task, or does it need files that are not there?"
            ) from error
        model.eval()
        input_size = getattr(options, "input_size", None)
        plugin = {k: v for k, v in model.state_dict().items() if k.startswith(PREFIX)}
        for path in checkpoints:
            state = read_state(path)
            if plugin:
                state = {k: v for k, v in state.items() if not k.startswith(PREFIX)}
                state.update(plugin)
            try:
                model.load_state_dict(state, strict=True)
            except RuntimeError as error:
                raise ValueError(
                    f"{path}: does not fit the model of {config} ({_one_line(error)}); "
                    "expected the weights of this experiment, all of them"
                ) from error
            torch.manual_seed(0)
            inputs = _noise(model, input_size)
            try:
                with torch.no_grad():
                    outputs.append(_tensors_in(model.encode(**inputs)))
            except Exception as error:  # of a model with input of its own
                raise ValueError(
                    f"{config}: encode() of the model does not run on noise "
                    f"({type(error).__name__}: {_one_line(error)}); please report this"
                ) from error
    return outputs


def _noise(model: torch.nn.Module, input_size: Any) -> Dict[str, torch.Tensor]:
    """Make input for `encode()`: noise, and two tokens wherever it wants texts.

    Args:
        model: Model of ESPnet.
        input_size: Dimension of its features; None or 1: it takes waveforms.

    Returns:
        Speech (B, S) or features (B, T, input_size), lengths (B,), texts (B, 2).
    """
    lengths = torch.tensor(NOISE_SAMPLES)
    shape = [len(lengths), max(NOISE_SAMPLES)]
    if input_size not in (None, 1):
        lengths = lengths // 160  # 10 ms of 16 kHz
        shape = [len(lengths), int(lengths.max()), input_size]
    noise = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for row, length in zip(noise, lengths):
        row[length:] = 0
    inputs = {"speech": noise, "speech_lengths": lengths}
    for name, parameter in inspect.signature(model.encode).parameters.items():
        if name not in inputs and parameter.default is inspect.Parameter.empty:
            is_length = name.endswith("_lengths")
            value = 2 if is_length else [1, 2]  # ids that any token list has
            inputs[name] = torch.tensor([value] * len(lengths))
    return inputs


def _encode_noise_without_plugin(
    task: str, config: Path, checkpoints: List[Path]
) -> List[List[torch.Tensor]]:
    """Do as `encode_noise` in a new process that cannot import espnet_mvq."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "outputs.pt")
        # As many threads as here: torch's sums depend on their number
        words = [__file__, outputs, torch.get_num_threads(), task, config, *checkpoints]
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_PLUGIN, *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode == 0:
            return torch.load(outputs, weights_only=True)
    logging.debug(done.stderr)
    lines = done.stderr.strip().splitlines() or ["no message"]
    errors = [line for line in lines if "Error: " in line]
    raise ValueError(
        "stock ESPnet, without espnet_mvq, could not use the export (exit code "
        f"{done.returncode}): {(errors or lines)[-1]}"
    )


def _run_without_plugin(argv: List[str]) -> None:
    """Do what `_encode_noise_without_plugin` wants of its process."""
    outputs, num_threads, task, config, *checkpoints = argv
    torch.set_num_threads(int(num_threads))
    paths = [Path(path) for path in checkpoints]
    torch.save(encode_noise(task, Path(config), paths), outputs)


def _compare(
    path: Path, found: List[torch.Tensor], expected: List[torch.Tensor]
) -> str:
    """Say how well two outputs of `encode()` agree; refuse if they do not."""
    if [x.shape for x in found] != [x.shape for x in expected]:
        raise ValueError(
            f"{path}: encode() of stock ESPnet returns shapes "
            f"{[tuple(x.shape) for x in found]}, expected "
            f"{[tuple(x.shape) for x in expected]} as the original"
        )
    if all(_same_bits(x, y) for x, y in zip(found, expected)):
        return "equal bit for bit"
    worst = 0.0
    for x, y in zip(found, expected):
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
    """Say whether two tensors are the same, NaN and the sign of 0 included."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    x, y = (value.contiguous().reshape(-1).view(torch.uint8) for value in (x, y))
    return torch.equal(x, y)


def _tensors_in(output: Any) -> List[torch.Tensor]:
    """List the tensors of a nested output."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in _tensors_in(part)]
    return []


def _one_line(error: Exception) -> str:
    """Return an error's message as one line of bearable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


if __name__ == "__main__":
    # By runpy: the first argument is this file.
    _run_without_plugin(sys.argv[2:])
