"""Losses of ESPnet's models against the models as ESPnet builds them."""

import math

import numpy as np
import pytest
import torch
from builders import MVQ_CONF, TINY_MODEL
from corpus_builders import MakeFile, save_espnet, waveforms_of

from espnet_mvq.teachers import TeacherError
from espnet_mvq.teachers.task_loss import TextError, build_task_loss

TOKENS = ["<blank>", "<unk>", "<space>", "a", "b", "<sos/eos>"]
TEXTS = ["ab ba", "b", "aabc"]
LABELS = [[3, 4, 2, 4, 3], [4], [3, 3, 4, 1]]
ENCODER = {
    "output_size": 8,
    "attention_heads": 2,
    "linear_units": 8,
    "num_blocks": 2,
    "dropout_rate": 0.5,
    "input_layer": "conv2d2",
}
OPTIONS = {
    **TINY_MODEL,
    "token_list": TOKENS,
    "specaug": "specaug",
    "specaug_conf": {"time_mask_width_range": [0, 5]},
    "normalize": "utterance_mvn",
    "encoder": "conformer",
    "encoder_conf": ENCODER,
    "model_conf": {"ctc_weight": 0.3},
}
CTC = {"decoder": None, "model_conf": {"ctc_weight": 1.0}}
INTERCTC = {
    "encoder_conf": {**ENCODER, "interctc_layer_idx": [1]},
    "model_conf": {"ctc_weight": 0.3, "interctc_weight": 0.5},
}


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a model; it returns its folder and the model."""
    import espnet_mvq

    espnet_mvq.register()

    def build(folder="asr", task=None, **options):
        path, options = tmp_path / folder, {**OPTIONS, **options}
        return path, save_espnet(path, options, task, 1, random_heads=True)

    return build


def plain_losses(model, waveform, labels):
    """Return CTC loss and attention loss without smoothing, both in nats."""
    from torch.nn.functional import ctc_loss

    length = torch.tensor([len(waveform)])
    with torch.no_grad():
        encoded, lengths = model.encode(waveform[None].clone(), length)
        log_probs = model.ctc.ctc_lo(encoded).log_softmax(2)[0]
        counts = [torch.tensor([len(log_probs)]), torch.tensor([len(labels)])]
        targets = torch.tensor([labels])
        ctc = ctc_loss(log_probs[:, None], targets, *counts, reduction="sum")
        if model.decoder is None:
            return float(ctc), 0.0
        end = len(TOKENS) - 1
        tokens = torch.tensor([[end, *labels]])
        logits, _ = model.decoder(encoded, lengths, tokens, counts[1] + 1)
        log_probs = logits[0].log_softmax(1)
    attention = -sum(float(log_probs[i, t]) for i, t in enumerate([*labels, end]))
    return float(ctc), attention


@pytest.mark.parametrize(
    "options, ctc_weight",
    [
        ({}, 0.3),
        (CTC, 1.0),
        ({"model_conf": {"ctc_weight": 0.3, "length_normalized_loss": True}}, 0.3),
        ({"ctc_conf": {"dropout_rate": 0.5, "ignore_nan_grad": True}}, 0.3),
    ],
)
def test_equals_the_formula_on_the_models_outputs(save, speech, options, ctc_weight):
    path, model = save(**options)
    task_loss = build_task_loss(f"espnet/{path}")
    losses, counts = task_loss.loss(waveforms_of(speech), TEXTS)
    assert counts == [5, 1, 4] and max(losses) - min(losses) > 1
    assert task_loss.kind == "espnet"
    for waveform, labels, actual in zip(waveforms_of(speech), LABELS, losses):
        ctc, attention = plain_losses(model, waveform, labels)
        expected = ctc_weight * ctc + (1 - ctc_weight) * attention
        assert actual == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [INTERCTC, {"model_conf": {"lsm_weight": 0.1}}])
def test_equals_the_models_own_forward(save, speech, options):
    path, model = save(**options)
    losses, _ = build_task_loss(f"espnet/{path}").loss(waveforms_of(speech), TEXTS)
    for waveform, labels, actual in zip(waveforms_of(speech), LABELS, losses):
        lengths = torch.tensor([len(waveform)]), torch.tensor([len(labels)])
        with torch.no_grad():
            expected, _, _ = model(
                waveform[None].clone(), lengths[0], torch.tensor([labels]), lengths[1]
            )
        assert actual == pytest.approx(float(expected), rel=1e-6)


def test_inputs_are_not_changed(save, speech):
    def write_into(module, args):
        args[0].mul_(2)

    task_loss = build_task_loss(f"espnet/{save()[0]}")
    task_loss._model.frontend.register_forward_pre_hook(write_into)
    waveforms = [waveform.clone() for waveform in waveforms_of(speech)]
    first = task_loss.loss(waveforms, TEXTS)
    assert task_loss.loss(waveforms, TEXTS) == first
    assert all(map(torch.equal, waveforms, waveforms_of(speech)))


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_mvq_loss_of_a_student_does_not_count(save, speech, weight):
    path, plain = save()
    mvq_conf = {**MVQ_CONF, "layer": 1, "weight": weight}
    conf = {**OPTIONS["model_conf"], "mvq_conf": mvq_conf}
    student_path, student = save("student", model="mvq", model_conf=conf)
    state = {**student.state_dict(), **plain.state_dict()}
    assert any(name.startswith("mvq.") for name in state)
    torch.save(state, student_path / "valid.acc.ave.pth")
    expected = build_task_loss(f"espnet/{path}").loss(waveforms_of(speech), TEXTS)
    actual = build_task_loss(f"espnet/{student_path}").loss(waveforms_of(speech), TEXTS)
    assert actual == expected


def test_speech_too_short_for_its_text(save):
    """ESPnet's zero_infinity would call such utterances the easiest."""
    task_loss = build_task_loss(f"espnet/{save()[0]}")
    assert task_loss.loss([torch.randn(3200)], ["ab" * 9])[0] == [math.inf]
    assert task_loss.loss([torch.randn(70)], ["a"])[0] == [math.inf]  # no frame at all
    assert math.isfinite(task_loss.loss([torch.randn(3200)], ["ab"])[0][0])


def test_text_goes_through_the_experiments_preprocessor(save, tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus"
    corpus.write_text("abba abab\nbaba aabb\n" * 20)
    sentencepiece.SentencePieceTrainer.Train(
        f"--input={corpus} --model_prefix={tmp_path}/bpe --vocab_size=8 "
        "--model_type=bpe --minloglevel=2"
    )
    model = sentencepiece.SentencePieceProcessor()
    model.Load(f"{tmp_path}/bpe.model")
    pieces = [model.IdToPiece(i) for i in range(3, 8)]
    tokens = ["<blank>", "<unk>", *pieces, "<sos/eos>"]
    path, _ = save(
        token_list=tokens,
        token_type="bpe",
        bpemodel=f"{tmp_path}/bpe.model",
        cleaner="tacotron",  # capitals
    )
    task_loss = build_task_loss(f"espnet/{path}")
    expected = [tokens.index(piece) for piece in model.EncodeAsPieces("ABBA".lower())]
    cleaned = model.EncodeAsPieces("ABBA")
    actual = task_loss.encode("abba").tolist()
    assert actual != expected
    assert actual == [tokens.index(p) if p in tokens else 1 for p in cleaned]
    moved = (tmp_path / "bpe.model").rename(tmp_path / "moved.model")
    with pytest.raises(TeacherError, match="no such file .*bpe.model, .*bpemodel=FILE"):
        build_task_loss(f"espnet/{path}")
    again = build_task_loss(f"espnet/{path}", bpemodel=str(moved))
    assert again.encode("abba").tolist() == actual and again.id == task_loss.id


def test_unknown_characters_are_the_models_unk(save):
    task_loss = build_task_loss(f"espnet/{save()[0]}")
    assert task_loss.encode("aabc").tolist() == LABELS[2]
    with pytest.raises(TextError, match="contains no label"):
        task_loss.encode("")


def test_statistics_file_of_the_training_is_not_needed(save, tmp_path, speech):
    stats = tmp_path / "feats_stats.npz"
    sums = np.random.default_rng(0).normal(size=(2, 8))
    np.savez(stats, count=10, sum=sums[0], sum_square=100 + sums[1])
    conf = {"stats_file": str(stats)}
    path, model = save(normalize="global_mvn", normalize_conf=conf)
    stats.unlink()
    losses, _ = build_task_loss(f"espnet/{path}").loss(waveforms_of(speech), TEXTS)
    ctc, attention = plain_losses(model, waveforms_of(speech)[0], LABELS[0])
    assert losses[0] == pytest.approx(0.3 * ctc + 0.7 * attention, rel=1e-5)


def test_volume_is_normalised_as_in_training(save, speech):
    path, _ = save(speech_volume_normalize=1.0, normalize=None)
    task_loss = build_task_loss(f"espnet/{path}")
    waveform = speech[0][0]
    loud, quiet = task_loss.loss([waveform, 0.01 * waveform], ["ab", "ab"])[0]
    assert loud == pytest.approx(quiet, rel=1e-4)


def test_spoken_language_understanding(save, speech):
    from espnet2.tasks.slu import SLUTask

    path, model = save(task=SLUTask, postdecoder=None)
    task_loss = build_task_loss(f"espnet/{path}", task="slu")
    actual = task_loss.loss([speech[0][0]], TEXTS[:1])[0][0]
    lengths = torch.tensor([9600]), torch.tensor([5])
    with torch.no_grad():
        expected, _, _ = model(
            speech[0][:1].clone(), lengths[0], torch.tensor(LABELS[:1]), lengths[1]
        )
    assert actual == pytest.approx(float(expected), rel=1e-6)


def test_code_in_a_checkpoint_is_not_run(save, tmp_path):
    path, model = save()
    state = {**model.state_dict(), "x": MakeFile(tmp_path / "executed")}
    torch.save(state, path / "valid.acc.ave.pth")
    with pytest.raises(TeacherError, match="damaged, or holds other objects"):
        build_task_loss(f"espnet/{path}")
    assert not (tmp_path / "executed").exists()


def test_checkpoint_of_another_model(save):
    path, model = save()
    state = model.state_dict()
    state["decoder.extra"] = state.pop("decoder.after_norm.bias")
    torch.save(state, path / "valid.acc.ave.pth")
    with pytest.raises(TeacherError, match="1 weights are missing, 1 too many"):
        build_task_loss(f"espnet/{path}")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "maskctc"}, "got model 'maskctc' in the task 'asr'"),
        ({"use_preprocessor": False}, "trained on token numbers"),
        ({"token_type": None}, "trained on token numbers"),
        ({"cleaner": "none_such"}, "could not build the preprocessor"),
        ({"decoder": "none_such"}, "could not build it from config.yaml .*none_such"),
        ({"preprocessor": "s2t"}, "could not build the preprocessor .*s2t"),
    ],
)
def test_experiments_without_a_loss(save, change, message):
    import yaml

    path, _ = save()
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**config, **change}))
    with pytest.raises(TeacherError, match=message):
        build_task_loss(f"espnet/{path}")


def test_task_and_checkpoint_are_options(save):
    path, model = save()
    with pytest.raises(TeacherError, match="in the task 's2t', .* task asr or slu"):
        build_task_loss(f"espnet/{path}", task="s2t")
    first = build_task_loss(f"espnet/{path}").id
    state = {**model.state_dict(), "ctc.ctc_lo.bias": torch.ones(len(TOKENS))}
    torch.save(state, path / "9epoch.pth")
    assert build_task_loss(f"espnet/{path}", checkpoint="9epoch.pth").id != first
    with pytest.raises(TeacherError, match="unknown option: .*language"):
        build_task_loss(f"espnet/{path}", language="en")
