#!/usr/bin/env python3
"""Train a quantizer of Faiss on stored embeddings and write it as a quantizer file."""

import argparse
import logging
from pathlib import Path

import faiss
import numpy as np
import torch

from espnet_mvq.extraction.frame_sampling import draw_frames
from espnet_mvq.quantization import Quantizer
from espnet_mvq.teachers.feature_files import read_features

BEAM_SIZE = 8  # of the residual quantizer's training


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Train Faiss's product (pq) or residual quantizer (rq) with 256 "
        "entries per codebook. mvq.sh encodes with the search of espnet_mvq, which "
        "gives Faiss's own indexes for pq and better ones for rq.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--feats", required=True, help="scp of embeddings")
    parser.add_argument("--kind", choices=["pq", "rq"], required=True)
    parser.add_argument("--num_codebooks", type=int, default=8, help="Bytes per frame")
    parser.add_argument("--max_frames", type=int, default=160_000, help="For training")
    parser.add_argument("--out", required=True, help="Quantizer file to write")
    return parser


def train(frames: np.ndarray, kind: str, num_codebooks: int) -> np.ndarray:
    """Train a quantizer.

    Args:
        frames: Embeddings without their mean, float32, (F, D).
        kind: pq or rq.
        num_codebooks: Codebooks N; a divisor of D for pq.

    Returns:
        Codebooks, float32, (N, 256, D). Those of pq are 0 outside of their channels.
    """
    dim = frames.shape[1]
    if kind == "rq":
        quantizer = faiss.ResidualQuantizer(dim, num_codebooks, 8)
        quantizer.max_beam_size = BEAM_SIZE
        quantizer.train(frames)
        codebooks = faiss.vector_to_array(quantizer.codebooks)
        return codebooks.reshape(num_codebooks, 256, dim)
    quantizer = faiss.ProductQuantizer(dim, num_codebooks, 8)
    quantizer.train(frames)
    parts = faiss.vector_to_array(quantizer.centroids).reshape(num_codebooks, 256, -1)
    codebooks = np.zeros((num_codebooks, 256, num_codebooks, parts.shape[2]), "float32")
    for number, part in enumerate(parts):
        codebooks[number, :, number] = part
    return codebooks.reshape(num_codebooks, 256, dim)


def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    embeddings = (
        (utt_id, torch.from_numpy(np.array(frames, dtype=np.float32)))
        for utt_id, frames in read_features(args.feats)
    )
    frames = draw_frames(embeddings, args.max_frames).frames.numpy()
    mean = frames.mean(0)
    codebooks = train(frames - mean, args.kind, args.num_codebooks)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    quantizer = Quantizer(
        torch.from_numpy(codebooks),
        torch.from_numpy(mean),
        provenance={"made_by": f"Faiss {faiss.__version__}, {args.kind}"},
    )
    quantizer.save(args.out)
    error = float(quantizer.relative_reconstruction_error(torch.from_numpy(frames)))
    logging.info(f"{args.out}: relative reconstruction error {error:.4f} in training")


if __name__ == "__main__":
    main()
