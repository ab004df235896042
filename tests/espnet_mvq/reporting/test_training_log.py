"""The statistics of each epoch in ESPnet's logs."""

import math

import pytest
from experiment_builders import epoch_line

from espnet_mvq.reporting.training_log import (
    ReportError,
    read_epochs,
    seconds_per_step,
)


def line(n, loss, step_s=0.3):
    return epoch_line(n, {"loss": loss, "acc": "1.5e-02"}, {"loss": loss + 1}, step_s)


def test_last_run_of_an_epoch_counts_in_all_logs(tmp_path):
    """ESPnet renames the logs before; 10 is older than 9."""
    (tmp_path / "train.10.log").write_text(line(1, 9.0, 0.5) + line(2, 8.0, 0.25))
    (tmp_path / "train.9.log").write_text(line(2, 5.0, 0.75) + line(3, 4.0, 0.1))
    (tmp_path / "train.log").write_text("nothing to do\n")
    epochs = read_epochs(tmp_path)
    assert [epoch["loss"] for epoch in epochs] == [9.0, 5.0, 4.0]
    assert [epoch["valid_loss"] for epoch in epochs] == [10.0, 6.0, 5.0]
    assert math.isnan(epochs[0]["valid_cer_ctc"]) and epochs[0]["acc"] == 0.015
    assert [epoch["total_count"] for epoch in epochs] == [27, 54, 81]
    assert seconds_per_step(epochs) == 0.5


def test_missing_log_and_epochs_are_named(tmp_path):
    with pytest.raises(ReportError, match="train.log; run stage 11"):
        read_epochs(tmp_path)
    (tmp_path / "train.log").write_text("[vm] 1/16epoch started\n")
    with pytest.raises(ReportError, match="no finished epoch in"):
        read_epochs(tmp_path)
