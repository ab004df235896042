"""Export of an experiment's folder to a folder of plain ESPnet."""

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from espnet_mvq import __version__
from espnet_mvq.files import experiment
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.plugin import export
from espnet_mvq.plugin.encode_noise import NOISE_SAMPLES, PREFIX

# The note in an exported folder, by which former exports are known
NOTE_NAME = "mvq_export.json"
NOTE_FORMAT = "espnet_mvq.export"
# State of a training with the plugin: optimizer, epochs
TRAINING_STATE = "checkpoint.pth"
COPIED = "RESULTS.md"


def export_experiment(
    asr_exp: Path,
    output_dir: Path,
    task: str,
    checkpoints: Optional[List[str]] = None,
    overwrite: bool = False,
) -> None:
    """Write an experiment without the plugin, and prove that stock ESPnet can use it.

    Args:
        asr_exp: Experiment folder.
        output_dir: Folder to write. A former export in it is replaced; if anything
            fails, it stays as it is.
        task: Name of ESPnet's task.
        checkpoints: Names of checkpoints in the folder; None: all.
        overwrite: Write into a folder that holds other files, too.

    Raises:
        FileNotFoundError: If config, checkpoints or feature statistics do not exist.
        ValueError: If the experiment is not one of the plugin, the output folder may
            not be written, or the proof fails; see `espnet_mvq.plugin.export`.
    """
    config = _read_config(asr_exp)
    try:
        plain = export.plain_config(config, task, str(output_dir))
    except ValueError as error:
        raise ValueError(f"{asr_exp}/config.yaml: {error}") from error
    _check_stats_file(config, asr_exp)
    files, links = _choose_checkpoints(asr_exp, checkpoints)
    _check_output_dir(output_dir, asr_exp, overwrite)
    with _building(output_dir) as folder:
        export.write_config(plain, folder / "config.yaml")
        counts = {
            name: export.strip_checkpoint(asr_exp / name, folder / name)
            for name in files
        }
        agreements = export.verify(task, asr_exp, folder, files)
        for name in files:
            _report(name, **counts[name], agreement=agreements[name])
        for name, target in links.items():
            (folder / name).symlink_to(target)
            logging.info(f"{name}: link to {target}, as in {asr_exp}")
        if (asr_exp / COPIED).is_file():
            shutil.copy2(asr_exp / COPIED, folder / COPIED)
        # asr.sh's packing needs the folder; the training's plots are not copied.
        (folder / "images").mkdir()
        _write_note(folder, asr_exp)
    logging.info(
        f"{output_dir}: {len(files) + len(links)} checkpoints for plain ESPnet"
    )


def _report(name: str, kept: int, removed: int, agreement: str) -> None:
    """Log the changes to a checkpoint, and the result of the proof."""
    if not removed:
        logging.warning(
            f"{name}: has no weights named {PREFIX}*, it was written as it is. "
            "Was it exported before, or trained without espnet_mvq?"
        )
    logging.info(
        f"{name}: {removed} weights removed, {kept} written bit for bit; ESPnet "
        "without espnet_mvq loads them strictly, and its encode() of noise of "
        f"{', '.join(map(str, NOISE_SAMPLES))} samples and the original's are "
        f"{agreement}"
    )


def _read_config(asr_exp: Path) -> Dict[str, Any]:
    """Read the experiment's `config.yaml`."""
    path = asr_exp / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected in --asr_exp the folder of a training "
            "with model: mvq (asr.sh: exp/asr_...)"
        )
    return experiment.read_config(path)


def _check_stats_file(config: Dict[str, Any], asr_exp: Path) -> None:
    """Refuse a config whose file of feature statistics does not exist."""
    stats_file = (config.get("normalize_conf") or {}).get("stats_file")
    if stats_file and not Path(stats_file).is_file():
        raise FileNotFoundError(
            f"{asr_exp}/config.yaml: normalize_conf.stats_file {stats_file}: no such "
            f"file, seen from {Path.cwd()}; run this where the training ran, or put "
            "the file there: ESPnet needs it to build the model"
        )


def _choose_checkpoints(
    asr_exp: Path, names: Optional[List[str]]
) -> Tuple[List[str], Dict[str, str]]:
    """Choose the checkpoints to export.

    Args:
        asr_exp: Experiment folder.
        names: Names of files in it; None: all that may be weights.

    Returns:
        Names of files to write, and links with the names they point to. Links to files
        that are not exported become files.
    """
    present = sorted(path.name for path in asr_exp.glob("*.pth"))
    listing = ", ".join(present) or "no *.pth"
    if names is None:
        names = []
        for name in present:
            if not (asr_exp / name).is_file():
                # ESPnet removes the epochs its older averages of one point to
                logging.warning(f"{asr_exp / name}: points to nothing, left out")
            elif name != TRAINING_STATE:
                names.append(name)
        if not names:
            raise FileNotFoundError(
                f"{asr_exp}: no checkpoints: got {listing}, expected files such as "
                "valid.acc.ave.pth; has the training finished an epoch?"
            )
    files, links = [], {}
    for name in dict.fromkeys(names):
        path = asr_exp / name
        if Path(name).name != name or name == TRAINING_STATE:
            raise ValueError(
                f"--checkpoints: got {name}, expected names of files of weights in "
                f"{asr_exp}, such as valid.acc.ave.pth ({TRAINING_STATE} is the state "
                "of a training)"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; there are {listing}")
        if path.is_symlink() and os.readlink(path) in names:
            links[name] = os.readlink(path)
        else:
            files.append(name)
    return files, links


def _check_output_dir(output_dir: Path, asr_exp: Path, overwrite: bool) -> None:
    """Refuse an output folder that holds other files than those of a former export."""
    place, source = Path(os.path.realpath(output_dir)), Path(os.path.realpath(asr_exp))
    if place == source or place in source.parents:
        raise ValueError(
            f"--output_dir {output_dir}: is or contains the experiment {asr_exp}; "
            "expected a folder of its own"
        )
    if place.exists() and not place.is_dir():
        raise ValueError(f"--output_dir {output_dir}: is a file, expected a folder")
    if place.is_dir() and any(place.iterdir()) and not (overwrite or _read_note(place)):
        raise ValueError(
            f"--output_dir {output_dir}: exists and is not a former export; give "
            "another folder, or --overwrite true to write into it (files of other "
            "names are kept)"
        )


@contextlib.contextmanager
def _building(output_dir: Path) -> Iterator[Path]:
    """Yield a new folder that becomes the output folder when the block ends.

    If the block fails, the new folder is removed and the output folder stays as it is.
    An existing output folder keeps its files, except those of a former export and those
    that have the name of a new one.
    """
    place = Path(os.path.realpath(output_dir))
    folder = place.with_name(f"{place.name}.tmp{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        yield folder
        if not place.exists():
            folder.rename(place)
            return
        new = {entry.name for entry in folder.iterdir()}
        former = set(_read_note(place).get("files", [])) - new
        for name in new:
            if (folder / name).is_dir():
                (place / name).mkdir(exist_ok=True)
            else:
                (folder / name).replace(place / name)
        for entry in list(place.iterdir()):
            if entry.name in former and not entry.is_dir():
                entry.unlink()
            elif entry.name not in new:
                logging.info(f"{output_dir}: {entry.name} is kept")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_note(folder: Path, asr_exp: Path) -> None:
    """Write the source and the files of an export into its folder."""
    names = [path.name for path in folder.iterdir() if not path.is_dir()]
    note = {
        "format": NOTE_FORMAT,
        "asr_exp": str(asr_exp),
        "espnet_mvq_version": __version__,
        "files": sorted([*names, NOTE_NAME]),
    }
    write_text(folder / NOTE_NAME, json.dumps(note, indent=2) + "\n")


def _read_note(folder: Path) -> Dict[str, Any]:
    """Read the note of a former export; empty if the folder has none."""
    try:
        note = json.loads((folder / NOTE_NAME).read_text(encoding="utf-8"))
        return note if note["format"] == NOTE_FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
