#!/usr/bin/env python3
"""Kill an extraction of a real corpus again and again, and compare with a whole one.

The suite does the same on a small scale (test_extract_killed.py). Here the jobs of an
extraction run side by side, all are killed by SIGKILL at random moments, and the arks
must have the bytes of an undisturbed run in the end.

Example:
    python3 tests/integration/killed_extraction.py --data_dir dump/raw/train_clean_5 \
        --quantizer dump/mvq/.../quantizer.safetensors --outdir /tmp/killed -- \
        --teacher transformers/openai/whisper-tiny.en --layer 3
"""

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List

from espnet_mvq.files.scp import read_scp
from espnet_mvq.indexes.shard import shard_paths


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="wav.scp, utt2num_samples")
    parser.add_argument("--quantizer", required=True)
    parser.add_argument("--outdir", required=True, help="folder of both extractions")
    parser.add_argument("--nj", type=int, default=2, help="jobs")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", help="more options of extract, after --")
    return parser


def start_jobs(args: argparse.Namespace, folder: Path) -> List[subprocess.Popen]:
    """Start all jobs of an extraction."""
    lines = Path(args.data_dir, "wav.scp").read_text().splitlines(True)
    processes = []
    for job in range(1, args.nj + 1):
        part = folder / f"wav.{job}.scp"
        folder.mkdir(parents=True, exist_ok=True)
        first, last = (len(lines) * n // args.nj for n in (job - 1, job))
        part.write_text("".join(lines[first:last]))
        command = [sys.executable, "-m", "espnet_mvq.bin.extract", *args.options]
        command += ["--wav_scp", str(part), "--quantizer", args.quantizer]
        command += ["--utt2num_samples", f"{args.data_dir}/utt2num_samples"]
        command += ["--outdir", str(folder), "--job", str(job)]
        with (folder / f"log.{job}").open("a") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
    return processes


def written(folder: Path) -> int:
    """Return the bytes of all arks, finished or not."""
    return sum(path.stat().st_size for path in folder.glob("*.ark*"))


def finish(processes: List[subprocess.Popen]) -> None:
    """Wait for jobs that must succeed."""
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"a job failed, exit codes {codes}; see its log")


def main(cmd=None) -> None:
    """Run the script."""
    args = get_parser().parse_args(cmd)
    whole, killed = Path(args.outdir, "whole"), Path(args.outdir, "killed")
    start = time.perf_counter()
    finish(start_jobs(args, whole))
    duration = time.perf_counter() - start
    print(f"undisturbed: {duration:.0f} s", flush=True)
    generator = random.Random(args.seed)
    for number in range(args.kills):
        size = written(killed)
        processes = start_jobs(args, killed)
        while written(killed) <= size and processes[0].poll() is None:
            time.sleep(0.01)
        # Short enough that all kills hit jobs at work
        time.sleep(generator.uniform(0, 0.7 / args.kills) * duration)
        running = [process for process in processes if process.poll() is None]
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        sizes = [p.stat().st_size for p in sorted(killed.glob("*.ark*"))]
        print(f"kill {number + 1} hit {len(running)} jobs; arks {sizes}", flush=True)
    finish(start_jobs(args, killed))
    actual: List[str] = []
    for job in range(1, args.nj + 1):
        mine, other = (shard_paths(folder, job) for folder in (killed, whole))
        if mine[0].read_bytes() != other[0].read_bytes():
            raise SystemExit(f"{mine[0]} and {other[0]} are not the same")
        actual += read_scp(mine[1])
    expected = list(read_scp(Path(args.data_dir, "wav.scp")))
    if sorted(actual) != sorted(expected):
        raise SystemExit(f"got {len(actual)} utterances, expected {len(expected)}")
    print(f"all {len(actual)} utterances once, arks byte for byte those of a whole run")


if __name__ == "__main__":
    main()
