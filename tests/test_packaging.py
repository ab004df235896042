"""What a release consists of: files of the wheel, and one version."""

import re
import runpy
from pathlib import Path

import setuptools

from espnet_mvq import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "espnet_mvq"


def read_setup(monkeypatch):
    """Return the arguments that setup.py gives to setuptools."""
    arguments = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: arguments.update(kwargs))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return arguments


def test_wheel_has_every_file_of_the_package(monkeypatch):
    arguments = read_setup(monkeypatch)
    packed = set()
    for package in arguments["packages"]:
        packed.update(ROOT.joinpath(*package.split(".")).glob("*.py"))
    for package, patterns in arguments["package_data"].items():
        for pattern in patterns:
            packed.update(ROOT.joinpath(*package.split(".")).glob(pattern))
    files = {path for path in PACKAGE.rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts}
    assert sorted(map(str, files - packed)) == []


def test_versions_agree(monkeypatch):
    assert read_setup(monkeypatch)["version"] == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(r"^## (\S+) \((.+)\)$", changelog, re.MULTILINE)
    version, date = heading.groups()
    expected = f"{version}.dev0" if date == "unreleased" else version
    assert __version__ == expected, f"CHANGELOG.md: {heading[0]}"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert not re.search("^(version|date-released):", citation, re.MULTILINE)
