#!/usr/bin/env python3
"""Quantizers side by side: ours, Faiss and multi_quantization, on the same frames.

Each method runs in a process of its own, one after the other, on the same training
frames; all errors are measured on the same held-out frames, as
sum ||x - x_hat||^2 / sum ||x - mean||^2 in double precision. Peak memory is that of the
process beyond its memory with the frames loaded.

Needs: pip install faiss-cpu multi_quantization==0.1.1

Example:
    python3 benchmarks/quantizer.py --train train_layer3.npy \
        --held_out dev_layer3.npy --max_frames 60000 --num_codebooks 4 8 16
"""

import argparse
import json
import platform
import random
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from espnet_mvq import __version__

# Rounds of encoding, of which the fastest counts
REPEATS = 3


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--train", required=True, help="npy, float (F, D)")
    parser.add_argument("--held_out", required=True, help="npy, float (F, D)")
    parser.add_argument("--num_codebooks", type=int, nargs="+", default=[8])
    parser.add_argument("--max_frames", type=int, help="use the first frames only")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=list(METHODS)
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each method")
    parser.add_argument(
        "--mq_steps",
        type=int,
        default=20_000,
        help="training steps of multi_quantization, both phases together",
    )
    parser.add_argument(
        "--gradient_steps",
        type=int,
        default=20_000,
        help="training steps of the paper's way with our search",
    )
    parser.add_argument("--output", help="json file that gets one more line per result")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # method of a child process
    return parser


def peak_bytes() -> int:
    """Return the most memory this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def build_ours(x, num_codebooks, args):
    """Train ours with its defaults."""
    import torch

    from espnet_mvq.quantization import QuantizerTrainer

    torch.set_num_threads(args.threads)
    trainer = QuantizerTrainer(x.shape[1], num_codebooks)
    quantizer = trainer.fit(torch.from_numpy(x))
    efforts = {
        "": {},
        ", beam only": {"refine_passes": 0},
        ", beam 1 and refinement": {"beam_size": 1, "pair_candidates": 0},
        ", 16 perturbations": {"perturbation_rounds": 16},
    }
    return {
        name: (
            lambda y, options=options: quantizer.encode(torch.from_numpy(y), **options),
            lambda indexes: quantizer.decode(indexes).numpy(),
        )
        for name, options in efforts.items()
    }


def build_multi_quantization(x, num_codebooks, args):
    """Train k2-fsa's quantizer, half of the steps in each phase."""
    import multi_quantization
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random.seed(0)
    steps = args.mq_steps // 2
    trainer = multi_quantization.QuantizerTrainer(
        x.shape[1], num_codebooks, torch.device("cpu"), steps, steps
    )
    frames, generator = torch.from_numpy(x), torch.Generator().manual_seed(0)
    while not trainer.done():
        chosen = torch.randint(len(frames), (512,), generator=generator)
        trainer.step(frames[chosen])
    quantizer = trainer.get_quantizer()

    def encode(y):
        with torch.no_grad():
            parts = torch.from_numpy(y).split(512)  # all at once needs many GB
            return torch.cat([quantizer.encode(part, 5) for part in parts])

    def decode(indexes):
        with torch.no_grad():
            return quantizer.decode(indexes).numpy()

    return {f", {args.mq_steps} steps": (encode, decode)}


def build_gradient(x, num_codebooks, args):
    """Train in the paper's way with our search; see gradient_training.py."""
    import torch
    from gradient_training import train

    torch.set_num_threads(args.threads)
    quantizer = train(torch.from_numpy(x), num_codebooks, args.gradient_steps)
    return {
        f", {args.gradient_steps} steps": (
            lambda y: quantizer.encode(torch.from_numpy(y)),
            lambda indexes: quantizer.decode(indexes).numpy(),
        )
    }


def build_faiss(x, num_codebooks, args, kind, beam_size=None):
    """Train one of Faiss's quantizers, with its defaults."""
    import faiss

    faiss.omp_set_num_threads(args.threads)
    quantizer = getattr(faiss, kind)(x.shape[1], num_codebooks, 8)
    if beam_size is not None:
        quantizer.max_beam_size = beam_size
    mean = x.mean(0)  # a local search quantizer does not take it off itself
    quantizer.train(x - mean)
    return {
        "": (
            lambda y: quantizer.compute_codes(y - mean),
            lambda codes: quantizer.decode(codes) + mean,
        )
    }


METHODS = {
    "espnet_mvq": build_ours,
    "Faiss PQ": lambda *args: build_faiss(*args, "ProductQuantizer"),
    "Faiss RQ, beam 1": lambda *args: build_faiss(*args, "ResidualQuantizer", 1),
    "Faiss RQ, beam 8": lambda *args: build_faiss(*args, "ResidualQuantizer", 8),
    "Faiss LSQ": lambda *args: build_faiss(*args, "LocalSearchQuantizer"),
    "gradient descent": build_gradient,
    "multi_quantization": build_multi_quantization,
}


def run_one(args) -> None:
    """Train and measure one method; print a json line per way to encode."""
    x = np.load(args.train)[: args.max_frames].astype(np.float32)
    y = np.load(args.held_out).astype(np.float32)
    num_codebooks = args.num_codebooks[0]
    variance = np.square(y - y.mean(0, dtype=np.float64)).sum()
    before = peak_bytes()
    start = time.perf_counter()
    ways = METHODS[args.one](x, num_codebooks, args)
    train_s = time.perf_counter() - start
    train_bytes = peak_bytes() - before
    for name, (encode, decode) in ways.items():
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            indexes = encode(y)
            seconds.append(time.perf_counter() - start)
        error = np.square(y.astype(np.float64) - decode(indexes)).sum() / variance
        result = {
            "method": args.one + name,
            "num_codebooks": num_codebooks,
            "error": round(float(error), 5),
            "train_s": round(train_s, 1),
            "encode_frames_per_s": round(len(y) / min(seconds)),
            "train_peak_mb": round(train_bytes / 1e6),
            "frames": len(x),
            "dim": x.shape[1],
            "threads": args.threads,
            "train": args.train,
        }
        print(json.dumps(result), flush=True)


def versions() -> str:
    """Describe the machine and the packages."""
    packages = [f"espnet_mvq {__version__}"]
    for package in ("torch", "numba", "faiss-cpu", "multi_quantization"):
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            packages.append(f"{package} -")
    python = f"Python {platform.python_version()}"
    return ", ".join([platform.machine(), python, *packages])


def main(cmd=None) -> None:
    """Run all methods, one process each."""
    args = get_parser().parse_args(cmd)
    if args.one:
        run_one(args)
        return
    print(f"{time.strftime('%Y-%m-%d')}, {versions()}")
    print(f"{args.train} -> {args.held_out}, {args.threads} thread(s)\n")
    print("|bytes|method|error|training s|encode frames/s|training MB|\n|-|-|-|-|-|-|")
    arguments = sys.argv[1:] if cmd is None else list(cmd)
    for num_codebooks in args.num_codebooks:
        for method in args.methods:
            child = [sys.executable, __file__, *arguments]
            child += ["--num_codebooks", str(num_codebooks), "--one", method]
            done = subprocess.run(child, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"|{num_codebooks}|{method}|failed||||", flush=True)
            for line in done.stdout.splitlines():
                result = json.loads(line)
                print(
                    f"|{num_codebooks}|{result['method']}|{result['error']:.4f}|"
                    f"{result['train_s']:.0f}|{result['encode_frames_per_s']}|"
                    f"{result['train_peak_mb']}|",
                    flush=True,
                )
                if args.output:
                    with open(args.output, "a", encoding="utf-8") as out:
                        out.write(line + "\n")


if __name__ == "__main__":
    main()
