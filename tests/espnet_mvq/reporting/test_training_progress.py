"""The line that a running training shows."""

import os

import pytest
from experiment_builders import BATCHES, ENDED, STARTED, epoch_line, write_experiment

from espnet_mvq.reporting import training_progress
from espnet_mvq.reporting.training_log import read_epochs
from espnet_mvq.reporting.training_progress import GrowingLog, Progress, watch_training

TRAIN = {"loss_ctc": 60.25, "loss": 310.5, "loss_mvq": 250.25, "loss_att": "nan"}


@pytest.fixture
def now(monkeypatch):
    """Stop the clock."""
    monkeypatch.setattr(training_progress.time, "time", lambda: 1e9)


@pytest.fixture
def baseline(tmp_path):
    epochs = [({"loss": 9.0}, {"loss": 77.0}), ({"loss": 8.0}, {"loss": 76.0})]
    return write_experiment(tmp_path / "base", epochs)


def test_line_of_each_epoch(baseline, now, capsys):
    progress = Progress(read_epochs(baseline))
    progress.add("[vm] 2026-01-01 Model structure:\n")
    progress.add(STARTED.format(n=1, total=4, time="00:00:00,000"))
    progress.add(epoch_line(1, TRAIN, {"loss": 67.5}, time="00:01:00,000"))
    progress.add(STARTED.format(n=2, total=4, time="00:01:00,000"))
    progress.add(epoch_line(3, {"loss": 5.0}, {"loss": 66.0}, time="00:03:00,000"))
    progress.close()
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/4, 03:00 left, loss ctc 60.2, mvq 250.2, validation 67.5 "
        "(baseline 77.0)",
        "epoch 2/4, 01:00 left, loss 5.0, validation 66.0",
    ]


def test_line_within_an_epoch_on_a_terminal(baseline, now, capsys, monkeypatch):
    """9 of 27 batches, a number known from the baseline, take 20 s."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    progress = Progress(read_epochs(baseline))
    progress.add(STARTED.format(n=3, total=4, time="00:00:00,000"))
    line = BATCHES.format(n=3, batch=9, time="00:00:20,000", train="loss=7.25")
    progress.add(line)
    progress.show()
    progress.close()
    last = capsys.readouterr().out.rstrip().split("\r")[-1]
    assert "| epoch 3/4, 01:40 left, loss 7.2" in last


def test_log_of_an_earlier_run_is_passed_over(tmp_path):
    path = tmp_path / "train.log"
    log = GrowingLog(path, not_before=1000)
    assert log.new_lines() == []
    path.write_text("old\n")
    os.utime(path, (900, 900))
    assert log.new_lines() == []
    path.rename(tmp_path / "train.1.log")
    path.write_text("one\ntw")
    assert log.new_lines() == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert log.new_lines() == ["two"] and log.new_lines() == []


SLURM_ENDED = "# Finished at Thu Jan  1 00:00:00 CET 2026 with status 0\n"


@pytest.mark.parametrize("ended", [ENDED, SLURM_ENDED])
def test_watching_ends_with_the_log(ended, baseline, capsys, monkeypatch):
    """Also without a pipe on standard input, and for a baseline itself."""
    log = baseline / "train.log"
    started = STARTED.format(n=1, total=2, time="00:00:00,000")
    log.write_text(started + log.read_text().replace(ENDED, ended))
    assert log.read_text().endswith(ended)
    monkeypatch.setattr("sys.stdin", None)
    watch_training(baseline, baseline)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("baseline" not in line for line in lines)
