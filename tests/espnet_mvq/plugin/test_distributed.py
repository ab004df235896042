"""Two processes train together though one of them has no indexes."""

import pytest
import torch
from builders import build_model, build_task, step, train_on_two_ranks, without


def test_two_ranks_one_without_indexes(batch, tmp_path):
    model = build_model({"layer": 1})
    before = model.mvq.codebook_indexes.head.weight.detach().clone()
    state, names = train_on_two_ranks(tmp_path, model, [batch, without(batch)])
    assert "loss_mvq" in names
    assert not torch.equal(state["mvq.codebook_indexes.head.weight"], before)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("rnnt_loss")
def test_ranks_have_the_same_statistics(batch, training):
    """ESPnet gathers them one by one: a rank that lacks one hangs all.

    The task asr_transducer leaves out an auxiliary loss that is 0.
    """
    weights = {"auxiliary_ctc_weight": 0.3, "auxiliary_lm_loss_weight": 0.2}
    model = build_task("asr_transducer", model_conf=weights).train(training)
    names = []
    for flag in (0.0, 1.0):
        inputs = {**batch, "unlabelled": torch.full((3, 1), flag)}
        stats = step(model, inputs).stats
        names.append([name for name, value in stats.items() if value is not None])
    assert "loss_aux_ctc" in names[0] and names[0] == names[1]
