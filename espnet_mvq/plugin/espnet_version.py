"""Check of the installed ESPnet, before its modules are imported."""

import re
import sys

OLDEST_TESTED = 202511  # as in setup.py
# A checkout made between two releases has the version of the earlier one. ESPnet's
# master of September 2024, which passes the tests of the plugin, says 202402.
_OLDEST = 202402
_UNKNOWN = "0.0.0"  # ESPnet says so if it finds neither metadata nor version.txt


def check_espnet() -> None:
    """Refuse an ESPnet that is missing or too old; warn of one that is not tested.

    pip replaces an older ESPnet. So an older one is in use only if espnet_mvq was
    installed with `--no-deps`, or if a checkout is on the `PYTHONPATH`.

    Raises:
        ImportError: If there is no ESPnet, or it is too old.
    """
    expected = f"expected ESPnet {OLDEST_TESTED} or newer"
    try:
        import espnet2
    except ModuleNotFoundError as error:
        if error.name not in ("espnet", "espnet2"):
            raise
        raise ImportError(
            f"{sys.executable} finds no ESPnet, {expected}; install it with pip, or "
            "activate the environment of the ESPnet checkout"
        ) from None
    version, folder = espnet2.__version__, espnet2.__path__[0]
    number = int(re.match(r"\d*", version)[0] or 0)
    if number < _OLDEST and version != _UNKNOWN:
        raise ImportError(
            f"got ESPnet {version} in {folder}, {expected}; update the checkout, or "
            "install ESPnet with pip in another environment"
        )
    if _OLDEST <= number < OLDEST_TESTED:
        print(
            f"espnet_mvq: ESPnet {version} in {folder} is older than {OLDEST_TESTED}, "
            "the oldest version that espnet_mvq is tested with",
            file=sys.stderr,
        )
