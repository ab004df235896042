"""Encoding noise with checkpoints of an ESPnet model: a script without the plugin.

`export.py` runs this file in a process in which espnet_mvq cannot be imported, so it
must not import espnet_mvq.
"""

import contextlib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Type

import torch

PREFIX = "mvq."  # of all weights of the plugin
NOISE_SAMPLES = (24_000, 20_000, 12_000)


def encode_noise(
    task: Type, config: Path, checkpoints: List[Path]
) -> List[List[torch.Tensor]]:
    """Build a model, and encode the same noise with the weights of each checkpoint.

    Args:
        task: Class of ESPnet's task.
        config: `config.yaml` of the model.
        checkpoints: Its checkpoints. Each must hold all weights of the model and no
            others. If the model has the plugin, the plugin's weights are ignored: they
            may be of another version of espnet_mvq, and `encode()` does not use them.

    Returns:
        For each checkpoint the tensors that `encode()` returns: embeddings (B, T, C),
        lengths (B,) and those that some encoders add.

    Raises:
        ValueError: If the model cannot be built or a checkpoint does not fit it.
    """
    name, outputs = task.__module__.rpartition(".")[2], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with _explained(
            f"{config}: the task {name} could not build the model",
            "is it of another --task, or does it need files that are not there?",
        ):
            model, options = task.build_model_from_file(config, None, "cpu")
        model.eval()
        plugin = {k: v for k, v in model.state_dict().items() if k.startswith(PREFIX)}
        for path in checkpoints:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if plugin:
                state = {k: v for k, v in state.items() if not k.startswith(PREFIX)}
                state.update(plugin)
            with _explained(
                f"{path}: does not fit the model of {config}",
                "expected the weights of this experiment, all of them",
            ):
                model.load_state_dict(state, strict=True)
            torch.manual_seed(0)
            inputs = _noise(model, getattr(options, "input_size", None))
            with (
                torch.no_grad(),
                _explained(
                    f"{config}: encode() of the model does not run on noise",
                    "please report this",
                ),
            ):
                outputs.append(_tensors_in(model.encode(**inputs)))
    return outputs


@contextlib.contextmanager
def _explained(problem: str, advice: str) -> Iterator[None]:
    """Turn any error of ESPnet or torch into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        # As errors.one_line, which cannot be imported by this file
        text = " ".join(str(error).split())
        text = text if len(text) <= 300 else f"{text[:300]} ..."
        raise ValueError(
            f"{problem} ({type(error).__name__}: {text}); {advice}"
        ) from error


def _noise(model: torch.nn.Module, input_size: Any) -> Dict[str, torch.Tensor]:
    """Make input for `encode()`: noise, and two tokens for each text it requires.

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


def _tensors_in(output: Any) -> List[torch.Tensor]:
    """List the tensors of a nested output."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in _tensors_in(part)]
    return []


def _main(
    output: str, num_threads: str, module: str, name: str, config: str, *paths: str
) -> None:
    """Encode noise with the paths' checkpoints, and save the outputs to a file."""
    torch.set_num_threads(int(num_threads))
    task = getattr(importlib.import_module(module), name)
    torch.save(encode_noise(task, Path(config), [Path(p) for p in paths]), output)


if __name__ == "__main__":
    _main(*sys.argv[1:])
