"""ESPnet's launcher trains two ranks, of which one never sees codebook indexes."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from builders import python_environment

# Slurm's part: `slurm.pl OPTIONS LOG srun --export=ALL COMMAND` runs the command once
# on each of two nodes.
SLURM_PL = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift 2; done
log=$1; shift
exec "$@" >"$log" 2>&1
"""
SRUN = """#!/bin/sh
shift
export SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST='node[0-1]'
SLURM_PROCID=0 SLURM_NODEID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_NODEID=1 SLURM_LOCALID=0 "$@" & second=$!
wait $first; code=$?
wait $second && exit $code
"""
# Notes what each rank was trained on and where it ended: ESPnet saves rank 0 alone.
SITECUSTOMIZE = """
import hashlib, json, sys
if sys.orig_argv[2:5:2] == ["espnet_mvq.run", "espnet2.bin.{task}_train"]:
    import torch
    from espnet2.train.trainer import Trainer
    run = Trainer.run.__func__

    def run_and_note(cls, model, distributed_option, **others):
        frames = []
        def note(module, args, batch):
            if module.training:
                frames.append(int(batch["codebook_indexes_lengths"].sum()))
        model.register_forward_pre_hook(note, with_kwargs=True)
        run(cls, model=model, distributed_option=distributed_option, **others)
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        name = f"{folder}/rank{distributed_option.dist_rank}.json"
        with open(name, "w") as file:
            json.dump({"frames": frames, "parameters": digest.hexdigest()}, file)

    Trainer.run = classmethod(run_and_note)
"""


def launch(folder, config, task):
    """Train as ESPnet's recipes do with `--num_nodes 2` and Slurm, without GPUs."""
    for name, script in (("slurm.pl", SLURM_PL), ("srun", SRUN)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    site = SITECUSTOMIZE.replace("{folder}", str(folder)).replace("{task}", task)
    (folder / "sitecustomize.py").write_text(site)
    python = [sys.executable, "-m", "espnet_mvq.run"]
    command = [*python, "-m", "espnet2.bin.launch", "--cmd", "slurm.pl"]
    command += ["--log", f"{folder}/train.log", "--ngpu", "0", "--num_nodes", "2"]
    command += ["--init_file_prefix", f"{folder}/.dist_init_"]
    command += ["--multiprocessing_distributed", "true", "--"]
    command += [*python, "-m", f"espnet2.bin.{task}_train", "--config", str(config)]
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**python_environment(folder), "PATH": path}
    # In a session of its own: ranks that wait for each other must be ended too
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        errors = process.communicate(timeout=300)[1]
        return process.returncode, errors
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "task, write", [("asr", "write_training"), ("ssl", "write_pretraining")]
)
def test_two_ranks_of_slurm_one_without_indexes(tmp_path, request, task, write):
    # Rank 1 of 2 gets the odd utterances of every batch.
    config = request.getfixturevalue(write)(with_indexes=range(0, 8, 2))
    returncode, errors = launch(tmp_path, config, task)
    assert returncode == 0, errors
    first, second = (
        json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)
    )
    # 2 epochs of 2 batches
    assert first["frames"] == [48] * 4 and second["frames"] == [0] * 4
    assert first["parameters"] == second["parameters"]
    heads = [
        torch.load(tmp_path / "exp" / f"{epoch}epoch.pth")[
            "mvq.codebook_indexes.head.weight"
        ]
        for epoch in (1, 2)
    ]
    assert not torch.equal(*heads)
    log = (tmp_path / "train.log").read_text()
    assert log.count("registered model 'mvq'") == 2
    assert ":0/2]" in log and "2epoch results: [train]" in log
