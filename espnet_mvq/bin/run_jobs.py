#!/usr/bin/env python3
"""Run one or several jobs on this machine, each with its own log.

Takes the command line of Kaldi's ``run.pl``, so that a recipe on pip-installed ESPnet
can use ``train_cmd="python3 -m espnet_mvq.bin.run_jobs"``, and one on a cluster
``slurm.pl`` or ``queue.pl``. Unlike ``run.pl``, it runs the command without a shell:
for pipes and redirections give ``bash -c "..."``. With ``--gpu N``, each job has N
GPUs of its own in ``CUDA_VISIBLE_DEVICES``; a job without free GPUs waits.
"""

import argparse
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

GRACE_S = 10.0  # between SIGTERM and SIGKILL
MAX_LISTED = 20  # failed jobs in the closing message
JOB_RANGE = re.compile(r"([A-Za-z_]\w*)=(\d+)(?::(\d+))?")


class UsageError(Exception):
    """An invalid command line; the text is the message to the user."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UsageError(message)


class Job(NamedTuple):
    """Number, log file and command of a job."""

    number: int
    log: str
    argv: List[str]


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that precede the log file."""
    parser = _Parser(
        prog="run_jobs",
        usage="run_jobs [options] [JOB=1:4] LOG COMMAND...",
        description="Run COMMAND once per job number, without a shell, with its output "
        "in LOG. The number replaces the name before '=' in LOG and COMMAND.",
        epilog="Any other option and its value, such as --num-threads 4 or --mem 4G, "
        "are ignored: they are for clusters.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--max-jobs-run",
        "-tc",
        type=int,
        help="Parallel jobs (default: all, or as many as there are GPUs for)",
    )
    parser.add_argument(
        "--gpu",
        type=int,
        default=0,
        help="GPUs of each job, of those in CUDA_VISIBLE_DEVICES or else of all "
        "(default: %(default)s; where no GPU is found, jobs run as with 0)",
    )
    return parser


def split_words(words: List[str]) -> Tuple[List[str], Optional[str], List[str]]:
    """Split a command line into options, job range and the rest.

    The range may stand before, between or after the options.

    Returns:
        Options with their values, the range such as ``JOB=1:4`` or None, and the
        log file followed by the command.
    """
    options: List[str] = []
    job_range = None
    rest = list(words)
    while rest:
        if rest[0].startswith("-"):
            count = 1 if "=" in rest[0] else 2
            options, rest = options + rest[:count], rest[count:]
        elif job_range is None and re.match(r"[A-Za-z_]\w*=", rest[0]):
            job_range = rest.pop(0)
        else:
            break
    return options, job_range, rest


def parse_range(job_range: Optional[str]) -> Tuple[str, range]:
    """Return the variable name and the job numbers of e.g. ``JOB=1:4``."""
    if job_range is None:
        return "", range(1, 2)
    match = JOB_RANGE.fullmatch(job_range)
    if match is None:
        raise UsageError(
            f"bad job range '{job_range}': expected NAME=NUMBER or NAME=FIRST:LAST, "
            "e.g. JOB=1:4"
        )
    name, first, last = match.groups()
    start, end = int(first), int(last or first)
    if not 1 <= start <= end:
        raise UsageError(
            f"bad job range '{job_range}': numbers start at 1 and the first must not "
            "be above the last"
        )
    return name, range(start, end + 1)


def build_jobs(name: str, numbers: range, log: str, command: List[str]) -> List[Job]:
    """Fill the job number into the log name and the command."""
    if len(numbers) > 1 and name not in log:
        raise UsageError(
            f"{len(numbers)} jobs would share the log {log}: put {name} in"
        )

    def fill(word: str, number: int) -> str:
        return word.replace(name, str(number)) if name else word

    return [Job(n, fill(log, n), [fill(word, n) for word in command]) for n in numbers]


def visible_gpus() -> List[str]:
    """Return the GPUs that jobs may use, as words of ``CUDA_VISIBLE_DEVICES``."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return []
    return re.findall(r"^GPU (\d+):", listed.stdout, re.MULTILINE)


def share_gpus(num_gpus: int) -> List[str]:
    """Divide the visible GPUs among jobs.

    Args:
        num_gpus: GPUs of a job.

    Returns:
        ``CUDA_VISIBLE_DEVICES`` of each job that can run at a time; none if jobs need
        no GPU, or there is none here, which the job itself reports.
    """
    gpus = visible_gpus() if num_gpus > 0 else []
    if gpus and len(gpus) < num_gpus:
        raise UsageError(
            f"--gpu {num_gpus}: got {len(gpus)} visible GPUs ({','.join(gpus)}), "
            f"expected at least {num_gpus}; check CUDA_VISIBLE_DEVICES"
        )
    groups = len(gpus) // max(num_gpus, 1)
    return [",".join(gpus[n * num_gpus : (n + 1) * num_gpus]) for n in range(groups)]


class Runner:
    """Run jobs in parallel and stop all of them on a signal.

    Args:
        gpus: ``CUDA_VISIBLE_DEVICES`` of each job that may run at a time; empty: jobs
            inherit it.
    """

    def __init__(self, gpus: Sequence[str] = ()):
        self.running: Dict[int, subprocess.Popen] = {}
        self._free_gpus: "queue.SimpleQueue[str]" = queue.SimpleQueue()
        for gpu in gpus:
            self._free_gpus.put(gpu)
        self._uses_gpus = bool(gpus)
        self.stopped_by: Optional[str] = None

    def stop(self, signum: int, frame=None) -> None:
        """Signal handler: stop all running jobs and start no other."""
        self.stopped_by = signal.Signals(signum).name
        self._kill(signal.SIGTERM)
        timer = threading.Timer(GRACE_S, self._kill, [signal.SIGKILL])
        timer.daemon = True
        timer.start()

    def _kill(self, signum: int) -> None:
        for pid in list(self.running):
            self._kill_group(pid, signum)

    def run(self, job: Job) -> int:
        """Run one job to its end and return its exit code (128 + n for signal n)."""
        if not self._uses_gpus:
            return self._run(job, {})
        gpu = self._free_gpus.get()
        try:
            return self._run(job, {"CUDA_VISIBLE_DEVICES": gpu})
        finally:
            self._free_gpus.put(gpu)

    def _run(self, job: Job, variables: Dict[str, str]) -> int:
        """Run one job with environment variables of its own."""
        if self.stopped_by:
            return 1
        start = time.time()
        os.makedirs(os.path.dirname(job.log) or ".", exist_ok=True)
        with open(job.log, "w", encoding="utf-8") as log:
            line = shlex.join(job.argv).replace("\n", "\n# ")
            log.write(f"# {line}\n# Started at {time.ctime()}\n")
            log.writelines(f"# {name}={value}\n" for name, value in variables.items())
            log.write("#\n")
        # Append: a process that outlives the job must not overwrite the closing lines.
        with open(job.log, "a", encoding="utf-8") as log:
            code = self._spawn_and_wait(job, log, variables)
            if self.stopped_by:
                log.write(f"# Killed: run_jobs got {self.stopped_by}\n")
            log.write(
                f"# Ended (code {code}) at {time.ctime()}, "
                f"elapsed time {time.time() - start:.0f} seconds\n"
            )
        # A job may exit with 0 on SIGTERM without having finished.
        return code or int(self.stopped_by is not None)

    def _spawn_and_wait(self, job: Job, log, variables: Dict[str, str]) -> int:
        try:
            # With a session of its own, one killpg reaches all processes of the job.
            process = subprocess.Popen(
                job.argv,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"run_jobs: cannot start {job.argv[0]}: {error.strerror}\n")
            return 127
        self.running[process.pid] = process
        if self.stopped_by:  # the signal came during the start
            self._kill(signal.SIGTERM)
        code = process.wait()
        if self.stopped_by:  # kill processes that outlive the job
            self._kill_group(process.pid, signal.SIGKILL)
        del self.running[process.pid]
        return code if code >= 0 else 128 - code

    @staticmethod
    def _kill_group(pid: int, signum: int) -> None:
        try:
            os.killpg(pid, signum)
        except (ProcessLookupError, PermissionError):
            pass


def failure_message(
    name: str, log: str, failed: List[int], num_jobs: int, stopped_by: Optional[str]
) -> str:
    """One line: the number of failed jobs and their logs."""
    listed = ",".join(map(str, failed[:MAX_LISTED]))
    if len(failed) > MAX_LISTED:
        listed += ",..."
    if len(failed) > 1:
        listed = "{" + listed + "}"
    logs = log.replace(name, listed) if name else log
    reason = f" (stopped by {stopped_by})" if stopped_by else ""
    count = (
        "job failed" if num_jobs == 1 else f"{len(failed)} of {num_jobs} jobs failed"
    )
    return f"run_jobs: {count}{reason}, see {logs}"


def run_all(
    jobs: List[Job], max_jobs_run: int, gpus: Sequence[str] = ()
) -> Tuple[List[int], Optional[str]]:
    """Run the jobs, at most ``max_jobs_run`` at a time.

    Args:
        jobs: The jobs.
        max_jobs_run: Limit; the GPUs are another one.
        gpus: See ``Runner``.

    Returns:
        Numbers of the failed jobs and the name of the signal that stopped them.
    """
    runner = Runner(gpus)
    previous = {}
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Signals that nohup or "command &" ignore stay ignored.
        if signal.getsignal(signum) != signal.SIG_IGN:
            previous[signum] = signal.signal(signum, runner.stop)
    try:
        with ThreadPoolExecutor(max_jobs_run) as pool:
            codes = list(pool.map(runner.run, jobs))
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    return [j.number for j, code in zip(jobs, codes) if code], runner.stopped_by


def main(cmd: Optional[List[str]] = None) -> int:
    """Run the command line and return the exit status."""
    words = list(sys.argv[1:] if cmd is None else cmd)
    parser = get_parser()
    if words[:1] in (["--help"], ["-h"]):
        parser.print_help()
        return 0
    try:
        options, job_range, rest = split_words(words)
        args, _ = parser.parse_known_args(options)
        name, numbers = parse_range(job_range)
        if len(rest) < 2:
            raise UsageError(f"no log file or no command; usage: {parser.usage}")
        if args.max_jobs_run is not None and args.max_jobs_run < 1:
            raise UsageError(f"--max-jobs-run must be 1 or more: {args.max_jobs_run}")
        log, *command = rest
        jobs = build_jobs(name, numbers, log, command)
        gpus = share_gpus(args.gpu)
        failed, stopped_by = run_all(jobs, args.max_jobs_run or len(jobs), gpus)
    except UsageError as error:
        print(f"run_jobs: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"run_jobs: cannot write the log: {error}", file=sys.stderr)
        return 1
    if failed:
        message = failure_message(name, log, failed, len(jobs), stopped_by)
        print(message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
