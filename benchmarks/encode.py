#!/usr/bin/env python3
"""Speed and memory of encoding, beside multi_quantization with the same codebooks.

A quantizer is trained on the given frames and written for multi_quantization; both
libraries then encode the same frames. The floor is the one product of frames and
codebooks that no search can do without. Frames of a higher dimension are made by
putting neighbouring frames side by side.

Needs: pip install multi_quantization==0.1.1

Example:
    python3 benchmarks/encode.py --frames train_layer3.npy --threads 1
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import multi_quantization
import numpy as np
import torch
from memory import peak_mb

from espnet_mvq.quantization import Quantizer, QuantizerTrainer

MEMORY_FRAMES = 180_000  # one hour at 50 Hz


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--frames", required=True, help="npy, float (F, D)")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 1024])
    parser.add_argument("--num_codebooks", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument(
        "--train_frames", type=int, default=20_000, help="frames of the training"
    )
    parser.add_argument(
        "--encode_frames", type=int, default=16_384, help="frames that we encode"
    )
    parser.add_argument(
        "--mq_frames", type=int, default=256, help="of these, that they encode"
    )
    parser.add_argument("--memory_of", nargs=3, help=argparse.SUPPRESS)  # child process
    return parser


def widen(frames: np.ndarray, dim: int) -> torch.Tensor:
    """Put frames side by side until they have `dim` channels: (F', dim)."""
    count = -(-dim // frames.shape[1])
    usable = len(frames) // count * count
    wide = frames[:usable].reshape(-1, count * frames.shape[1])[:, :dim]
    return torch.from_numpy(np.ascontiguousarray(wide, dtype=np.float32))


def seconds_of(function, repeats: int = 3) -> float:
    """Return the shortest of a few runs, in seconds; the first one warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def measure_memory(path: str, dim: int) -> float:
    """Return the peak memory of encoding an hour beyond input and output, in MB."""
    quantizer = Quantizer.load(path)
    x = torch.randn(MEMORY_FRAMES, dim)
    # Compiling takes memory that is not the search's; a quantizer of its own, as the
    # tables of the one that is measured count.
    Quantizer(torch.randn(2, 4, 8)).encode(torch.randn(128, 8))
    return peak_mb(lambda: quantizer.encode(x)) - len(x) * quantizer.num_codebooks / 1e6


def compare(x: torch.Tensor, num_codebooks: int, args) -> dict:
    """Train a quantizer and encode with both libraries."""
    dim = x.shape[1]
    trainer = QuantizerTrainer(dim, num_codebooks, num_iterations=4)
    ours = trainer.fit(x[: args.train_frames])
    y = x[-args.encode_frames :]
    with tempfile.TemporaryDirectory() as folder:
        ours.to_multi_quantization(Path(folder) / "theirs.pt")
        ours.save(Path(folder) / "ours.safetensors")
        theirs = multi_quantization.Quantizer(dim, 256, num_codebooks)
        theirs.load_state_dict(torch.load(Path(folder) / "theirs.pt"))
        child = [sys.executable, __file__, "--frames", "", "--memory_of"]
        child += [str(Path(folder) / "ours.safetensors"), str(dim), str(args.threads)]
        memory = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
    z = y[: args.mq_frames]
    with torch.no_grad():
        their_s = seconds_of(lambda: theirs.encode(z, 5), 1) / len(z)
        their_error = ours.relative_reconstruction_error(z, theirs.encode(z, 5))
    entries = ours.codebooks.reshape(-1, dim)
    floor_s = seconds_of(lambda: y @ entries.T) / len(y)
    our_s = seconds_of(lambda: ours.encode(y)) / len(y)
    return {
        "dim": dim,
        "num_codebooks": num_codebooks,
        "frames_per_s": round(1 / our_s),
        "times_floor": round(our_s / floor_s, 2),
        "multi_quantization_frames_per_s": round(1 / their_s, 1),
        "speedup": round(their_s / our_s),
        "error": round(ours.relative_reconstruction_error(z), 5),
        "multi_quantization_error": round(their_error, 5),
        "peak_mb_of_an_hour": round(json.loads(memory.stdout)),
    }


def main(cmd=None) -> None:
    """Run all sizes."""
    args = get_parser().parse_args(cmd)
    if args.memory_of:
        torch.set_num_threads(int(args.memory_of[2]))
        print(json.dumps(measure_memory(args.memory_of[0], int(args.memory_of[1]))))
        return
    torch.set_num_threads(args.threads)
    frames = np.load(args.frames, mmap_mode="r")
    head = None
    for dim in args.dims:
        x = widen(frames, dim)
        for num_codebooks in args.num_codebooks:
            result = compare(x, num_codebooks, args)
            if head is None:
                head = list(result)
                print(f"|{'|'.join(head)}|\n|{'-|' * len(head)}")
            print(f"|{'|'.join(str(result[key]) for key in head)}|", flush=True)


if __name__ == "__main__":
    main()
