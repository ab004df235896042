"""How much utterances count in the task's loss and in the teacher's."""

import argparse
import math

import pytest
import torch
from builders import build_model, without

from espnet_mvq.distillation import build_weighting
from espnet_mvq.indexes.teacher_losses import TeacherLossMetadata
from espnet_mvq.plugin.data_type import list_reader, teacher_loss_reader
from espnet_mvq.plugin.training_checks import complete_weighting

ADAKD = {"type": "adakd", "k_start": 2.0, "threshold": 1.0, "scale": 0.5}
# Without dropout an utterance alone has the loss that it has in a batch.
NO_DROPOUT = {"decoder_conf": {"dropout_rate": 0.0, "positional_dropout_rate": 0.0}}
TEACHER_LOSSES = torch.tensor([[0.2], [1.0], [1.9]])


@pytest.fixture
def batch(batch):
    """Return a batch of equally long utterances.

    At the end of a shorter one a spectrum sees zeros, where alone it sees an echo.
    """
    batch["speech"] = 0.1 * torch.randn(3, 9600)
    batch["speech_lengths"] = torch.full((3,), 9600)
    batch["codebook_indexes"] = torch.randint(0, 4, (3, 30, 2))
    batch["codebook_indexes_lengths"] = torch.full((3,), 30)
    return batch


def alone(batch, number):
    """Return one utterance of a batch, without its padding."""
    part = {k: v[number : number + 1] for k, v in batch.items()}
    for name in ("speech", "text", "codebook_indexes"):
        part[name] = part[name][:, : part[f"{name}_lengths"][0]]
    return part


def parts(batch, **options):
    """Return task loss and MVQ loss of each utterance, of a model without weighting."""
    model = build_model(**NO_DROPOUT, **options).train()
    losses = []
    for number in range(len(batch["speech"])):
        loss, stats, _ = model(**alone(batch, number))
        mvq = float(stats["loss_mvq"])
        losses.append((float(loss) - mvq, mvq))
    return losses


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
def test_adakd_is_its_formula(batch, ctc_weight):
    options = {"model_conf": {"ctc_weight": ctc_weight}}
    model = build_model({"weighting": ADAKD}, **NO_DROPOUT, **options).train()
    loss, stats, _ = model(**batch, teacher_loss=TEACHER_LOSSES)
    distances = [2.0 * (x - 1.0) / 0.5 for x in TEACHER_LOSSES.flatten().tolist()]
    alphas = [math.exp(-math.exp(distance / 2)) for distance in distances]
    each = parts(batch, **options)
    expected = sum((1 - a) * task + a * kd for a, (task, kd) in zip(alphas, each)) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(stats["mvq_alpha"]) == pytest.approx(sum(alphas) / 3, rel=1e-5)


def test_gradients_are_those_of_the_weighted_sum(batch):
    model = build_model({"weighting": ADAKD}, **NO_DROPOUT).train()
    model(**batch, teacher_loss=TEACHER_LOSSES)[0].backward()
    alphas = build_weighting(ADAKD).alphas(0, TEACHER_LOSSES.flatten())
    plain = build_model(**NO_DROPOUT).train()
    total = 0
    for number, alpha in enumerate(alphas):
        part = alone(batch, number)
        both = plain(**part)[0]
        task = plain(**without(part))[0]
        total = total + ((1 - alpha) * task + alpha * (both - task)) / 3
    total.backward()
    gradients, expected = ([p.grad for p in m.parameters()] for m in (model, plain))
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["fixed", "warmup", "focal"])
def test_siblings_need_no_teacher_loss(batch, kind):
    model = build_model({"weighting": {"type": kind}}).train()
    for _ in range(2):
        loss, stats, _ = model(**batch)
    loss.backward()
    assert loss.isfinite() and 0 <= stats["mvq_alpha"] <= 1
    if kind == "warmup":  # update 1 of 10 000
        assert float(stats["mvq_alpha"]) == pytest.approx(0.5 / 10_000)


def test_fixed_half_is_half_of_both(batch):
    model = build_model({"weighting": {"type": "fixed"}}, **NO_DROPOUT).train()
    loss = model(**batch)[0]
    plain = build_model(**NO_DROPOUT).train()(**batch)[0]
    torch.testing.assert_close(2 * loss, plain)


@pytest.mark.parametrize("length", [0, 20])
def test_utterances_without_indexes_are_trained_by_their_texts(batch, length):
    """As those do whose indexes do not fit their speech, and are left out."""
    lengths = batch["codebook_indexes_lengths"]
    lengths[1:] = length
    weighting = {"type": "fixed", "alpha": 0.25}
    model = build_model({"weighting": weighting}, **NO_DROPOUT).train()
    loss, stats, _ = model(**batch)
    assert float(stats["mvq_alpha"]) == pytest.approx(0.25 / 3)
    each = parts({**batch, "codebook_indexes_lengths": lengths * 0 + 30})
    first, *others = each
    expected = 0.75 * first[0] + 0.25 * first[1] + sum(task for task, _ in others)
    expected /= 3
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_evaluation_weighs_nothing(batch):
    model = build_model({"weighting": ADAKD}).eval()
    plain = build_model().eval()
    assert torch.equal(model(**batch)[0], plain(**batch)[0])


def test_weight_that_is_0_leaves_the_task_alone(batch):
    model = build_model({"weighting": ADAKD, "weight": 0.0}, **NO_DROPOUT).train()
    loss = model(**batch, teacher_loss=TEACHER_LOSSES)[0]
    plain = build_model({"weight": 0.0}, **NO_DROPOUT).train()(**batch)[0]
    torch.testing.assert_close(loss, plain)


def empty(batch, number):
    """Return a batch in which an utterance's text is empty."""
    lengths = batch["text_lengths"].clone()
    lengths[number] = 0
    width = int(lengths.max())
    text = batch["text"].masked_fill(torch.arange(3) >= lengths[:, None], -1)
    return {**batch, "text": text[:, :width], "text_lengths": lengths}


def unlabelled(batch, number):
    """Return a batch in which an utterance without text is in the list."""
    flags = torch.arange(3).unsqueeze(1) == number
    return {**empty(batch, number), "unlabelled": flags.float()}


@pytest.mark.parametrize("ctc_type", ["builtin", "builtin2"])
@pytest.mark.parametrize("training", [True, False])
def test_empty_text_that_is_not_in_the_list_is_a_text(batch, training, ctc_type):
    options = {**NO_DROPOUT, "ctc_conf": {"ctc_type": ctc_type}}
    batch = empty(batch, 1)
    stock = build_model(model="espnet", **options).train(training)
    plain = stock(**without(batch))[0]
    loss, stats, _ = build_model(**options).train(training)(**batch)
    assert torch.equal(loss, plain + stats["loss_mvq"])


def test_criteria_that_cannot_be_weighed_are_refused_before_training():
    options = {"ctc_conf": {"ctc_type": "builtin2"}}
    build_model(**options)
    message = "its loss cannot be weighed .* got ctc_type builtin2, expected builtin"
    with pytest.raises(ValueError, match=message):
        build_model({"weighting": {"type": "fixed"}}, **options)
    for part in ("train", "valid"):
        data = [("dump/unlabelled", "unlabelled", "mvq_list")]
        with pytest.raises(ValueError, match=f"dump/unlabelled .*mvq_list.* {message}"):
            build_model(**options, **{f"{part}_data_path_and_name_and_type": data})


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.5, 1.0])
def test_utterance_without_text_learns_from_the_teacher_alone(
    batch, number, ctc_weight
):
    options = {"model_conf": {"ctc_weight": ctc_weight}}
    each = parts(batch, **options)
    model = build_model(**NO_DROPOUT, **options).train()
    loss, stats, _ = model(**unlabelled(batch, number))
    tasks = [task for i, (task, _) in enumerate(each) if i != number]
    expected = (sum(tasks) + sum(kd for _, kd in each)) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("text", [2, 4])
def test_utterance_in_the_list_may_have_any_text(batch, text):
    """Even one that is longer than the speech, which CTC cannot align."""
    each = parts(batch)
    texts = torch.full((3, 99), -1)
    texts[:, :3] = batch["text"]
    texts[1] = text
    lengths = torch.tensor([3, 99, 1])
    model = build_model(**NO_DROPOUT).train()
    flags = torch.tensor([[0.0], [1.0], [0.0]])
    changes = {"text": texts, "text_lengths": lengths, "unlabelled": flags}
    loss = model(**{**batch, **changes})[0]
    expected = (each[0][0] + each[2][0] + sum(kd for _, kd in each)) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_batch_without_any_text(batch):
    none = batch["text_lengths"] * 0
    for text in (batch["text"][:, :0], batch["text"] * 0 - 1):
        model = build_model(**NO_DROPOUT).train()
        texts = {"text": text, "text_lengths": none, "unlabelled": torch.ones(3, 1)}
        loss, stats, _ = model(**{**batch, **texts})
        torch.testing.assert_close(loss.detach(), stats["loss_mvq"])


def test_adakd_and_utterances_without_text(batch):
    losses = TEACHER_LOSSES.clone()
    losses[2] = math.nan
    model = build_model({"weighting": ADAKD}, **NO_DROPOUT).train()
    loss, stats, _ = model(**unlabelled(batch, 2), teacher_loss=losses)
    assert loss.isfinite()
    with pytest.raises(ValueError, match="got NaN as teacher loss of 1 of 3 utter"):
        model(**batch, teacher_loss=losses)
    with pytest.raises(ValueError, match="utterance u2 and 0 more of a batch have"):
        model(**batch, teacher_loss=losses, utt_id=["u0", "u1", "u2"])


@pytest.fixture
def training(tmp_path):
    """Return a function that makes a training's options with a file of losses.

    Of its utterances a, b and c the last has no text.
    """
    (tmp_path / "text").write_text("a ONE\nb\tTWO\nc\n")
    (tmp_path / "unlabelled").write_text("c\n")

    def make(losses, conf, with_list=True):
        data = [(str(tmp_path / "text"), "text", "text")]
        if with_list:
            data.append((str(tmp_path / "unlabelled"), "unlabelled", "mvq_list"))
        if losses is not None:
            (tmp_path / "teacher_loss").write_text(losses)
            data.append((str(tmp_path / "teacher_loss"), "teacher_loss", "mvq_loss"))
        return argparse.Namespace(train_data_path_and_name_and_type=data), {
            "weighting": conf
        }

    return make


def test_threshold_and_scale_are_those_of_the_training_set(training):
    args, conf = training("a 1.0\nb 3.0\nz 99\n", {"type": "adakd"})
    complete_weighting(conf, args)
    assert conf["weighting"]["threshold"] == 2.0 and conf["weighting"]["scale"] == 1.0
    assert build_weighting(conf["weighting"]).k_start == 2.0


def test_utterances_that_the_teacher_could_not_align_learn_from_text(
    training, tmp_path
):
    args, conf = training("a 1.0\n", {"type": "adakd"})
    metadata = TeacherLossMetadata(
        teacher="t", loss="ctc", label="token", inputs="0", skipped=["b"]
    )
    (tmp_path / "teacher_loss.json").write_text(metadata.to_json())
    complete_weighting(conf, args)
    assert conf["weighting"]["threshold"] == 1.0
    reader = teacher_loss_reader(str(tmp_path / "teacher_loss"))
    loss = torch.from_numpy(reader["b"])
    assert float(build_weighting(conf["weighting"]).alphas(0, loss)) == 0


@pytest.mark.parametrize(
    "losses, message",
    [
        (None, "got no data of type 'mvq_loss'.*espnet_mvq.bin.teacher_loss"),
        ("a 1.0\n", "utterance b and 0 more of the training set have no teacher loss"),
        ("a 1.0\nb nan\n", "utterance b has 'nan', expected one finite number"),
    ],
)
def test_missing_losses_are_refused(training, losses, message):
    args, conf = training(losses, {"type": "adakd"})
    with pytest.raises(ValueError, match=message):
        complete_weighting(conf, args)


def test_empty_text_that_is_not_in_the_list_needs_a_loss_too(training):
    args, conf = training("a 1.0\nb 3.0\n", {"type": "adakd"}, with_list=False)
    with pytest.raises(ValueError, match="utterance c and 0 more .* of type mvq_list"):
        complete_weighting(conf, args)


def test_reader_gives_nan_where_there_is_no_loss(training, tmp_path):
    training("a 1.5\n", {})
    reader = teacher_loss_reader(str(tmp_path / "teacher_loss"))
    assert reader["a"].tolist() == [1.5] and math.isnan(reader["c"][0])
    assert list(reader) == ["a"] and "c" not in reader


def test_list_reader(tmp_path):
    (tmp_path / "unlabelled").write_text("a\nb more words\n\n")
    reader = list_reader(str(tmp_path / "unlabelled"))
    assert [reader[u].tolist() for u in "abc"] == [[1.0], [1.0], [0.0]]
    with pytest.raises(FileNotFoundError, match="unlabelled2: no such file"):
        list_reader(str(tmp_path / "unlabelled2"))
