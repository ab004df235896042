"""Training configurations of ESPnet: reading them, and adding options."""

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any, Dict, Tuple

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from espnet_mvq.errors import one_line
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.plugin.registration import find_task

DATA = "train_data_path_and_name_and_type"


def read_options(config: Path) -> Dict[str, Any]:
    """Return the options that a configuration gives.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no yaml with options by name.
    """
    if not config.is_file():
        raise FileNotFoundError(
            f"{config}: no such file; give the training configuration of the recipe"
        )
    try:
        options = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{config}: got no readable yaml ({one_line(error)}); expected a training "
            "configuration of ESPnet"
        ) from error
    if not isinstance(options, dict):
        raise ValueError(
            f"{config}: got no options, expected a training configuration of ESPnet"
        )
    return options


def parse_options(config: Path, task: str) -> argparse.Namespace:
    """Return the options with ESPnet's defaults, from the task's own parser.

    Raises:
        ValueError: If the task does not take the options.
    """
    parser = find_task(task).get_parser()
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return parser.parse_args(["--config", str(config)])
    except SystemExit as error:
        reason = errors.getvalue().strip().splitlines()[-1:]
        raise ValueError(
            f"{config}: got options that ESPnet's task {task} does not take "
            f"({one_line(ValueError(*reason))}); choose another task with --task"
        ) from error


def add_options(config: Path, added: Dict[str, Any], output: Path) -> Dict[str, Any]:
    """Write a configuration with more options; comments and order stay.

    Args:
        config: Training configuration; it is not changed.
        added: Options that are added or replaced; mappings and training data are
            extended.
        output: File to write.

    Returns:
        All options of the new configuration.

    Raises:
        FileExistsError: If the output exists.
        ValueError: If other options would change.
    """
    if output.exists():
        raise FileExistsError(
            f"{output}: got an existing file, expected none; remove it, or choose "
            "another one with --output"
        )
    try:
        text, options = _add(config.read_text(encoding="utf-8"), added)
    except (ValueError, YAMLError) as error:
        raise ValueError(
            f"{config}: options cannot be added ({one_line(error)}); expected each "
            "option once"
        ) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    return options


def _add(text: str, added: Dict[str, Any]) -> Tuple[str, Dict[str, Any]]:
    """Return the text of a configuration with more options, and all its options."""
    round_trip = YAML()
    round_trip.preserve_quotes = True
    round_trip.width = 2**16
    round_trip.indent(mapping=4, sequence=4, offset=0)
    document = round_trip.load(text)
    expected = yaml.safe_load(text)
    for name, value in added.items():
        old = expected.get(name)
        if isinstance(value, dict) and old:
            document[name].update(value)
            expected[name] = {**old, **value}
        elif name == DATA and old:
            document[name].extend(value)
            expected[name] = [*old, *value]
        else:
            document[name] = expected[name] = value
    stream = io.StringIO()
    round_trip.dump(document, stream)
    if yaml.safe_load(stream.getvalue()) != expected:
        # Names that occur twice, for example
        raise ValueError("others would change")
    return stream.getvalue(), expected
