"""`python3 -m espnet_mvq`: version, commands and the path of mvq.sh."""

import argparse
import ast
import os
import sys
from pathlib import Path

from espnet_mvq import __version__

_PACKAGE = Path(__file__).resolve().parent
MVQ_SH = _PACKAGE / "scripts" / "mvq.sh"


def main(cmd=None) -> None:
    """Print version, commands and paths.

    Args:
        cmd: Arguments of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="python3 -m espnet_mvq",
        description="Print the version of espnet_mvq, its commands and the path of "
        "mvq.sh.",
    )
    parser.add_argument(
        "--mvq_sh", action="store_true", help="print the path of mvq.sh alone"
    )
    if parser.parse_args(cmd).mvq_sh:
        print(MVQ_SH)
        return
    print(f"espnet_mvq {__version__}\n")
    print(f"{MVQ_SH}\n    Quantizer and codebook indexes in an ESPnet recipe.")
    print(f"{MVQ_SH.with_name('run_mvq.sh')}\n    The whole of a recipe with MVQ.")
    print("python3 -m espnet_mvq.run\n    Python with the plugin registered in ESPnet.")
    for path in sorted((_PACKAGE / "bin").glob("[a-z]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(getattr(node, "name", None) == "get_parser" for node in module.body):
            summary = ast.get_docstring(module).splitlines()[0]
            print(f"python3 -m espnet_mvq.bin.{path.stem}\n    {summary}")


def run_script() -> None:
    """Run the script of the command's name with the Python of this installation.

    Another Python is used if `--python` gives it.
    """
    os.environ.setdefault("MVQ_PYTHON", sys.executable)
    script = MVQ_SH.with_name(Path(sys.argv[0]).name)
    os.execvp("bash", ["bash", str(script), *sys.argv[1:]])


if __name__ == "__main__":
    main()
