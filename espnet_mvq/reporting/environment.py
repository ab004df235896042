"""Versions and hardware, for reports."""

import os
import platform
import sys
import time
from importlib import metadata
from typing import Dict, Optional

PACKAGES = ("espnet_mvq", "espnet", "torch", "s3prl", "espnet-s3prl", "transformers")


def installed_version(package: str) -> Optional[str]:
    """Return a package's version, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_environment() -> Dict[str, str]:
    """Return date, versions and hardware by name."""
    versions = {name: installed_version(name) for name in PACKAGES}
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "Python": sys.version.split()[0],
        **{name: version for name, version in versions.items() if version},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
