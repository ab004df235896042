"""Several targets, their options, weights over training, and what they report."""

import math

import numpy as np
import pytest
import torch
from builders import MVQ_CONF, build_model, save_quantizer, train, without

from espnet_mvq.distillation import FrameGrid
from espnet_mvq.plugin.codebook_target import CodebookTarget
from espnet_mvq.plugin.config import MVQConfig, check_name, parse_targets
from espnet_mvq.plugin.embedding_target import EmbeddingTarget
from espnet_mvq.plugin.padded import Padded
from espnet_mvq.quantization.linear_discriminant import linear_discriminant

TWO = {
    "weight": 0.5,
    "targets": {
        "codebook_indexes": {"layer": 1},
        "codebook_indexes_slow": {"weight": 2.0, "frame_shift_samples": 640},
    },
}


@pytest.fixture
def two(batch):
    """Return a batch with indexes of two teachers; the second lacks an utterance."""
    lengths = torch.div(batch["speech_lengths"], 640, rounding_mode="floor")
    lengths[1] = 0
    return {
        **batch,
        "codebook_indexes_slow": torch.randint(0, 4, (3, 15, 2)),
        "codebook_indexes_slow_lengths": lengths,
    }


def test_options_of_a_target_are_its_own_or_those_of_all():
    configs = parse_targets({**MVQ_CONF, **TWO, "delay_s": 0.1})
    first, second = configs.values()
    assert list(configs) == ["codebook_indexes", "codebook_indexes_slow"]
    assert (first.weight, first.layer, first.frame_shift_samples) == (0.5, 1, 320)
    assert (second.weight, second.layer, second.frame_shift_samples) == (2.0, -1, 640)
    assert first.delay_s == second.delay_s == 0.1
    assert list(parse_targets(MVQ_CONF)) == ["codebook_indexes"]


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"targets": {"codes": {}}}, "got the name 'codes', expected 'codebook_ind"),
        ({"targets": {"codebook_indexes_a": {"hed": 1}}}, "_a: .* unknown option: hed"),
        ({"head": "both"}, "head: got 'both', expected one of independent, joint"),
        ({"label_smoothing": 2}, "label_smoothing: got 2, expected 0"),
        ({"soft_target_temperature": 0.1}, "need the codebooks; give quantizer"),
        ({"embedding_weight": 0.1}, "need the codebooks; give quantizer"),
        ({"schedule": {"warmup": 3}}, "weight schedule: unknown option: warmup"),
        ({"schedule": {"stop_update": -3}}, "stop_update: got -3"),
    ],
)
def test_bad_options_are_refused(conf, message):
    with pytest.raises(ValueError, match=message):
        parse_targets({**MVQ_CONF, **conf})


@pytest.mark.parametrize("name", ["codebook_indexesx", "speech", "codebook_indexes.a"])
def test_names_of_no_target_are_refused(name):
    with pytest.raises(ValueError, match="expected 'codebook_indexes', 'emb"):
        check_name(name)


def test_each_target_adds_its_own_loss(two):
    """The sum is that of two models with one target each, less the task's loss."""
    model = build_model(TWO).eval()
    loss, stats, _ = model(**two)
    task = build_model(model="espnet").eval()(**without(two))[0]
    first, second = stats["loss_mvq_codebook_indexes"], stats["loss_mvq_slow"]
    torch.testing.assert_close(stats["loss_mvq"], 0.5 * first + 2 * second)
    torch.testing.assert_close(loss, task + stats["loss_mvq"])
    # The slow teacher has no indexes for the second utterance.
    assert float(stats["mvq_frames_codebook_indexes"]) > float(stats["mvq_frames_slow"])


def test_target_that_a_batch_lacks_is_left_out(two):
    model = build_model(TWO)
    _, whole, _ = model(**two)
    loss, stats, _ = model(**without(two, "codebook_indexes_slow"))
    assert list(stats) == list(whole)  # the same keys on every rank
    assert math.isnan(stats["loss_mvq_slow"])
    assert float(stats["loss_mvq"]) == pytest.approx(
        0.5 * float(stats["loss_mvq_codebook_indexes"])
    )
    loss.backward()
    gradients = [p.grad for p in model.mvq.codebook_indexes_slow.parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    _, stats, _ = model(**without(two))
    assert math.isnan(stats["loss_mvq"])


@pytest.mark.parametrize("subsampling, first", [(4, 3), (2, 3), (6, 5)])
@pytest.mark.parametrize("hop", [128, 160, 256])
@pytest.mark.parametrize("loss, per_frame", [("codebooks", math.log(4)), ("l2", 1.0)])
def test_a_student_frame_weighs_the_same_at_any_ratio(
    hop, subsampling, first, loss, per_frame
):
    """A minute of speech, and a head that has learned nothing."""
    config = MVQConfig(**MVQ_CONF, loss=loss, dim=3)
    kind = CodebookTarget if loss == "codebooks" else EmbeddingTarget
    grid = FrameGrid(hop * subsampling, hop * first)
    target = kind("codebook_indexes", config, grid, 8).eval()
    for parameter in target.parameters():
        torch.nn.init.zeros_(parameter)
    num_frames = int(60 * 16_000 / grid.shift_samples)
    indexes = torch.randint(0, 4, (2, 3000, 2))
    if loss != "codebooks":
        indexes = torch.ones(2, 3000, 3)
    total, stats = target(
        Padded(torch.randn(2, num_frames, 8), torch.tensor([num_frames] * 2)),
        Padded(indexes, torch.tensor([3000] * 2)),
    )
    assert float(total.detach()) / num_frames == pytest.approx(per_frame, rel=0.01)
    assert float(stats["mvq_frames"]) == pytest.approx(2 * num_frames, abs=4)


@pytest.mark.parametrize("conf", [{}, TWO])
def test_evaluation_reports_the_accuracy_of_each_codebook(two, conf):
    model = build_model(conf).eval()
    with torch.no_grad():
        stats = model(**two)[1]
        absent = model(**without(two))[1]
    assert list(stats) == list(absent)
    tag = "_codebook_indexes" if conf else ""
    per_codebook = [float(stats[f"acc_mvq_cb{n}{tag}"]) for n in (1, 2)]
    assert sum(per_codebook) / 2 == pytest.approx(float(stats[f"acc_mvq{tag}"]))
    assert math.isnan(absent[f"acc_mvq_cb1{tag}"])


def test_weight_follows_its_schedule_and_survives_a_checkpoint(batch):
    conf = {"weight": 2.0, "schedule": {"warmup_updates": 4, "stop_update": 5}}
    model = build_model(conf).train()
    plain = without(batch)
    weights = []
    for update in range(6):
        if update == 2:  # resumed
            state = model.state_dict()
            model = build_model(conf).train()
            model.load_state_dict(state)
        loss, stats, _ = model(**batch)
        count = model.mvq.num_updates.clone()
        torch.manual_seed(0)
        task = float(model(**plain)[0].detach())  # no dropout in this model
        model.mvq.num_updates = count
        weights.append((float(loss.detach()) - task) / float(stats["loss_mvq"]))
    assert weights == pytest.approx([0, 0.5, 1.0, 1.5, 2.0, 0], abs=0.01)
    assert not [b for b in model.mvq.buffers() if not b.is_floating_point()]


def test_padded_speech_may_be_longer_than_its_indexes(batch):
    speech = torch.nn.functional.pad(batch["speech"], (0, 16_000))
    lengths = torch.full((3,), speech.shape[1])
    padded = {**batch, "speech": speech, "speech_lengths": lengths}
    models = [build_model({"speech_is_padded": flag}).eval() for flag in (False, True)]
    unknown, known = (float(model(**padded)[1]["mvq_frames"]) for model in models)
    plain = float(models[0](**batch)[1]["mvq_frames"])
    assert math.isnan(unknown)
    assert plain <= known <= plain + 3  # frames that begin in the padding
    short = {"speech": speech[:, :4000], "speech_lengths": 0 * lengths + 4000}
    assert math.isnan(float(models[1](**{**padded, **short})[1]["mvq_frames"]))


@pytest.mark.parametrize("silence", [0, 1.0])
def test_s2t_preprocessor_pads_as_we_hold(silence, monkeypatch):
    """Behind the speech; before it too, unless the silence is 0."""
    from espnet2.train.preprocessor import S2TPreprocessor

    symbols = ["<blank>", "<unk>", "<na>", "<notimestamps>", "<0.00>", "<30.00>"]
    preprocessor = S2TPreprocessor(
        train=True,
        token_type="char",
        token_list=[*symbols, "a", "<sos/eos>"],
        speech_init_silence=silence,
    )
    monkeypatch.setattr("numpy.random.randint", lambda high: high - 1)
    speech = preprocessor("u", {"speech": np.ones(8000, np.float32)})["speech"]
    assert speech.shape == (30 * 16_000, 1)
    (samples,) = np.nonzero(speech[:, 0])
    assert (samples[0], len(samples)) == (16_000 * silence, 8000)


def test_waveforms_may_have_an_axis_for_their_channel(batch):
    """As the s2t preprocessors leave them; indexes that do not fit are still seen."""
    model = build_model().eval()
    flat = model(**batch)[1]
    batch["speech"] = batch["speech"].unsqueeze(2)
    torch.testing.assert_close(model(**batch)[1]["loss_mvq"], flat["loss_mvq"])
    batch["codebook_indexes_lengths"] = 0 * batch["codebook_indexes_lengths"] + 3
    assert math.isnan(float(model(**batch)[1]["loss_mvq"]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_count_of_updates_stays_exact_in_half_precision(dtype):
    """Evaluation does not count."""
    model = build_model()
    model.mvq.num_updates.fill_(4095)
    model.to(dtype).eval()
    assert model.mvq.begin_batch() == float(model.mvq.num_updates) == 4095
    assert model.train().mvq.begin_batch() == 4095
    assert float(model.mvq.num_updates) == 4096
    assert model.mvq.codebook_indexes.head.weight.dtype == dtype


def test_copies_of_data_parallel_are_refused(batch):
    model = build_model()
    model._is_replica = True
    with pytest.raises(RuntimeError, match="--multiprocessing_distributed true"):
        model(**batch)


@pytest.mark.parametrize(
    "conf",
    [
        {},
        {"head": "joint", "head_hidden_size": 16},
        {"label_smoothing": 0.1},
        {"soft_target_temperature": 0.1},
        {"embedding_weight": 0.5},
        {"head": "joint", "soft_target_temperature": 0.2, "embedding_weight": 0.1},
    ],
)
def test_heads_and_losses_train(batch, tmp_path, conf):
    quantizer, path = save_quantizer(tmp_path, 8)
    given = {"quantizer": path, "layer": 1, "quantizer_id": quantizer.id}
    model = build_model({**given, **conf})
    values = train(model, batch)
    assert values[-1]["loss_mvq"] < 0.95 * values[0]["loss_mvq"]
    assert all(p.grad is not None for p in model.mvq.parameters())
    if not conf:
        assert values[-1]["acc_mvq"] > values[0]["acc_mvq"]
        assert values[-1]["mvq_nats_below_chance"] > 0.1


def test_quantizer_of_other_indexes_is_refused(batch, tmp_path):
    _, path = save_quantizer(tmp_path, 8)
    model = build_model({"quantizer": path, "embedding_weight": 1.0}).train()
    with pytest.raises(ValueError, match="expected 0123456789abcdef as codebook_ind"):
        model(**batch)


def test_quantizer_is_not_needed_to_decode(batch):
    model = build_model({"quantizer": "none.safetensors", "embedding_weight": 1.0})
    model.eval().encode(batch["speech"], batch["speech_lengths"])
    with torch.no_grad():
        model(**batch)


@pytest.fixture
def own_teacher(batch, tmp_path):
    """Options and batch of a student that predicts its own utterances' indexes."""
    quantizer, path = save_quantizer(tmp_path, 8, relative_reconstruction_error=0.25)
    conf = {"level": "utterance", "head_init": "quantizer", "quantizer": path}
    conf["quantizer_id"] = quantizer.id
    ones = torch.ones_like(batch["codebook_indexes_lengths"])
    indexes = batch["codebook_indexes"][:, :1]
    batch = {**batch, "codebook_indexes": indexes, "codebook_indexes_lengths": ones}
    return conf, batch, quantizer


def test_head_starts_as_the_quantizers_classifier(own_teacher):
    conf, batch, quantizer = own_teacher
    model = build_model(conf).train()
    before = model.mvq["codebook_indexes"].head.weight.clone()
    model(**batch)
    head = model.mvq["codebook_indexes"].head
    weight, bias = linear_discriminant(
        quantizer.codebooks.double(), 0.25, quantizer.mean, quantizer.scale
    )
    assert not torch.equal(before, head.weight)
    assert torch.equal(head.weight, weight) and torch.equal(head.bias, bias)
    # Once: what is learned from then on stays, in a resumed training too.
    with torch.no_grad():
        head.weight.zero_()
    resumed = build_model(conf).train()
    resumed.load_state_dict(model.state_dict())
    for trained in (model, resumed):
        trained(**batch)
        assert not trained.mvq["codebook_indexes"].head.weight.any()


def test_head_is_random_where_the_quantizer_is_not_at_hand(own_teacher):
    """In evaluation, which stands for decoding."""
    conf, batch, _ = own_teacher
    model = build_model({**conf, "quantizer": "none.safetensors"}).eval()
    model(**batch)
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        model.train()(**batch)


@pytest.mark.parametrize(
    "conf, message",
    [
        ({"head_init": "teacher"}, "head_init: got 'teacher', expected one of random"),
        ({"head_init": "quantizer"}, "give quantizer"),
        ({"head": "joint"}, "got quantizer with loss codebooks and head joint"),
        ({"level": "frame"}, "predicts 2 teacher frames, expected one"),
    ],
)
def test_bad_starts_of_heads_are_refused(own_teacher, conf, message):
    conf = conf if "head_init" in conf else {**own_teacher[0], **conf}
    with pytest.raises(ValueError, match=message):
        build_model(conf)


def test_quantizer_of_another_layer_is_refused(own_teacher, tmp_path):
    conf, batch, _ = own_teacher
    quantizer, _ = save_quantizer(tmp_path, 6)
    model = build_model({**conf, "quantizer_id": quantizer.id}).train()
    with pytest.raises(ValueError, match="of 6 dimensions and a student layer of 8"):
        model(**batch)
