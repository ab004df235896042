"""Jobs on this machine, in run.pl's manner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import python_environment, run_python

from espnet_mvq.bin.run_jobs import main

SHELL = ("bash", "-c")


@pytest.fixture(autouse=True)
def work_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def output(log):
    lines = Path(log).read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_log_has_command_start_and_end():
    assert main(["new/folder/x.log", "echo", "a b"]) == 0
    lines = Path("new/folder/x.log").read_text().splitlines()
    assert lines[0] == "# echo 'a b'"
    assert lines[1].startswith("# Started at ")
    assert lines[3] == "a b"
    assert lines[-1].startswith("# Ended (code 0) at ")
    assert lines[-1].endswith(", elapsed time 0 seconds")


@pytest.mark.parametrize("before", [True, False])
def test_job_number_fills_log_and_command(before):
    options = ["--gpu", "0", "--mem", "4G", "-l", "arch=*64*"]
    words = ["N=3:4", *options] if before else [*options, "N=3:4"]
    assert main([*words, "x.N.log", "echo", "part.N"]) == 0
    assert (output("x.3.log"), output("x.4.log")) == (["part.3"], ["part.4"])


def test_single_job_number():
    assert main(["JOB=7", "x.JOB.log", "echo", "JOB"]) == 0
    assert output("x.7.log") == ["7"]


def test_failures_are_counted_and_their_logs_named(capsys):
    command = ["bash", "-c", "exit $((JOB % 2))"]
    assert main(["JOB=1:4", "log/x.JOB.log", *command]) == 1
    message = capsys.readouterr().err
    assert message == "run_jobs: 2 of 4 jobs failed, see log/x.{1,3}.log\n"
    assert "# Ended (code 1)" in Path("log/x.3.log").read_text()
    assert "# Ended (code 0)" in Path("log/x.4.log").read_text()


def test_command_that_cannot_be_started(capsys):
    assert main(["x.log", "no_such_program", "a"]) == 1
    assert capsys.readouterr().err == "run_jobs: job failed, see x.log\n"
    assert output("x.log") == [
        "run_jobs: cannot start no_such_program: No such file or directory"
    ]


def test_command_runs_without_a_shell():
    words = ["$HOME *", "<unk>", 'a"b', "", "X=3", "|", "2>&1"]
    assert main(["x.log", "printf", "%s\n", *words]) == 0
    assert output("x.log") == words
    assert main(["y.log", "bash", "-c", "echo a b | tr a c"]) == 0
    assert output("y.log") == ["c b"]


def test_max_jobs_run_bounds_the_number_at_a_time():
    # Each job sees how many run; the folder's entries are the running jobs.
    Path("now").mkdir()
    command = "mkdir now/JOB; ls now | wc -l; sleep 0.2; rmdir now/JOB"
    assert main(["--max-jobs-run", "2", "JOB=1:5", "x.JOB.log", *SHELL, command]) == 0
    counts = [int(output(f"x.{i}.log")[0]) for i in range(1, 6)]
    assert max(counts) == 2


NVIDIA_SMI = """#!/bin/sh
[ "$1" = -L ] && printf 'GPU %s: NVIDIA (UUID: GPU-%s)\\n' 0 a 1 b 2 c
"""


@pytest.mark.parametrize(
    "visible, gpu, devices",
    [
        ("3,5", 1, {"3", "5"}),
        ("GPU-a, GPU-b,GPU-c,GPU-d", 2, {"GPU-a,GPU-b", "GPU-c,GPU-d"}),
        (None, 1, {"0", "1", "2"}),  # those that nvidia-smi lists
        ("3,5", 0, {"3,5"}),
        ("", 1, {""}),  # The command reports that there is none.
    ],
)
def test_each_job_has_gpus_of_its_own(monkeypatch, visible, gpu, devices):
    """More jobs than GPUs: the others wait."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    Path("nvidia-smi").write_text(NVIDIA_SMI)
    Path("nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f".{os.pathsep}{os.environ['PATH']}")
    Path("now").mkdir()
    command = 'echo "$CUDA_VISIBLE_DEVICES"'
    shared = gpu == 0 or visible == ""
    if not shared:
        # mkdir fails, and the job with it, if two jobs have the same GPUs at a time.
        own = '"now/$CUDA_VISIBLE_DEVICES"'
        command += f" && mkdir {own} && sleep 0.2 && rmdir {own}"
    words = ["--gpu", str(gpu), "JOB=1:6", "x.JOB.log", *SHELL, command]
    assert main(words) == 0
    assert {output(f"x.{n}.log")[0] for n in range(1, 7)} == devices
    log = Path("x.1.log").read_text()
    assert ("# CUDA_VISIBLE_DEVICES=" in log) != shared


def test_more_gpus_than_there_are(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert main(["--gpu", "3", "x.log", "true"]) == 1
    error = capsys.readouterr().err
    assert "--gpu 3: got 2 visible GPUs (3,5), expected at least 3" in error
    assert error.count("\n") == 1 and not list(Path().iterdir())


@pytest.mark.parametrize(
    "words, message",
    [
        (["JOB=4:1", "x.JOB.log", "true"], "bad job range 'JOB=4:1'"),
        (["JOB=0:1", "x.JOB.log", "true"], "bad job range 'JOB=0:1'"),
        (["JOB=a:b", "x.JOB.log", "true"], "bad job range 'JOB=a:b'"),
        (["JOB=1:2", "x.log", "true"], "2 jobs would share the log x.log"),
        (["--max-jobs-run", "0", "x.log", "true"], "--max-jobs-run must be 1"),
        (["--max-jobs-run", "x", "x.log", "true"], "invalid int value: 'x'"),
        (["x.log"], "no log file or no command"),
        ([], "no log file or no command"),
    ],
)
def test_refusals(words, message, capsys):
    assert main(words) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(Path().iterdir())


def test_log_that_cannot_be_written(capsys):
    Path("file").touch()
    assert main(["file/x.log", "true"]) == 1
    assert capsys.readouterr().err.startswith("run_jobs: cannot write the log: ")


def test_many_failures_are_shortened(capsys):
    assert main(["JOB=1:25", "x.JOB.log", "false"]) == 1
    assert ",19,20,...}.log" in capsys.readouterr().err


def run_module(words, **kwargs):
    """Start the module as recipes do."""
    return subprocess.Popen(
        [sys.executable, "-m", "espnet_mvq.bin.run_jobs", *words],
        env=python_environment(),
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_jobs_do_not_eat_the_callers_standard_input():
    process = run_module(["x.log", "cat"], stdin=subprocess.PIPE)
    process.communicate("the rest of a loop's input\n")
    assert process.returncode == 0 and output("x.log") == []


def is_running(pid):
    """True for a running process, no zombie (on Linux)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_takes_the_whole_process_group_down(signum):
    # A minute: long enough for the signal to come first on the busiest machine
    command = "sleep 60 & echo $! > pid; echo started; wait"
    words = ["--max-jobs-run", "1", "JOB=1:2", "x.JOB.log", *SHELL, command]
    # A suite started in the background has SIGINT ignored, and hands that on.
    process = run_module(
        words, preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL)
    )
    log = Path("x.1.log")
    deadline = time.time() + 30
    while not (log.exists() and output(log)) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signum)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert f"(stopped by {signum.name})" in error and error.count("\n") == 1
    assert (
        f"# Killed: run_jobs got {signum.name}\n# Ended (code 143)" in log.read_text()
    )
    assert not Path("x.2.log").exists()
    pid = int(Path("pid").read_text())
    while is_running(pid) and time.time() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)


def test_only_the_standard_library_is_imported():
    code = "import sys, espnet_mvq.bin.run_jobs; print('torch' in sys.modules)"
    done = run_python("-c", code)
    assert done.stdout == "False\n"
