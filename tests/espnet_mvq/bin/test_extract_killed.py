"""An extraction killed again and again ends with the bytes of an undisturbed one."""

import random
import signal
import subprocess
import sys
import time

import pytest
from builders import ROOT
from corpus_builders import write_speech

from espnet_mvq.files.scp import read_scp
from espnet_mvq.indexes.shard import shard_paths

NUM_UTTERANCES = 150


@pytest.fixture
def command(data_dir, quantizer, teacher_options, tmp_path):
    """Return a function that gives the command line for a folder of shards."""
    lengths = {f"many{n:03d}": 24_000 for n in range(NUM_UTTERANCES)}
    scp = write_speech(tmp_path / "many", lengths) / "wav.scp"

    def build(outdir):
        return [
            *(sys.executable, "-m", "espnet_mvq.bin.extract", *teacher_options),
            *("--wav_scp", str(scp), "--quantizer", str(quantizer)),
            *("--outdir", str(outdir)),
        ]

    return build


def test_kills_change_nothing(command, tmp_path):
    subprocess.run(command(tmp_path / "whole"), cwd=ROOT, check=True)
    outdir = tmp_path / "killed"
    growing = outdir / "codebook_indexes.1.ark.tmp"
    generator = random.Random(0)
    kills = 0
    while kills < 3:
        size = growing.stat().st_size if growing.exists() else 0
        process = subprocess.Popen(command(outdir), cwd=ROOT, stderr=subprocess.DEVNULL)
        # Once it writes: a moment more, then the end
        while process.poll() is None:
            if growing.exists() and growing.stat().st_size > size:
                time.sleep(generator.uniform(0, 0.2))
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break  # done before it was hit
        kills += 1
    assert kills > 0
    subprocess.run(command(outdir), cwd=ROOT, check=True)
    for ours, expected in zip(
        shard_paths(outdir, 1)[:2], shard_paths(tmp_path / "whole", 1)[:2]
    ):
        content = ours.read_bytes().replace(b"/killed/", b"/whole/")
        assert content == expected.read_bytes()
    assert len(read_scp(shard_paths(outdir, 1)[1])) == NUM_UTTERANCES
