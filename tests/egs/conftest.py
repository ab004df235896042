"""Recipe scripts, which are no package: loaded by their path, or run in a copy."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load_script():
    """Return a function from a path below the repository to the loaded module."""

    def load(path: str):
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def copy_recipe(tmp_path):
    """Return a function that copies a script of mini_librispeech and what it calls.

    It takes the script's name, and name and text of the stand-in for the script that
    does the work; it returns the folder.
    """

    def copy(script: str, name: str, stand_in: str) -> Path:
        folder = tmp_path / "egs" / "mini" / "asr1"
        recipe = ROOT / "egs" / "mini_librispeech" / "asr1"
        template = ROOT / "egs" / "TEMPLATE" / "asr1"
        shutil.copytree(template, tmp_path / "egs" / "TEMPLATE" / "asr1")
        folder.mkdir(parents=True)
        shutil.copy(recipe / script, folder)
        for part in ("conf", "local"):
            shutil.copytree(recipe / part, folder / part)
        for link in ("utils", "pyscripts", "path.sh"):
            (folder / link).symlink_to(f"../../TEMPLATE/asr1/{link}")
        (folder / name).write_text(stand_in.format())
        (folder / name).chmod(0o755)
        return folder

    return copy


@pytest.fixture
def run_script():
    """Return a function that runs a script in its folder, with this test's Python."""
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    env = {
        **os.environ,
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": str(ROOT),
        "VIRTUAL_ENV": sys.prefix,  # keeps path.sh from looking for another
    }

    def run(folder: Path, script: str, *options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [f"./{script}", *options],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return run
