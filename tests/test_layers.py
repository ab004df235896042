"""Which modules may import which: the floors of the package, checked in its sources.

6 commands (bin, run.py, __main__.py), 5 plugin, 4 extraction, exchange and reporting,
3 teachers and indexes, 2 frame_timing, 1 quantization and distillation, 0 files (so
that the quantizer's file is written as all others are), -1 errors.py and options.py,
which use the standard library alone. Imports go downwards or stay inside one folder;
distillation is pure torch and imports only options.py.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "espnet_mvq"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LAYERS = {
    "bin": 6,
    "run": 6,
    "__main__": 6,
    "plugin": 5,
    "extraction": 4,
    "exchange": 4,
    "reporting": 4,
    "teachers": 3,
    "indexes": 3,
    "frame_timing": 2,
    "distillation": 1,
    "quantization": 1,
    "files": 0,
    "errors": -1,
    "options": -1,
}
# What these folders may import besides the standard library and the package
THIRD_PARTY = {
    "quantization": {"torch", "numpy", "numba", "safetensors", "tqdm"},
    "distillation": {"torch"},
    "frame_timing": {"torch"},
    "files": {"h5py", "kaldiio", "numpy", "torch", "yaml"},
    "errors": set(),
    "options": set(),
}


def imported_modules(source):
    """Yield the modules that a source imports, at any depth, and their lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or ""), node.lineno
            else:
                yield node.module, node.lineno
                # `from espnet_mvq import plugin` imports espnet_mvq.plugin
                for alias in node.names:
                    if node.module == "espnet_mvq" and alias.name in LAYERS:
                        yield f"espnet_mvq.{alias.name}", node.lineno


def folder_of(path):
    return path.split("/")[0].removesuffix(".py")


def is_allowed(path, module):
    """Say whether the file at a path below the package may import a module."""
    folder, top = folder_of(path), module.split(".")[0]
    if top == "":
        return False  # relative imports hide where they lead
    if top == "espnet":
        return False
    if top == "espnet2":
        return folder == "plugin" or path in (
            "teachers/espnet.py",
            "teachers/espnet_task_loss.py",
        )
    if top == "espnet_mvq":
        return is_downward(path, module)
    if folder in THIRD_PARTY and top not in sys.stdlib_module_names:
        return top in THIRD_PARTY[folder]
    return True


def is_downward(path, module):
    """Whether an import inside the package stays in its folder or goes down."""
    folder = folder_of(path)
    target = (module.split(".") + ["__init__"])[1]
    if folder == "__init__":
        # `register()` and `mvq_conf()` are the doors from the top
        return module.startswith("espnet_mvq.plugin.")
    if target in ("__init__", folder):
        return True  # the version; a sibling
    if folder == "distillation":
        return target == "options"
    return LAYERS[target] < LAYERS[folder]


def violations(path, source):
    """List the imports of a source that its layer does not allow."""
    return [
        f"espnet_mvq/{path}:{line} imports {module}"
        for module, line in imported_modules(source)
        if not is_allowed(path, module)
    ]


@pytest.mark.parametrize("path", FILES)
def test_imports_go_down(path):
    assert violations(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "path, source",
    [
        ("quantization/a.py", "from espnet_mvq.distillation import losses"),
        ("quantization/a.py", "def f():\n    import yaml"),
        ("distillation/a.py", "import espnet_mvq.teachers.base"),
        ("distillation/a.py", "import numpy"),
        ("distillation/a.py", "import safetensors.torch"),
        ("distillation/a.py", "from espnet_mvq.quantization import Quantizer"),
        ("distillation/a.py", "from espnet_mvq.files.scp import read_scp"),
        ("files/a.py", "from espnet_mvq.quantization import Quantizer"),
        ("options.py", "from espnet_mvq.files.scp import read_scp"),
        ("options.py", "import torch"),
        ("teachers/a.py", "from espnet_mvq.indexes import reader"),
        ("exchange/a.py", "from espnet_mvq.extraction import read_ahead"),
        ("reporting/a.py", "from espnet_mvq.exchange import lhotse"),
        ("teachers/a.py", "import espnet2"),
        ("indexes/a.py", "from espnet_mvq import plugin"),
        ("plugin/a.py", "from espnet_mvq.bin.options import command"),
        ("plugin/a.py", "from espnet.utils.cli_utils import strtobool"),
        ("bin/a.py", "if True:\n    from espnet2.tasks.asr import ASRTask"),
        ("bin/a.py", "from . import options"),
        ("run.py", "import espnet2.bin.asr_train"),
        ("__init__.py", "from espnet_mvq.quantization import Quantizer"),
    ],
)
def test_checker_catches(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("quantization/a.py", "import math, torch, numpy as np, safetensors"),
        ("quantization/a.py", "from espnet_mvq.quantization.search import refine"),
        ("frame_timing/a.py", "from espnet_mvq.distillation import FrameGrid"),
        ("distillation/a.py", "from espnet_mvq.options import check_options"),
        ("teachers/espnet.py", "from espnet2.tasks.asr import ASRTask"),
        ("plugin/a.py", "import espnet2\nfrom espnet_mvq.indexes import reader"),
        ("bin/a.py", "from espnet_mvq import __version__, plugin"),
    ],
)
def test_checker_lets_pass(path, source):
    assert violations(path, source) == []


def test_every_folder_has_a_layer():
    assert {folder_of(path) for path in FILES} <= {*LAYERS, "__init__"}


@pytest.mark.parametrize("path", FILES)
def test_module_has_a_docstring(path):
    source = (PACKAGE / path).read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), f"{path} has no docstring"


@pytest.mark.parametrize(
    "module",
    [
        "espnet_mvq",
        "espnet_mvq.run",
        "espnet_mvq.bin.run_jobs",
        "espnet_mvq.bin.watch_training",
    ],
)
def test_import_is_light(module):
    """These start with every job, training and command line."""
    heavy = "{'torch', 'numpy', 'espnet2', 'transformers', 's3prl'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
