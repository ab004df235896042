#!/usr/bin/env python3
"""Value of more search: error and speed, stability and predictability of the indexes.

A student has to predict the indexes. A search that lowers the error is no gain if the
slightest noise changes its indexes. Measured for several efforts: the relative
reconstruction error, the fraction of indexes that stay the same under noise of 1 % of
the variance, and the scores of a linear classifier that predicts them from the frame.

Example:
    python3 benchmarks/search_effort.py --train train_layer3.npy \
        --held_out dev_layer3.npy --quantizer quantizer.safetensors
"""

import argparse
import time

import numpy as np
import torch

from espnet_mvq.quantization import Quantizer
from espnet_mvq.quantization.quality import label_stability, linear_probe

EFFORTS = {
    "greedy": {"beam_size": 1, "refine_passes": 0},
    "beam 1, singles": {"beam_size": 1, "pair_candidates": 0},
    "beam 8": {"refine_passes": 0},
    "beam 16": {"beam_size": 16, "refine_passes": 0},
    "beam 32": {"beam_size": 32, "refine_passes": 0},
    "beam 8, singles": {"pair_candidates": 0},
    "beam 8, singles and pairs (default)": {},
    "beam 8, singles and more pairs": {"pair_candidates": 4},
    "beam 16, singles and pairs": {"beam_size": 16},
    "4 perturbations more": {"perturbation_rounds": 4},
    "16 perturbations more": {"perturbation_rounds": 16},
}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--quantizer", required=True, help="safetensors file")
    parser.add_argument("--train", required=True, help="npy to train the probe on")
    parser.add_argument("--held_out", required=True, help="npy to measure on")
    parser.add_argument("--probe_frames", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    return parser


def main(cmd=None) -> None:
    """Run all efforts."""
    args = get_parser().parse_args(cmd)
    torch.set_num_threads(args.threads)
    quantizer = Quantizer.load(args.quantizer)
    x = torch.from_numpy(np.load(args.train)[: args.probe_frames].astype(np.float32))
    y = torch.from_numpy(np.load(args.held_out).astype(np.float32))
    quantizer.encode(y[:128])  # compiles
    print("|search|error|frames/s|stable %|probe accuracy %|probe nats|entropy nats|")
    print("|-|-|-|-|-|-|-|")
    for name, options in EFFORTS.items():
        start = time.perf_counter()
        indexes = quantizer.encode(y, **options)
        speed = len(y) / (time.perf_counter() - start)
        error = quantizer.relative_reconstruction_error(y, indexes)
        stability = label_stability(quantizer, y, indexes, 0.01, **options)
        probe = linear_probe(
            (x, quantizer.encode(x, **options)), (y, indexes), quantizer.codebook_size
        )
        print(
            f"|{name}|{error:.4f}|{speed:.0f}|{100 * stability.mean_unchanged:.1f}|"
            f"{100 * probe.accuracy.mean():.1f}|{probe.cross_entropy_nats.mean():.3f}|"
            f"{probe.entropy_nats.mean():.3f}|",
            flush=True,
        )


if __name__ == "__main__":
    main()
