"""The command that follows a training."""

import os
import subprocess
import sys

import pytest
from builders import ROOT


@pytest.mark.parametrize("log", [None, "[vm] 1/16epoch started\n"])
def test_ends_with_the_pipe(tmp_path, log):
    """Whatever the log says: a training that was killed does not write its end."""
    command = [sys.executable, "-m", "espnet_mvq.bin.watch_training"]
    watcher = subprocess.Popen(
        [*command, "--exp", tmp_path, "--baseline", tmp_path / "none"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if log:
        (tmp_path / "train.log").write_text(log)
    with pytest.raises(subprocess.TimeoutExpired):
        watcher.wait(1.5)
    assert watcher.communicate()[0] == b"" and watcher.returncode == 0
