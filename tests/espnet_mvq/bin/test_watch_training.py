"""The command that follows a training."""

import os
import signal
import subprocess
import sys

import pytest
from builders import ROOT
from experiment_builders import STARTED, epoch_line


@pytest.fixture
def watcher(tmp_path):
    """Start the command with a pipe on standard input."""
    command = [sys.executable, "-m", "espnet_mvq.bin.watch_training"]
    process = subprocess.Popen(
        [*command, "--exp", tmp_path, "--baseline", tmp_path / "none"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def write_log(folder):
    """Write the log of a training that goes on after its first epoch."""
    started = STARTED.format(n=1, total=2, time="00:00:00,000")
    (folder / "train.log").write_text(started + epoch_line(1, {"loss": 5}, {"loss": 6}))


def test_ends_with_the_pipe(tmp_path, watcher):
    """A training that was killed does not write its end into the log."""
    with pytest.raises(subprocess.TimeoutExpired):
        watcher.wait(1)
    write_log(tmp_path)
    output, _ = watcher.communicate(timeout=30)
    assert output == "epoch 1/2, 00:00 left, loss 5.0, validation 6.0\n"
    assert watcher.returncode == 0


def test_interrupt_ends_it_by_the_signal(tmp_path, watcher):
    """So that the shell script that started it ends, too."""
    write_log(tmp_path)
    assert watcher.stdout.readline().startswith("epoch 1/2")
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(30) == -signal.SIGINT
    assert watcher.stdout.read() == ""
