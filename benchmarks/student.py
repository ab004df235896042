#!/usr/bin/env python3
"""Cost of distillation for the student: the loss alone, and one training step.

1. The codebook loss, forward and backward, beside multi_quantization's
   `JointCodebookLoss(is_joint=False)` on the same random frames: once as that library
   does by default (logits computed again in the backward pass, "checkpoint") and once
   keeping them. Times are medians of interleaved runs; peak memory is that of forward
   and backward beyond frames, targets and weights, in a process of its own each. The
   rows below them compare the options of our loss with our plain one.
2. A training step (forward, backward, AdamW) of an ESPnet ASR model with `model: mvq`
   beside the same model without: 12 conformer blocks of 256 channels, 6 transformer
   decoder blocks, 500 tokens, and a 50 Hz teacher, so two teacher frames per student
   frame. The targets are 16 codebook indexes, embeddings of 1024 channels (both of
   layer 6), or the 8 best posteriors of a CTC teacher. All data are random.

Needs: pip install multi_quantization==0.1.1

Example:
    python3 benchmarks/student.py --threads 1 --frames 3000 --utterances 8 --repeats 7
"""

import argparse
import contextlib
import json
import logging
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Optional

import torch
from memory import peak_mb
from multi_quantization.prediction import JointCodebookLoss

import espnet_mvq
from espnet_mvq.distillation import (
    IndependentHead,
    JointHead,
    codebook_loss,
    soft_target_table,
    sparse_posteriors,
    unit_variance_codebooks,
)

CODEBOOK_SIZE = 256
NUM_CODEBOOKS = 16
DIM = 1024  # of the teacher's embeddings, where the loss looks at them
SAMPLE_RATE = 16_000
TOKENS = 500
TOKENS_PER_S = 4
MODEL = {
    "token_list": ["<blank>", "<unk>", *map(str, range(TOKENS - 3)), "<sos/eos>"],
    "token_type": "bpe",
    "specaug": None,
    "normalize": "utterance_mvn",
    "frontend_conf": {"n_fft": 512, "win_length": 400, "hop_length": 160},
    "encoder": "conformer",
    "encoder_conf": {
        "output_size": 256,
        "attention_heads": 4,
        "linear_units": 2048,
        "num_blocks": 12,
        "input_layer": "conv2d",
        "macaron_style": True,
        "rel_pos_type": "latest",
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
        "activation_type": "swish",
        "use_cnn_module": True,
        "cnn_module_kernel": 31,
    },
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 4, "linear_units": 2048, "num_blocks": 6},
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1},
}
TOP_K = 8  # tokens of stored posteriors
FRAMES = {
    "sample_rate": SAMPLE_RATE,
    "frame_shift_samples": 320,
    "frame_offset_samples": 199.5,
}
# Rows of the second table: data of the batch, and options of the target
TARGETS = {
    "MVQ": (
        "codebook_indexes",
        {
            "layer": 6,
            "num_codebooks": NUM_CODEBOOKS,
            "codebook_size": CODEBOOK_SIZE,
            "quantizer_id": "0123456789abcdef",
        },
    ),
    f"l2, {DIM} channels": ("embeddings", {"loss": "l2", "layer": 6, "dim": DIM}),
    f"posteriors, {TOP_K} best tokens": (
        "posteriors",
        {"loss": "posteriors", "layer": -1, "token_list": MODEL["token_list"]},
    ),
}


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--parts", nargs="+", default=["loss", "step"], choices=["loss", "step"]
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each method")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--cpu_time",
        action="store_true",
        help="processor time in place of wall time, if the machine is busy otherwise",
    )
    parser.add_argument(
        "--amp", action="store_true", help="autocast to bfloat16 (slow on CPUs without)"
    )
    parser.add_argument("--frames", type=int, default=3000, help="student frames")
    parser.add_argument("--channels", type=int, default=512, help="of these frames")
    parser.add_argument(
        "--num_targets", type=int, nargs="+", default=[16, 32], help="indexes per frame"
    )
    parser.add_argument("--utterances", type=int, default=8, help="of the step's batch")
    parser.add_argument("--seconds", type=float, nargs=2, default=[5, 12])
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)  # child process
    return parser


def synchronize(device: str) -> None:
    """Wait for the device to be done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(functions: dict, args: argparse.Namespace) -> dict:
    """Run functions in turn, return the median of each; a first round warms up."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    times = {name: [] for name in functions}
    for _ in range(args.repeats + 1):
        for name, function in functions.items():
            synchronize(args.device)
            start = clock()
            function()
            synchronize(args.device)
            times[name].append(clock() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def autocast(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Return the precision of the forward pass."""
    kind = args.device.split(":")[0]
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=args.amp)


def print_table(rows: list) -> None:
    """Print dicts with the same keys as a markdown table."""
    print(f"|{'|'.join(rows[0])}|\n|{'-|' * len(rows[0])}")
    for row in rows:
        print(f"|{'|'.join(str(value) for value in row.values())}|")
    print(flush=True)


def loss_functions(num_targets: int, args: argparse.Namespace) -> dict:
    """Build one function per method that runs forward and backward.

    Each takes the number of frames to use of the `args.frames` that there are.
    """
    device, channels = args.device, args.channels
    x = torch.randn(args.frames, channels, device=device, requires_grad=True)
    targets = torch.randint(0, CODEBOOK_SIZE, (args.frames, num_targets), device=device)
    codebooks = torch.randn(NUM_CODEBOOKS, CODEBOOK_SIZE, DIM, device=device)
    size = num_targets, CODEBOOK_SIZE

    def ours(kind=IndependentHead, **options):
        head = kind(channels, *size).to(device)

        def run(count):
            part = x[None, :count], targets[None, :count]
            with autocast(args):
                loss = codebook_loss(head, *part, **options).loss
            finish(loss, head)

        return run

    def theirs(**options):
        module = JointCodebookLoss(channels, size[0], 512, size[1], **options)
        module.to(device)

        def run(count):
            with autocast(args):
                loss = module(x[:count], targets[:count])
            finish(loss, module)

        return run

    def finish(loss, module):
        loss.backward()
        x.grad = None
        module.zero_grad()

    builders = {
        "espnet_mvq": lambda: ours(),
        "multi_quantization": lambda: theirs(is_joint=False),
        "multi_quantization, no checkpoint": lambda: theirs(
            is_joint=False, checkpoint=False
        ),
        "label smoothing": lambda: ours(label_smoothing=0.1),
        "soft targets": lambda: ours(soft_targets=soft_target_table(codebooks)),
        f"embedding error, D {DIM}": lambda: ours(
            codebooks=unit_variance_codebooks(codebooks), embedding_weight=1.0
        ),
        "joint head": lambda: ours(JointHead),
        "multi_quantization, joint": lambda: theirs(is_joint=True),
    }
    if args.memory_of:  # only the measured method
        name = json.loads(args.memory_of)["name"]
        return {name: builders[name]()}
    return {name: build() for name, build in builders.items()}


def measure_memory(args: argparse.Namespace) -> float:
    """Return the peak memory of a method beyond that before it starts, in MB."""
    ((run),) = loss_functions(json.loads(args.memory_of)["num_targets"], args).values()
    run(8)  # libraries load on first use
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(args.device)
        before = torch.cuda.memory_allocated(args.device)
        run(args.frames)
        return (torch.cuda.max_memory_allocated(args.device) - before) / 1e6
    return peak_mb(lambda: run(args.frames))


def memory_in_child(name: str, num_targets: int, cmd: list) -> float:
    """Measure the memory of a method in a new process, in MB."""
    method = json.dumps({"name": name, "num_targets": num_targets})
    child = [sys.executable, __file__, *cmd, "--memory_of", method]
    done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def compare_losses(args: argparse.Namespace, cmd: list) -> None:
    """Measure the loss alone."""
    print(f"## Loss: {args.frames} frames of {args.channels} channels\n")
    rows = []
    for num_targets in args.num_targets:
        times = seconds_of(
            {
                name: lambda run=run: run(args.frames)
                for name, run in loss_functions(num_targets, args).items()
            },
            args,
        )
        memories = {name: memory_in_child(name, num_targets, cmd) for name in times}
        our_mb = memories["espnet_mvq"]
        for name, memory in memories.items():
            seconds = times[name]
            rows.append(
                {
                    "indexes per frame": num_targets,
                    "method": name,
                    "ms": f"{1000 * seconds:.1f}",
                    "MB": round(memory),
                    "time of espnet_mvq / its": f"{times['espnet_mvq'] / seconds:.2f}",
                    "memory of espnet_mvq / its": f"{our_mb / memory:.2f}",
                }
            )
    print_table(rows)


def build_model(mvq_conf: Optional[dict]) -> torch.nn.Module:
    """Build the ASR model as ESPnet's training does; without options, the stock one."""
    from espnet2.tasks.asr import ASRTask

    espnet_mvq.register()
    args = ASRTask.get_parser().parse_args(["--output_dir", "unused"])
    for name, value in MODEL.items():
        setattr(args, name, value)
    if mvq_conf is not None:
        args.model = "mvq"
        args.model_conf = {**args.model_conf, "mvq_conf": mvq_conf}
    torch.manual_seed(0)
    return ASRTask.build_model(args).train()


def make_targets(name: str, size: tuple) -> torch.Tensor:
    """Make random teacher data of (batch, frames)."""
    if name == "codebook_indexes":
        return torch.randint(0, CODEBOOK_SIZE, (*size, NUM_CODEBOOKS))
    if name == "embeddings":
        return torch.randn(*size, DIM)
    logits = 3 * torch.randn(*size, TOKENS)
    return torch.stack([sparse_posteriors(row, TOP_K) for row in logits]).long()


def make_batch(args: argparse.Namespace) -> dict:
    """Make a batch of random speech and text."""
    shortest, longest = args.seconds
    seconds = torch.rand(args.utterances) * (longest - shortest) + shortest
    samples = (seconds * SAMPLE_RATE).long()
    text_lengths = (seconds * TOKENS_PER_S).long()
    text = torch.randint(2, TOKENS - 1, (args.utterances, int(text_lengths.max())))
    padding = torch.arange(text.shape[1]) >= text_lengths[:, None]
    batch = {
        "speech": 0.1 * torch.randn(args.utterances, int(samples.max())),
        "speech_lengths": samples,
        "text": text.masked_fill(padding, -1),
        "text_lengths": text_lengths,
    }
    return {name: value.to(args.device) for name, value in batch.items()}


def compare_steps(args: argparse.Namespace) -> None:
    """Measure training steps without a teacher and with each kind of target."""
    batch = make_batch(args)
    total = float(batch["speech_lengths"].sum()) / SAMPLE_RATE
    print(f"## Training step: {args.utterances} utterances, {total:.0f} s of speech\n")
    lengths = (batch["speech_lengths"] - 400) // 320 + 1

    def stepper(model, batch):
        optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with autocast(args):
                loss, _, _ = model(**batch)
            loss.backward()
            optimizer.step()

        return step

    models = {"without": build_model(None)}
    functions = {"without": stepper(models["without"].to(args.device), batch)}
    for title, (name, options) in TARGETS.items():
        conf = {"targets": {name: {**FRAMES, **options}}}
        models[title] = build_model(conf).to(args.device)
        values = make_targets(name, (args.utterances, int(lengths.max())))
        data = {name: values.to(args.device), f"{name}_lengths": lengths}
        functions[title] = stepper(models[title], {**batch, **data})
    times = seconds_of(functions, args)
    print_table(
        [
            {
                "target": name,
                "million parameters": round(
                    sum(p.numel() for p in models[name].parameters()) / 1e6, 1
                ),
                "ms per step": f"{1000 * seconds:.0f}",
                "ratio": f"{seconds / times['without']:.3f}",
            }
            for name, seconds in times.items()
        ]
    )


def describe(args: argparse.Namespace) -> str:
    """Describe machine, versions and settings."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        processor = model.group(1) if model else processor
    device = args.device
    if device.startswith("cuda"):
        device = torch.cuda.get_device_name(device)
    return (
        f"{device}; {processor}, {args.threads} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, espnet_mvq "
        f"{espnet_mvq.__version__}, multi_quantization 0.1.1; "
        f"{'bfloat16 autocast' if args.amp else 'float32'}; medians of "
        f"{args.repeats} interleaved runs, {'processor' if args.cpu_time else 'wall'} "
        "time\n"
    )


def main(cmd=None) -> None:
    """Run the parts."""
    cmd = sys.argv[1:] if cmd is None else cmd
    args = get_parser().parse_args(cmd)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    logging.disable(logging.INFO)
    if args.memory_of:
        print(measure_memory(args))
        return
    print(describe(args))
    if "loss" in args.parts:
        compare_losses(args, cmd)
    if "step" in args.parts:
        compare_steps(args)


if __name__ == "__main__":
    main()
