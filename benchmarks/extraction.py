#!/usr/bin/env python3
"""Speed of the whole extraction beside the teacher's forward pass alone.

The same utterances in the same batches run through the teacher, from memory, and
through the extraction: files are read and decoded, embeddings quantized, indexes
written. Both take turns on small portions, so that other work on the machine slows
both down; the figures are sums over the portions.

Example:
    python3 benchmarks/extraction.py --corpus .../LibriSpeech/dev-clean \
        --teacher transformers/openai/whisper-tiny.en --threads 1
"""

import argparse
import logging
import tempfile
import time
from typing import Dict, List

import torch
from embeddings import find_audio

from espnet_mvq.bin.options import (
    add_logging_options,
    add_teacher_options,
    load_teacher,
    setup_logging,
)
from espnet_mvq.extraction.embedding_stream import embed_batches, plan_batches
from espnet_mvq.extraction.frame_sampling import sample_frames
from espnet_mvq.extraction.pipeline import shard_metadata, to_arrays
from espnet_mvq.extraction.selection import shuffle_over_speakers
from espnet_mvq.indexes import ShardWriter
from espnet_mvq.quantization import Quantizer, QuantizerTrainer
from espnet_mvq.teachers import Teacher

RANDOM_HUBERT = "hubert-base-shaped"


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--corpus", required=True, help="folder with SPEAKER/CHAPTER/*.flac|opus|wav"
    )
    add_teacher_options(parser)
    parser.add_argument("--num_codebooks", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--utterances", type=int, default=48, help="utterances timed")
    parser.add_argument("--portion", type=int, default=8, help="utterances in turn")
    parser.add_argument("--train_frames", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that read")
    parser.add_argument("--seed", type=int, default=0)
    add_logging_options(parser)
    return parser


def save_random_hubert(folder: str) -> str:
    """Save a model of HuBERT base's shape with random weights; return its name."""
    from transformers import HubertConfig, HubertModel

    HubertModel(HubertConfig()).save_pretrained(folder)
    return f"transformers/{folder}"


def measure(
    args: argparse.Namespace,
    teacher: Teacher,
    quantizer: Quantizer,
    places: Dict[str, str],
) -> Dict[str, float]:
    """Return seconds of teacher, extraction and quantizing, and of speech."""
    metadata = shard_metadata(teacher, quantizer)
    seconds = dict.fromkeys(("teacher", "extraction", "quantizing", "speech"), 0.0)
    utt_ids = list(places)
    portions = [
        utt_ids[n : n + args.portion] for n in range(0, len(utt_ids), args.portion)
    ]
    with (
        tempfile.TemporaryDirectory() as folder,
        ShardWriter(folder, 1, metadata) as shard,
    ):
        for number, portion in enumerate([portions[0], *portions]):
            waveforms = {u: teacher.read(u, places[u]) for u in portion}
            batches = plan_batches(teacher, {u: len(w) for u, w in waveforms.items()})

            start = time.perf_counter()
            embeddings = [
                teacher.embed_batch([waveforms[u] for u in batch]) for batch in batches
            ]
            teacher_s = time.perf_counter() - start

            start = time.perf_counter()
            for batch in embed_batches(teacher, batches, places, args.num_workers):
                arrays = to_arrays(list(batch.values()), quantizer, metadata)
                for utt_id, array in zip(batch, arrays):
                    shard.write(f"{utt_id}-{number}", array)
            extraction_s = time.perf_counter() - start

            start = time.perf_counter()
            for batch in embeddings:
                to_arrays(batch, quantizer, metadata)
            quantizing_s = time.perf_counter() - start
            if number == 0:
                continue  # that was the warm-up
            seconds["teacher"] += teacher_s
            seconds["extraction"] += extraction_s
            seconds["quantizing"] += quantizing_s
            seconds["speech"] += sum(map(len, waveforms.values())) / teacher.sample_rate
    return seconds


def row(args: argparse.Namespace, teacher: Teacher, n: int, s: Dict[str, float]) -> str:
    """Return a line of the table."""
    cells: List[object] = [
        teacher.id.split("@")[0],
        ",".join(f"{k}={v}" for k, v in args.teacher_conf) or "-",
        teacher.layer,
        n,
        f"{s['teacher'] / s['speech']:.4f}",
        f"{s['extraction'] / s['speech']:.4f}",
        f"{100 * s['teacher'] / s['extraction']:.1f}",
        f"{100 * s['quantizing'] / s['extraction']:.1f}",
    ]
    return "|" + "|".join(map(str, cells)) + "|"


def main(cmd=None) -> None:
    """Run the script."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    everything = find_audio(args.corpus)
    order = shuffle_over_speakers(list(everything), None, args.seed)
    places = {u: everything[u] for u in order[: args.utterances]}
    others = {u: everything[u] for u in order[args.utterances :]}
    with tempfile.TemporaryDirectory() as folder:
        if args.teacher == RANDOM_HUBERT:
            args.teacher = save_random_hubert(f"{folder}/{RANDOM_HUBERT}")
        teacher = load_teacher(args)
        frames = sample_frames(teacher, others, args.train_frames, args.seed)
        print(
            "|teacher|options|layer|bytes|teacher, s per s|extraction, s per s|"
            "speed of the teacher alone, %|quantizing, % of the time|\n"
            + "|---" * 8
            + "|"
        )
        for num_codebooks in args.num_codebooks:
            trainer = QuantizerTrainer(
                teacher.dim, num_codebooks, num_iterations=4, device=teacher.device
            )
            quantizer = trainer.fit(frames).to(teacher.device)
            logging.info(f"timing {quantizer}")
            seconds = measure(args, teacher, quantizer, places)
            print(row(args, teacher, num_codebooks, seconds), flush=True)


if __name__ == "__main__":
    main()
