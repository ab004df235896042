"""Options of the teacher that cannot be: each ends in one line."""

import argparse
import re

import pytest
import torch

from espnet_mvq.bin.options import command, key_and_value
from espnet_mvq.bin.train_quantizer import main


@pytest.fixture
def run(data_dir, teacher_dir, tmp_path):
    def call(*options):
        paths = ["--wav_scp", f"{data_dir}/wav.scp", "--quantizer", f"{tmp_path}/q"]
        main([*paths, "--teacher", f"transformers/{teacher_dir}", *options])

    return call


@pytest.mark.parametrize(
    "options, message",
    [
        ("--teacher_conf device=cuda", "device=cuda: .* use --ngpu instead"),
        ("--teacher_conf dtype=float16", "dtype=float16: .* use --dtype instead"),
        ("--teacher_conf batch_s=1", "batch_s=1: .* use --batch_s instead"),
        ("--teacher_conf spec=x", "spec=x: .* use --teacher instead"),
        ("--teacher_conf name=x", "name=x: .* use --teacher instead"),
        ("--teacher_conf config=x", "unknown option: config; expected none here"),
        ("--teacher_conf self=x", "unknown option: self; expected none here"),
        ("--batch_s inf", "batch_s inf, .* 0 s or more"),
        ("--teacher /x", "got '/x', expected BACKEND/NAME"),
        ("--teacher s3prl/:x", "s3prl has no upstream ''"),
        ("--teacher s3prl/Path", "s3prl could not load it"),
        (
            "--teacher s3prl/mel --layer 0 --teacher_conf frame_offset_samples=-1",
            "-1, e",
        ),
        (
            "--teacher feats/.",
            "feats/.: the frame shift of its embeddings is not known",
        ),
        ("--teacher feats/. --teacher_conf frame_shift_samples=1", "got the ending ''"),
        ("--teacher espnet/~", "no such file .*config.yaml"),
    ],
)
def test_one_line(run, ends_with_error, options, message):
    error = ends_with_error(run, *options.split())
    assert re.search(message, error), error


def test_full_memory_of_a_gpu(ends_with_error):
    @command
    def full(cmd):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    error = ends_with_error(full)
    assert error.startswith("the GPU's memory is full: use a smaller --batch_s (CUDA")


@pytest.mark.parametrize("text", ["window_s={", "=1", "a=@"])
def test_malformed_key_and_value(run, capsys, text):
    with pytest.raises(SystemExit) as ended:
        run("--teacher_conf", text)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert f"got {text!r}, expected KEY=VALUE" in lines[-1]
    with pytest.raises(argparse.ArgumentTypeError):
        key_and_value(text)
