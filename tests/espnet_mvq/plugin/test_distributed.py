"""Two processes train together though one of them has no indexes."""

import os

import pytest
import torch
import torch.distributed as dist
from test_criterion_weighting import rnnt_loss  # noqa: F401
from test_tasks import build
from torch.nn.parallel import DistributedDataParallel


def train(rank, folder, model, batch):
    """Take two steps; each rank writes its weights."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    if rank == 1:
        batch = {k: v for k, v in batch.items() if not k.startswith("codebook")}
    # As ESPnet: unused parameters are an error
    parallel = DistributedDataParallel(model, find_unused_parameters=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss, stats, weight = parallel(**batch)
        loss.backward()
        optimizer.step()
    names = sorted(stats)
    torch.save((model.state_dict(), names), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_one_without_indexes(build_model, batch, tmp_path):
    model = build_model({"layer": 1})
    before = model.mvq.codebook_indexes.head.weight.detach().clone()
    torch.multiprocessing.start_processes(
        train, (str(tmp_path), model, batch), nprocs=2, start_method="fork"
    )
    (first, names), (second, other_names) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert names == other_names and "loss_mvq" in names
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["mvq.codebook_indexes.head.weight"], before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("rnnt_loss")
def test_ranks_have_the_same_statistics(batch, training):
    """ESPnet gathers them one by one: a rank that lacks one hangs all.

    The task asr_transducer leaves out an auxiliary loss that is 0.
    """
    weights = {"auxiliary_ctc_weight": 0.3, "auxiliary_lm_loss_weight": 0.2}
    model = build("asr_transducer", model_conf=weights).train(training)
    names = []
    for flag in (0.0, 1.0):
        inputs = {key: value.clone() for key, value in batch.items()}
        stats = model(**inputs, unlabelled=torch.full((3, 1), flag))[1]
        names.append([name for name, value in stats.items() if value is not None])
    assert "loss_aux_ctc" in names[0] and names[0] == names[1]
