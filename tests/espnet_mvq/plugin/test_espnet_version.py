"""An ESPnet that is missing or too old is refused in one line."""

import re
import sys
import types

import pytest
from builders import ROOT, run_python

from espnet_mvq.plugin.espnet_version import OLDEST_TESTED, check_espnet


def put_espnet(monkeypatch, version):
    module = types.ModuleType("espnet2")
    module.__version__, module.__path__ = version, ["checkout/espnet2"]
    monkeypatch.setitem(sys.modules, "espnet2", module)


@pytest.mark.parametrize("version", ["0.10.6", "202301"])
def test_launcher_ends_with_one_line_if_espnet_is_too_old(tmp_path, version):
    package = tmp_path / "espnet2"
    package.mkdir()
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    words = "-m", "espnet_mvq.run", "-m", "espnet2.bin.asr_train", "--help"
    done = run_python(*words, cwd=tmp_path, folders=[tmp_path])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"got ESPnet {version} in {package}, expected ESPnet 2025" in done.stderr


def test_missing_espnet(monkeypatch):
    monkeypatch.setitem(sys.modules, "espnet2", None)
    with pytest.raises(ImportError, match="finds no ESPnet, expected ESPnet 202511"):
        check_espnet()


@pytest.mark.parametrize(
    "version, warns", [("202402", True), ("202509", True), ("202511", False)]
)
def test_untested_version_is_named(monkeypatch, capsys, version, warns):
    put_espnet(monkeypatch, version)
    check_espnet()
    assert (f"ESPnet {version} in checkout/espnet2" in capsys.readouterr().err) == warns


@pytest.mark.parametrize("version", ["202610.post1", "202701.dev0", "0.0.0"])
def test_newer_and_unknown_versions_pass(monkeypatch, capsys, version):
    put_espnet(monkeypatch, version)
    check_espnet()
    assert capsys.readouterr().err == ""


def test_oldest_tested_version_is_the_one_that_pip_installs():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert re.search(r'"espnet>=(\d+)"', setup)[1] == str(OLDEST_TESTED)
