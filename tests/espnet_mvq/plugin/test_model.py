"""The MVQ loss of a model: layers, checks, and learning."""

import contextlib
import logging
import math

import builders
import pytest
import torch
from builders import build_model

L2 = {"loss": "l2", "dim": 3}
# Of a recurrent encoder the frames are not known.
RECURRENT = {"student_frame_shift_samples": 640, "student_frame_offset_samples": 0}
STOCK = ("loss_ctc", "cer_ctc", "loss_att", "acc", "cer", "wer")
INTERCTC = {
    "encoder_conf": builders.INTERCTC,
    "model_conf": {"interctc_weight": 0.5},
}


def build_recurrent(mvq_conf, **options):
    """Build a model with an LSTM that subsamples by 4."""
    conf = {**RECURRENT, **mvq_conf}
    encoder = {"encoder": "rnn", "encoder_conf": builders.RECURRENT}
    return build_model(conf, **encoder, **options)


def record(model, batch):
    """Return the layer's output and lengths on a batch, and the encoder's output."""
    outputs = []
    handle = model.encoder.register_forward_hook(lambda *args: outputs.append(args[2]))
    with model._mvq_layer_hooks["codebook_indexes"].record() as recorded:
        model.encode(batch["speech"], batch["speech_lengths"])
    handle.remove()
    return (recorded.frames.values, recorded.frames.lengths), outputs[0]


@pytest.mark.parametrize("options", [{}, INTERCTC])
def test_encoder_output_and_lengths_are_recorded(batch, options):
    """With intermediate CTC the output is a pair of output and intermediate outputs."""
    model = build_model({"layer": -1}, **options).eval()
    (frames, lengths), (output, output_lengths, _) = record(model, batch)
    assert isinstance(output, tuple) == bool(options)
    assert torch.equal(frames, output[0] if options else output)
    assert torch.equal(lengths, output_lengths)


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_removed_after_the_forward(batch, fails):
    model = build_model({"layer": 1})
    lengths = torch.tensor([99]) if fails else batch["text_lengths"]
    with pytest.raises(Exception) if fails else contextlib.nullcontext():
        model(**{**batch, "text_lengths": lengths})
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "layer, message",
    [
        (0, "got 0, expected a student block, counted from 1, or -1"),
        (3, "got 3, expected 1 to 2 or -1: TransformerEncoder has 2 blocks"),
        (-2, "got -2"),
        ("encoders.7", "layer 'encoders.7': TransformerEncoder has no such submodule"),
    ],
)
def test_layers_that_do_not_exist_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        build_model({"layer": layer})


def test_recurrent_encoder_predicts_at_its_output(batch):
    model = build_recurrent({"layer": -1})
    assert float(model(**batch)[1]["mvq_frames"]) == 16 + 13 + 11
    with pytest.raises(ValueError, match="RNNEncoder.* use layer: -1"):
        build_recurrent({"layer": 1})


def test_index_that_does_not_fit_the_codebooks_is_refused(batch):
    batch["codebook_indexes"][1, 2, 0] = 4
    with pytest.raises(ValueError, match="got an index 4, expected less than .* 4"):
        build_model()(**batch)


def test_another_number_of_codebooks_is_refused(batch):
    batch["codebook_indexes"] = batch["codebook_indexes"][:, :, :1]
    with pytest.raises(ValueError, match=r"\(3, 30, 1\), expected \(batch, frames, 2"):
        build_model()(**batch)


def test_indexes_of_other_lengths_are_left_out_and_counted(batch, caplog):
    caplog.set_level(logging.WARNING)
    model = build_model({"tolerance_frames": 3}).eval()
    expected = model(**batch)[1]["mvq_frames"]
    # The speech has 30, 25 and 20 frames.
    batch["codebook_indexes_lengths"] = torch.tensor([30, 25, 16])
    two = model(**batch)[1]["mvq_frames"]
    assert "1 utterances so far" in caplog.text
    assert "16 frames where 20.0 were expected" in caplog.text
    batch["codebook_indexes_lengths"] = torch.tensor([30, 25, 0])
    assert model(**batch)[1]["mvq_frames"] == two < expected
    batch["codebook_indexes_lengths"] = torch.tensor([30, 28, 17])  # just tolerated
    model(**batch)
    assert model.mvq.codebook_indexes._num_mismatches == 1


def test_loss_is_per_utterance_and_averaged_over_codebooks(batch):
    _, stats, _ = build_model({"layer": -1})(**batch)
    nats = math.log(4) - float(stats["mvq_nats_below_chance"])
    # Nearly every slot of every frame has its target: 2 of 4 slots x 2 codebooks
    per_frame = float(stats["loss_mvq"]) * 3 / float(stats["mvq_frames"])
    assert per_frame == pytest.approx(nats, rel=0.1)


def test_padding_of_the_indexes_does_not_change_the_loss(batch):
    model = build_model({"layer": -1}).eval()
    one = {key: value[2:] for key, value in batch.items()}
    alone = {**one, "speech": one["speech"][:, :6400]}
    alone["codebook_indexes"] = one["codebook_indexes"][:, :20]
    losses = [float(model(**b)[1]["loss_mvq"]) for b in (one, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("learns", [False, True])
def test_head_that_stays_at_chance_is_warned_about_once(batch, caplog, learns):
    model = build_model({"chance_warning_updates": 3}).train()
    for _ in range(5):
        model.mvq.codebook_indexes._warn_at_chance(5.0 if learns else 0.0)
    assert caplog.text.count("still at chance (ln 4 nats") == (0 if learns else 1)


@pytest.mark.parametrize("layer", [1, -1])
def test_bfloat16_autocast_trains(batch, layer):
    model = build_model({"layer": layer})
    expected = model(**batch)[1]["loss_mvq"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, stats, _ = model(**batch)
    loss.backward()
    assert model.mvq.codebook_indexes.head.weight.grad.isfinite().all()
    torch.testing.assert_close(stats["loss_mvq"], expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("indexes", [True, False])
@pytest.mark.parametrize("targets", [None, {"codebook_indexes": {}, "embeddings": L2}])
def test_losses_are_added_in_float32(batch, targets, indexes):
    """Stock CTC's is in bfloat16 where the encoder's output is."""
    conf = {"weight": 0.3, "targets": targets}
    model = build_recurrent(conf, model_conf={"ctc_weight": 1.0})
    batch["embeddings"] = torch.randn(3, 30, 3)
    batch["embeddings_lengths"] = batch["codebook_indexes_lengths"]
    if not indexes:
        batch = {k: v for k, v in batch.items() if k[0] not in "ce"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, stats, _ = model(**batch)
    assert stats["loss_ctc"].dtype == torch.bfloat16
    # The same on every rank, or they cannot be gathered
    ours = [value for name, value in stats.items() if name not in STOCK]
    assert all(value.dtype == torch.float32 for value in (stats["loss"], *ours))
    expected = stats["loss_ctc"].float()
    if indexes:
        kd = stats["loss_mvq"] if targets else 0.3 * stats["loss_mvq"]
        torch.testing.assert_close(loss, expected + kd, rtol=1e-6, atol=0)
    assert torch.equal(loss.float(), stats["loss"])
    loss.backward()
