"""Copies of recipes in which a test runs a script."""

import shutil
from functools import partial
from pathlib import Path

import pytest
from builders import ROOT
from corpus_builders import NOTING, end_with_error


@pytest.fixture
def ends_with_error(caplog):
    """Return `end_with_error` with the log of the test."""
    return partial(end_with_error, caplog)


@pytest.fixture
def copy_recipe(tmp_path):
    """Return a function that copies a script of mini_librispeech and its helpers.

    It takes the script's name, the name of the script that does the work, which a
    stand-in replaces, and what the stand-in does besides noting its options; it returns
    the folder.
    """

    def copy(script: str, name: str, stand_in: str = "") -> Path:
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
        (folder / name).write_text(NOTING + stand_in)
        (folder / name).chmod(0o755)
        return folder

    return copy
