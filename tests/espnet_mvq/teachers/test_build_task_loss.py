"""Teachers with a task loss, and the errors of the others."""

import pytest
import torch

from espnet_mvq.teachers import TeacherError
from espnet_mvq.teachers.task_loss import TaskLoss, build_task_loss

OUT_OF_RANGE = [{"dtype": d} for d in ("float8", None, [], 3)]
OUT_OF_RANGE += [{"batch_s": s} for s in (-1.0, "x", None, True, float("nan"))]


@pytest.mark.parametrize(
    "spec",
    ["s3prl/hubert_base", "s3prl/x_local:y", "feats/a.scp", "hubert", "espnet/", "/x"],
)
def test_back_ends_without_a_task_head(spec):
    with pytest.raises(TeacherError, match="has no task head.*ForCTC.*espnet/EXP_DIR"):
        build_task_loss(spec)


@pytest.mark.parametrize(
    "kind, model", [("Hubert", "Model"), ("Whisper", "Model"), ("Whisper", "Encoder")]
)
def test_models_without_a_task_head(save_model, kind, model):
    path = save_model(kind, model=model)
    message = f"a {kind}{model} of type '{kind.lower()}' has no task head; expected"
    with pytest.raises(TeacherError, match=message):
        build_task_loss(f"transformers/{path}")


def test_type_of_model_that_is_not_known(tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="a model of type 'bert' has no task head"):
        build_task_loss(f"transformers/{tmp_path}")


@pytest.mark.parametrize("options", OUT_OF_RANGE)
def test_options_out_of_range(save_model, options):
    with pytest.raises(TeacherError, match="expected a dtype of float32"):
        build_task_loss("espnet/exp", **options)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(TeacherError, match="no (such model|config.json)"):
        build_task_loss(f"transformers/{tmp_path}/none")


class Constant(TaskLoss):
    """Two nats a label, on a waveform that must be float32 on the CPU."""

    def encode(self, text):
        return torch.arange(len(text))

    def _losses(self, waveforms, labels):
        assert not torch.is_grad_enabled()
        assert all(w.dtype == torch.float32 and not w.requires_grad for w in waveforms)
        return [2.0 * len(row) for row in labels]


def test_loss_and_number_of_labels():
    waveforms = [torch.zeros(5, dtype=torch.float64), torch.ones(3, requires_grad=True)]
    assert Constant().loss(waveforms, ["abc", "d"]) == ([6.0, 2.0], [3, 1])
