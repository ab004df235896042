"""The MVQ loss over every kind of encoder, whole: one step forward and backward."""

import re

import pytest
import torch
from builders import (
    INTERCTC,
    RECURRENT,
    STATS,
    TINY_MODEL,
    assert_same_as_stock,
    build_model,
    step,
    without,
)

from espnet_mvq.frame_timing.front_ends import student_frame_grid
from espnet_mvq.plugin.layer_hook import LayerHook

BRANCHES = {"cgmlp_linear_units": 8, "cgmlp_conv_kernel": 3}
CHUNKS = {"block_size": 6, "hop_size": 2, "look_ahead": 2}
NO_OPTIONS = dict.fromkeys(TINY_MODEL["encoder_conf"])
HUBERT = {
    **NO_OPTIONS,
    "extractor_conv_layer_config": [[8, 10, 5]] + [[8, 3, 2]] * 4 + [[8, 2, 2]] * 2,
    "encoder_embed_dim": 16,
    "encoder_pos_conv_kernel": 4,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 16,
    "num_classes": 4,
    "final_dim": 4,
    "finetuning": True,
}
MULTICONV = {"cgmlp_linear_units": 8, "multicgmlp_kernel_sizes": "3,5"}
# Encoder, its options, and the layers to tap
ENCODERS = {
    "transformer": ({}, [1, 2, -1, "encoders.0"]),
    "conformer": ({"macaron_style": True}, [1, 2, -1, "encoders.0.norm_final"]),
    "branchformer": ({**BRANCHES, "linear_units": None}, [1, 2, -1, "encoders.1"]),
    "e_branchformer": (BRANCHES, [1, 2, -1, "encoders.1.norm_final"]),
    "multiconv_conformer": (MULTICONV, [1, 2, -1]),
    "contextual_block_transformer": (CHUNKS, [-1, "after_norm"]),
    "contextual_block_conformer": (CHUNKS, [-1, "embed"]),
    "rnn": (RECURRENT, [-1, "enc.0"]),
    "vgg_rnn": (RECURRENT, [-1, "enc.1"]),
    "torchaudiohubert": (HUBERT, [1, 2, -1]),
    "whisper": (NO_OPTIONS, [1, 2, -1]),
}
CASES = [(name, layer) for name, (_, layers) in ENCODERS.items() for layer in layers]


@pytest.fixture
def build(request):
    """Return a function that builds a tiny model with an encoder."""

    def build(encoder, layer=None, conf=None, **options):
        if encoder == "whisper":
            request.getfixturevalue("tiny_whisper")
        if encoder in ("whisper", "torchaudiohubert"):
            options.update(frontend=None, input_size=1)
        conf = {**ENCODERS[encoder][0], **(conf or {})}
        model = "espnet" if layer is None else "mvq"
        mvq_conf = {"layer": layer}
        return build_model(
            mvq_conf, model, encoder=encoder, encoder_conf=conf, **options
        )

    return build


@pytest.fixture
def tiny_whisper(monkeypatch):
    """Have openai-whisper give a tiny model with random weights."""
    whisper = pytest.importorskip("whisper", reason="openai-whisper is not installed")
    sizes = dict(n_mels=80, n_vocab=10, n_text_ctx=4, n_audio_ctx=1500)
    for part in ("audio", "text"):
        sizes.update({f"n_{part}_state": 8, f"n_{part}_head": 2, f"n_{part}_layer": 2})

    def load_model(name, **options):
        torch.manual_seed(2)
        return whisper.model.Whisper(whisper.model.ModelDimensions(**sizes))

    monkeypatch.setattr(whisper, "load_model", load_model)
    # Newer ones have no such constant, for which ESPnet asks
    monkeypatch.setattr(whisper.audio, "N_MELS", 80, raising=False)


def head_gradient(gradients):
    """Return the gradient of what predicts the indexes."""
    (name,) = (n for n in gradients if re.match(r"mvq\..*head\.weight", n))
    return gradients[name]


def first_encoder_parameter(gradients):
    """Return the encoder's parameter that the gradient reaches last."""
    return next(
        name
        for name, gradient in gradients.items()
        if name.startswith("encoder.") and gradient is not None and gradient.any()
    )


@pytest.mark.parametrize("encoder, layer", CASES)
def test_layer_is_trained(build, batch, encoder, layer):
    model = build(encoder, layer)
    plain = step(model, without(batch))
    loss, stats, _, gradients = step(model, batch)
    assert loss.isfinite().all() and loss > plain.loss
    assert all(stats[name].isfinite().all() for name in STATS)
    assert head_gradient(gradients).any()
    name = first_encoder_parameter(plain.gradients)
    assert not torch.equal(gradients[name], plain.gradients[name])
    # Nearly all student frames have a target
    grid = student_frame_grid(model.frontend, model.encoder, layer=layer)
    assert abs(stats["mvq_frames"] - 24_000 / grid.shift_samples) <= 3 * 2


@pytest.mark.parametrize("encoder", ENCODERS)
def test_step_without_indexes_is_that_of_stock(build, batch, encoder):
    models = build(encoder, ENCODERS[encoder][1][0]), build(encoder)
    assert_same_as_stock(*(step(model, without(batch)) for model in models))


CHECKPOINTED = {"gradient_checkpoint_layers": [0, 1, 2]}


@pytest.mark.parametrize("layer", [1, 2, -1])
def test_gradient_checkpointing_changes_nothing(build, batch, layer):
    dropout = {"dropout_rate": 0.1}
    models = [
        build("e_branchformer", layer, {**dropout, **conf})
        for conf in ({}, CHECKPOINTED)
    ]
    plain, checkpointed = (step(model, batch) for model in models)
    assert float(checkpointed.stats["mvq_frames"]) > 0
    torch.testing.assert_close(checkpointed.loss, plain.loss)
    torch.testing.assert_close(checkpointed.gradients, plain.gradients)


@pytest.mark.parametrize(
    "encoder, conf",
    [
        ("e_branchformer", {"layer_drop_rate": 0.5}),
        ("torchaudiohubert", {"encoder_layer_drop": 0.5}),
    ],
)
def test_dropped_layer_adds_no_loss_in_that_step(build, batch, encoder, conf):
    """ESPnet's other encoders take the option too, but drop no layer."""
    model, stock = build(encoder, 1, conf), build(encoder, None, conf)
    dropped = []
    for seed in range(8):
        result = step(model, batch, seed)
        assert set(STATS) <= set(result.stats)
        dropped.append(bool(result.stats["mvq_frames"].isnan()))
        # DDP needs a gradient in any case.
        head = head_gradient(result.gradients)
        assert head is not None and head.any() != dropped[-1]
        if dropped[-1]:
            assert_same_as_stock(result, step(stock, without(batch), seed))
    assert set(dropped) == {True, False}


@pytest.mark.parametrize("encoder", ["conformer", "branchformer"])
def test_stochastic_depth_keeps_the_loss_in_every_step(build, batch, encoder):
    conf, plain = {"stochastic_depth_rate": 0.5}, without(batch)
    model, stock = build(encoder, 1, conf), build(encoder, None, conf)
    assert_same_as_stock(step(model, plain), step(stock, plain))
    for _ in range(6):
        assert model(**batch)[1]["mvq_frames"] > 0


@pytest.mark.parametrize("layer", [1, -1])
@pytest.mark.parametrize("encoder", ["transformer", "conformer", "e_branchformer"])
def test_intermediate_ctc(build, batch, encoder, layer):
    """The encoder's output is then a pair."""
    options, plain = {"model_conf": {"interctc_weight": 0.5}}, without(batch)
    model = build(encoder, layer, INTERCTC, **options)
    stock = build(encoder, None, INTERCTC, **options)
    assert_same_as_stock(step(model, plain), step(stock, plain))
    _, stats, _, gradients = step(model, batch)
    assert float(stats["mvq_frames"]) > 0 and head_gradient(gradients).any()
    assert "loss_interctc_layer1" in stats


@pytest.mark.parametrize(
    "encoder, layer",
    [
        (
            "torchaudiohubert",
            "hubert_pretrain_model.wav2vec2.encoder.feature_projection",
        ),
        ("whisper", "encoders.blocks.0.attn_ln"),
    ],
)
@pytest.mark.parametrize("frame", [8, 17])
def test_encoders_of_waveforms_see_speech_of_their_time(build, encoder, layer, frame):
    """By the middle of the gradient: they normalise over the whole utterance too."""
    model = build(encoder, layer).eval()
    grid = student_frame_grid(None, model.encoder, layer=layer)
    speech = (0.1 * torch.randn(1, 9600)).requires_grad_()
    with LayerHook(model.encoder, layer).record() as recorded:
        model.encode(speech, torch.tensor([9600]))
    recorded.frames.values[0, frame].square().sum().backward()
    energy = speech.grad[0].square()
    middle = float((energy * torch.arange(9600)).sum() / energy.sum())
    expected = grid.offset_samples + frame * grid.shift_samples
    assert abs(middle - expected) < grid.shift_samples / 2
