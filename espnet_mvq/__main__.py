"""`python3 -m espnet_mvq`: version, commands and the paths of the scripts."""

import argparse
import ast
import os
import sys
from pathlib import Path

from espnet_mvq import __version__

_PACKAGE = Path(__file__).resolve().parent
MVQ_SH = _PACKAGE / "scripts" / "mvq.sh"
RUN_MVQ_SH = MVQ_SH.with_name("run_mvq.sh")


def main(cmd=None) -> None:
    """Print version, commands and paths.

    Args:
        cmd: Arguments of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_mvq",
        description="Print the version of espnet_mvq, its commands and the paths of "
        "its scripts.",
    )
    parser.add_argument(
        "--mvq_sh", action="store_true", help="print the path of mvq.sh alone"
    )
    parser.add_argument(
        "--run_mvq_sh", action="store_true", help="print the path of run_mvq.sh alone"
    )
    args = parser.parse_args(cmd)
    if args.mvq_sh or args.run_mvq_sh:
        print(MVQ_SH if args.mvq_sh else RUN_MVQ_SH)
        return
    print(f"espnet_mvq {__version__}\n")
    print(f"{MVQ_SH}\n    Quantizer and codebook indexes in an ESPnet recipe.")
    print(f"{RUN_MVQ_SH}\n    A whole ESPnet recipe with the MVQ loss.")
    print("python3 -m espnet_mvq.run\n    Python with the plugin registered in ESPnet.")
    for path in sorted((_PACKAGE / "bin").glob("[a-z]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(getattr(node, "name", None) == "get_parser" for node in module.body):
            summary = ast.get_docstring(module).splitlines()[0]
            print(f"python3 -m espnet_mvq.bin.{path.stem}\n    {summary}")


def mvq_sh(script: Path = MVQ_SH) -> None:
    """Run mvq.sh with the Python of this installation, unless `--python` is given."""
    os.environ.setdefault("MVQ_PYTHON", sys.executable)
    os.execvp("bash", ["bash", str(script), *sys.argv[1:]])


def run_mvq_sh() -> None:
    """Run run_mvq.sh, likewise."""
    mvq_sh(RUN_MVQ_SH)


if __name__ == "__main__":
    main()
