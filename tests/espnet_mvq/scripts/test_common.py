"""common.sh: messages about failed jobs, back ends that are not installed."""

import os
import subprocess

import pytest

from espnet_mvq.__main__ import MVQ_SH

STARTED = "# Running on n1\n# SLURM_JOB_ID={}\n# python3 -m espnet_mvq.bin.extract\n"
BY_SLURM = "# Accounting: time=56 threads=1\n# Finished at Fri Nov 27 with status {}\n"
# The ends of logs of jobs that ended well
ENDS = {
    "slurm.pl and queue.pl": BY_SLURM.format(0),
    "run.pl": "# Accounting: time=1\n# Ended (code 0) at Fri, elapsed time 1 seconds\n",
    "run_jobs": "# Ended (code 0) at Fri, elapsed time 1 seconds\n",
}
ERROR = "2026-11-27 (options:190) ERROR: utterance utt3: no audio\n"


@pytest.fixture
def bash(tmp_path):
    """Return a function that runs a command after common.sh."""
    (tmp_path / "squeue").write_text('#!/bin/sh\n[ "$3" != 9 ] || echo 9 cpu\n')
    (tmp_path / "squeue").chmod(0o755)

    def run(command, *words, **variables):
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euc", f". {MVQ_SH.with_name('common.sh')}; {command}", "x.sh"]
            + [str(word) for word in words],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, **variables},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def write_logs(tmp_path):
    """Return a function that writes logs of jobs 1, 2 ...; None: no log."""

    def write(*contents):
        (tmp_path / "set" / "log").mkdir(parents=True)
        for n, content in enumerate(contents, 1):
            if content is not None:
                (tmp_path / "set" / "log" / f"extract.{n}.log").write_text(content)
        return [f"set/log/extract.{n}.log" for n in range(1, len(contents) + 1)]

    return write


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_only_jobs_that_did_not_end_well_are_shown(bash, write_logs, end):
    bad = ERROR + end.replace("code 0", "code 1").replace("status 0", "status 1")
    logs = write_logs(ERROR.replace("no audio", "of a job that ended well") + end, bad)
    done = bash('failed "$@"', *logs)
    assert done.returncode == 1
    assert "1 of 2 jobs did not end well\n" in done.stderr
    assert f"set/log/extract.2.log:{ERROR}" in done.stderr
    assert "ended well\n" not in done.stderr
    assert "run the same command again: it resumes" in done.stderr


def test_cause_of_killed_jobs(bash, write_logs, tmp_path):
    """It stands in the scheduler's log, which all jobs of an array have in common."""
    logs = write_logs(
        STARTED.format(4),
        STARTED.format(5) + BY_SLURM.format(137),
        STARTED.format(6),
        STARTED.format(3) + BY_SLURM.format(0),
        STARTED.format(9),
        None,
        "# python3\n# Ended (code 0; signal 9) at Fri, elapsed time 1 seconds\n",
        "# python3\n# Started at Fri\n",
    )
    error = "slurmstepd-n1: error: *** JOB {} ON n1 CANCELLED AT 2026-11-27{} ***\n"
    (tmp_path / "set" / "q").mkdir()
    (tmp_path / "set" / "q" / "extract.log").write_text(
        "Submitted batch job 3\n"
        + error.format(4, "")
        + error.format(6, " DUE TO TIME LIMIT")
        + error.format(66, "")
        + error.format(3, " DUE TO NODE FAILURE")
    )
    first = bash('failed "$@"', *logs[:5]).stderr.splitlines()[1:-1]
    assert first == [
        f"{logs[0]}: {error.format(4, '').strip()}",
        f"{logs[1]}: {BY_SLURM.format(137).splitlines()[1]}",
        f"{logs[2]}: {error.format(6, ' DUE TO TIME LIMIT').strip()}",
        f"{logs[4]}: still runs, as Slurm job 9; wait for it, or end it with scancel",
    ]
    second = bash('failed "$@"', *logs[5:]).stderr.splitlines()[1:-1]
    assert second == [
        f"{logs[5]}: no such file, the job did not start",
        f"{logs[6]}: # Ended (code 0; signal 9) at Fri, elapsed time 1 seconds",
        f"{logs[7]}: has no end, the job was killed; see set/q/extract.log",
    ]


def test_many_failed_jobs_are_shortened(bash, write_logs):
    lines = bash('failed "$@"', *write_logs(*25 * [None])).stderr.splitlines()
    assert "25 of 25 jobs" in lines[0] and len(lines) == 23
    assert lines[-2] == "... and 5 more"


def test_jobs_that_were_not_started_again(bash, write_logs):
    """The logs are those of an earlier run."""
    done = bash('failed "$@"', *write_logs(ENDS["run.pl"]))
    assert done.returncode == 1 and "could not be started" in done.stderr


@pytest.mark.parametrize(
    "command, program",
    [
        ("slurm.pl --mem 4G", "sbatch"),
        ("queue.pl", "qsub"),
        ("utils/queue-freegpu.pl --gpu 1", "qsub"),
        ("no_such.pl", "no_such.pl"),
    ],
)
def test_back_end_that_is_not_installed(bash, tmp_path, command, program):
    """Without PATH, no scheduler is found on this machine either."""
    (tmp_path / "utils").mkdir()
    for name in ("slurm.pl", "queue.pl", "utils/queue-freegpu.pl"):
        (tmp_path / name).touch(0o755)
    check = "PATH=${PWD}; check_back_end train_cmd"
    refused = bash(check, train_cmd=command)
    assert refused.returncode == 2
    assert f"train_cmd is '{command}', but {program} is not installed" in refused.stderr
    assert refused.stderr.count("\n") == 1
    (tmp_path / program).touch(0o755)
    done = bash(check, train_cmd=command)
    assert (done.returncode, done.stderr) == (0, "")
    assert bash(check, train_cmd="").returncode == 0
