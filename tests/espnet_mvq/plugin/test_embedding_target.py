"""Teacher embeddings as target: stored, decoded from indexes, or of a live teacher."""

import argparse

import numpy as np
import pytest
import torch
from builders import (
    FRAMES,
    build_model,
    index_metadata,
    save_hubert,
    save_quantizer,
    train,
    without,
)

from espnet_mvq.indexes import EmbeddingMetadata
from espnet_mvq.plugin.config import parse_targets
from espnet_mvq.plugin.training_checks import complete_mvq_conf
from espnet_mvq.teachers import build_teacher

DIM = 3
TINY_HUBERT = {
    "hidden_size": DIM,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 4,
    "conv_dim": (4,) * 7,
    "num_conv_pos_embedding_groups": 1,
}
LOSSES = ("l1", "l2", "cosine")
LENGTHS = "embeddings_lengths"


@pytest.fixture
def embeddings(batch):
    """Return a batch with embeddings in place of indexes; one utterance has none."""
    lengths = batch["codebook_indexes_lengths"].clone()
    lengths[1] = 0
    stored = 5 + 3 * torch.randn(3, 30, DIM)
    return {**without(batch), "embeddings": stored, LENGTHS: lengths}


@pytest.fixture
def quantizer(tmp_path):
    """Return a quantizer of the batch's indexes, and its file."""
    return save_quantizer(tmp_path, DIM)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Return the name of a tiny HuBERT of DIM channels."""
    return save_hubert(tmp_path_factory.mktemp("hubert"), **TINY_HUBERT)


def stored_target(loss="l2", **options):
    return {"targets": {"embeddings": {"loss": loss, "dim": DIM, **options}}}


def explicit_loss(model, frames, values, lengths, student_lengths, kind):
    """Compute the loss frame by frame, with the normalisation the model has now."""
    (target,) = model.mvq.values()
    places, inside = target.aligner.teacher_frames(frames.shape[1])
    total = torch.zeros(())
    for b in range(len(frames)):
        for t in range(int(student_lengths[b])):
            predicted = target.projection(frames[b, t]).reshape(-1, DIM)
            for slot, place in enumerate(places[t].tolist()):
                if not (inside[t, slot] and 0 <= place < lengths[b]):
                    continue
                p = predicted[slot]
                e = target.normaliser(values[b, place : place + 1])[0]
                distance = {
                    "l1": (p - e).abs().mean(),
                    "l2": (p - e).square().mean(),
                    "cosine": 1 - p @ e / (p.norm() * e.norm()),
                }[kind]
                total = total + distance
    return total / (target.aligner.targets_per_frame * len(frames))


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_is_that_of_the_formula(embeddings, kind):
    model = build_model(stored_target(kind)).train()
    _, stats, _ = model(**embeddings)
    model.eval()  # the normaliser stays as it was in that step
    frames, lengths = model.encode(embeddings["speech"], embeddings["speech_lengths"])
    stored = embeddings["embeddings"], embeddings[LENGTHS]
    expected = explicit_loss(model, frames, *stored, lengths, kind)
    torch.testing.assert_close(stats["loss_embedding"][0], expected.detach())
    assert -1 <= stats["embedding_cosine"] <= 1 and stats["embedding_error"] > 0


def test_normaliser_counts_the_frames_with_targets(embeddings):
    model = build_model(stored_target()).train()
    model(**embeddings)
    normaliser = model.mvq["embeddings"].normaliser
    seen = float(normaliser.count)
    assert 0 < seen <= embeddings[LENGTHS].sum()
    assert normaliser.mean.sub(5).abs().max() < 2
    model.eval()
    model(**embeddings)
    assert float(normaliser.count) == seen  # evaluation learns nothing


@pytest.mark.parametrize("kind", LOSSES)
def test_training_lowers_the_loss(embeddings, kind):
    model = build_model(stored_target(kind, layer=1))
    losses = [stats["loss_embedding"] for stats in train(model, embeddings)]
    assert losses[-1] < 0.9 * losses[0]


def test_decoded_indexes_are_embeddings(batch, quantizer):
    quantizer, path = quantizer
    conf = {"loss": "l2", "dim": DIM, "quantizer": path, "quantizer_id": quantizer.id}
    model = build_model(conf).eval()
    _, stats, _ = model(**batch)
    decoded = quantizer.decode(batch["codebook_indexes"].clamp(min=0))
    frames, lengths = model.encode(batch["speech"], batch["speech_lengths"])
    expected = explicit_loss(
        model, frames, decoded, batch["codebook_indexes_lengths"], lengths, "l2"
    )
    torch.testing.assert_close(stats["loss_embedding"][0], expected.detach())


def test_decoding_with_another_quantizer_is_refused(batch, quantizer):
    conf = {"loss": "l2", "dim": DIM, "quantizer": quantizer[1]}
    model = build_model({**conf, "quantizer_id": "0123"})
    with pytest.raises(ValueError, match="expected 0123 as codebook_indexes were made"):
        model(**batch)


def test_teacher_in_the_loop_gives_what_stored_embeddings_give(embeddings, teacher):
    built = build_teacher(teacher, layer=1)
    stored, lengths = built.embed(embeddings["speech"], embeddings["speech_lengths"])
    embeddings = without(embeddings, "embeddings")
    conf = {"loss": "l2", "dim": DIM, "teacher": teacher, "teacher_layer": 1}
    offset = {"frame_offset_samples": built.frame_offset_samples}
    live, with_stored = build_model({**conf, **offset}), build_model(
        stored_target(**offset)
    )
    torch.manual_seed(0)  # of the decoder's dropout
    live_loss, live_stats, _ = live.train()(**embeddings)
    dropout = torch.rand(1)
    torch.manual_seed(0)
    loss, stats, _ = with_stored.train()(
        **embeddings, embeddings=stored, embeddings_lengths=lengths
    )
    assert torch.equal(dropout, torch.rand(1))
    torch.testing.assert_close(live_loss, loss)
    torch.testing.assert_close(live_stats, stats)
    live_loss.backward()
    assert live.mvq["teacher"].projection.weight.grad.abs().sum() > 0
    assert not [name for name in live.state_dict() if "hubert" in name.lower()]
    assert len(live.state_dict()) == len(with_stored.state_dict())


class TruncatingTeacher:
    """Returns too few frames, 10, of utterance 1, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def embed(self, speech, speech_lengths):
        self.calls += 1
        lengths = speech_lengths // 320
        lengths[1] = 10
        return torch.arange(90.0 * DIM).reshape(3, 30, DIM), lengths


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_utterance_with_bad_teacher_length_is_trained_by_its_text(embeddings, weight):
    """As with stored embeddings that do not fit their speech."""
    speech = embeddings["speech"], embeddings["speech_lengths"]
    stored = TruncatingTeacher().embed(*speech)
    with_stored = {**embeddings, **dict(zip(("embeddings", LENGTHS), stored))}
    embeddings = without(embeddings, "embeddings")
    both = {"weighting": {"type": "fixed", "alpha": 0.25}, "weight": weight}
    teacher, losses, alphas = TruncatingTeacher(), [], []
    live = {"loss": "l2", "dim": DIM, "teacher": "a/b"}
    for conf, batch in ((live, embeddings), (stored_target(), with_stored)):
        model = build_model({**conf, **both}).train()
        if conf is live:
            model.mvq["teacher"]._teacher.append(teacher)
        torch.manual_seed(0)  # of the decoder's dropout
        loss, stats, _ = model(**batch)
        losses.append(loss)
        alphas.append(stats["mvq_alpha"])
    assert torch.equal(*losses) and torch.equal(*alphas)
    assert teacher.calls == (weight > 0)


def test_teacher_of_utterances_is_the_mean_of_its_frames(embeddings, teacher):
    """As with means that were stored."""
    built = build_teacher(teacher, layer=1)
    speech = embeddings["speech"], embeddings["speech_lengths"]
    means = torch.stack([e.mean(0) for e in built.embed_batch(_cut(*speech))])
    embeddings = without(embeddings, "embeddings")
    level = {"level": "utterance"}
    conf = {"loss": "l2", "dim": DIM, "teacher": teacher, "teacher_layer": 1, **level}
    stored = {"embeddings": means.unsqueeze(1)}
    stored["embeddings_lengths"] = torch.ones(3, dtype=torch.int64)
    losses = []
    for options, data in ((conf, {}), (stored_target(**level), stored)):
        torch.manual_seed(0)
        losses.append(build_model(options).train()(**embeddings, **data)[0])
    torch.testing.assert_close(*losses)


def _cut(speech, lengths):
    return [row[:length] for row, length in zip(speech, lengths.tolist())]


def test_teacher_in_the_loop_is_exact_under_autocast(embeddings, teacher):
    """The student may train in half precision; its teacher computes in float32."""
    embeddings = without(embeddings, "embeddings")
    conf = {"loss": "l2", "dim": DIM, "teacher": teacher, "teacher_layer": 1}
    means = []
    for enabled in (False, True):
        model = build_model(conf).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert model(**embeddings)[0].isfinite()
        means.append(model.mvq["teacher"].normaliser.mean)
    assert torch.equal(*means)


def test_embeddings_that_are_not_finite_are_refused(embeddings):
    """They would stay in the normaliser's mean."""
    embeddings["embeddings"][0, 3] = torch.nan
    model = build_model(stored_target()).train()
    with pytest.raises(ValueError, match="embeddings: got NaN or infinite embeddings"):
        model(**embeddings)
    assert model.mvq["embeddings"].normaliser.mean.isfinite().all()


def test_teacher_in_the_loop_needs_waveforms(teacher):
    conf = {"loss": "l2", "dim": DIM, "teacher": teacher, "teacher_layer": 1}
    conf["student_frame_shift_samples"] = 640
    model = build_model(conf, frontend=None, input_size=8)
    features, lengths = torch.randn(2, 60, 8), torch.tensor([60, 60])
    with pytest.raises(ValueError, match="mvq_conf teacher needs waveforms, got feat"):
        texts = {"text": torch.tensor([[2, 3]] * 2), "text_lengths": lengths // 30}
        model(features, lengths, **texts)


def test_embeddings_of_another_dimension_are_refused(embeddings):
    embeddings["embeddings"] = torch.randn(3, 30, DIM + 1)
    model, message = build_model(stored_target()), r"embeddings: got shape \(3, 30, 4\)"
    with pytest.raises(ValueError, match=message):
        model(**embeddings)


@pytest.mark.parametrize("level", ["frame", "utterance"])
def test_one_embedding_for_an_utterance(embeddings, level):
    embeddings["embeddings"] = embeddings["embeddings"][:, :1]
    embeddings[LENGTHS] = torch.tensor([1, 0, 1])
    model = build_model(stored_target(level=level)).train()
    _, stats, _ = model(**embeddings)
    # Level frame: a single frame in place of 30 is left out.
    assert stats["loss_embedding"].isnan() == (level == "frame")
    if level == "utterance":
        assert stats["mvq_frames"] == 2


@pytest.mark.parametrize(
    "name, conf, message",
    [
        ("codebook_indexes", {"loss": "l3"}, "loss: got 'l3', expected one of codeb"),
        ("embeddings", {"dim": DIM}, "loss: got codebooks for embeddings, expected"),
        ("embeddings", {"loss": "l2"}, "dim missing"),
        ("codebook_indexes", {"loss": "l1", "dim": DIM}, "embeddings decoded from ind"),
        ("teacher", {"loss": "l1", "dim": DIM}, "got teacher None for teacher; a tar"),
        ("embeddings", {"loss": "l1", "teacher": "a/b"}, "got teacher a/b for embedd"),
        (
            "embeddings",
            {"loss": "l1", "quantizer": "q"},
            "are no codebook indexes; leave",
        ),
        ("embeddings", {"loss": "l1", "level": "word"}, "level: got 'word', expected"),
    ],
)
def test_bad_options_are_refused(name, conf, message):
    with pytest.raises(ValueError, match=message):
        parse_targets({**FRAMES, "targets": {name: conf}})


@pytest.fixture
def options(tmp_path):
    """Return a function that makes a training's options with stored frames."""

    def make(name, metadata, conf):
        data = [(str(tmp_path / "wav.scp"), "speech", "sound")]
        if metadata is not None:
            metadata.save(tmp_path / f"{name}.json")
            data.append((str(tmp_path / f"{name}.scp"), name, "mvq_ark"))
        return argparse.Namespace(
            model_conf={"mvq_conf": conf},
            train_data_path_and_name_and_type=data,
            valid_data_path_and_name_and_type=[],
        )

    return make


def test_metadata_of_embeddings_fill_the_options(options):
    metadata = EmbeddingMetadata(teacher="t", layer=3, dim=DIM, **FRAMES)
    args = options("embeddings", metadata, {"loss": "l2"})
    complete_mvq_conf(args)
    expected = {**FRAMES, "dim": DIM, "level": "frame", "teacher_id": "t, layer 3"}
    assert args.model_conf["mvq_conf"]["targets"] == {"embeddings": expected}
    (config,) = parse_targets(args.model_conf["mvq_conf"]).values()
    assert (config.loss, config.dim) == ("l2", DIM)


def test_dimension_of_decoded_indexes_is_that_of_the_quantizer(options, quantizer):
    metadata = index_metadata(quantizer_id=quantizer[0].id)
    conf = {"loss": "l2", "quantizer": quantizer[1]}
    args = options("codebook_indexes", metadata, conf)
    complete_mvq_conf(args)
    assert args.model_conf["mvq_conf"]["dim"] == DIM
    parse_targets(args.model_conf["mvq_conf"])


def test_properties_of_the_teacher_are_stored_in_the_options(options, teacher):
    conf = {"loss": "l2", "teacher": teacher, "teacher_layer": 1}
    args = options("teacher", None, conf)
    complete_mvq_conf(args)
    completed = args.model_conf["mvq_conf"]
    assert completed["dim"] == DIM and completed["frame_shift_samples"] == 320
    # All is known now: a decoding elsewhere does not need the teacher.
    args.model_conf["mvq_conf"] = {**completed, "teacher": "transformers/gone"}
    complete_mvq_conf(args)
    parse_targets(args.model_conf["mvq_conf"])


def test_teacher_of_another_sample_rate_is_refused(options, teacher):
    args = options("teacher", None, {"loss": "l2", "teacher": teacher})
    args.frontend_conf = {"fs": "8k"}
    with pytest.raises(ValueError, match="at 16000 Hz, but the student reads 8000 Hz"):
        complete_mvq_conf(args)


def test_teacher_in_the_loop_cannot_be_stored_features(options, tmp_path):
    np.save(tmp_path / "u1.npy", np.zeros((5, DIM), np.float32))
    (tmp_path / "feats.scp").write_text(f"u1 {tmp_path / 'u1.npy'}\n")
    conf = {"teacher": f"feats/{tmp_path / 'feats.scp'}"}
    conf["teacher_conf"] = {"frame_shift_samples": 320}
    args = options("teacher", None, {"loss": "l2", **conf})
    with pytest.raises(ValueError, match="expected a model that reads speech"):
        complete_mvq_conf(args)


def test_indexes_in_place_of_embeddings_are_refused(options):
    metadata = EmbeddingMetadata(teacher="t", layer=3, dim=DIM, **FRAMES)
    args = options("codebook_indexes", metadata, {})
    with pytest.raises(ValueError, match="got format 'espnet_mvq.embeddings'"):
        complete_mvq_conf(args)
