"""Recording of encoder layers through hooks."""

import pytest
import torch
from builders import build_model

from espnet_mvq.plugin import layer_hook
from espnet_mvq.plugin.layer_hook import LayerHook

E_BRANCHFORMER = {"cgmlp_linear_units": 8, "cgmlp_conv_kernel": 3}


def record(hook, encoder, *arguments):
    """Run an encoder; return the layer's output and lengths, None if it did not run."""
    with hook.record() as recorded:
        encoder(*arguments)
        assert recorded.frames is None
    frames = recorded.frames
    return None if frames is None else (frames.values, frames.lengths)


@pytest.fixture
def features():
    return torch.randn(2, 40, 8), torch.tensor([40, 33])


def build_encoder(encoder="transformer", **conf):
    """Build an encoder of 2 blocks of 8 channels."""
    model = build_model(model="espnet", encoder=encoder, encoder_conf=conf)
    return model.encoder.eval()


@pytest.mark.parametrize("layer, path", [(1, "encoders.0"), (2, "encoders.1")])
def test_number_and_path_mean_the_same(features, layer, path):
    encoder = build_encoder()
    by_number, by_path = LayerHook(encoder, layer), LayerHook(encoder, path)
    assert by_number.num_channels == by_path.num_channels == 8
    with by_number.record() as first, by_path.record() as second:
        encoder(*features)
    assert torch.equal(first.frames.values, second.frames.values)
    assert torch.equal(first.frames.lengths, second.frames.lengths)


@pytest.mark.parametrize(
    "path, num_channels",
    [
        ("encoders.0.feed_forward.w_1", 16),
        ("encoders.1.norm1", 8),
        ("after_norm", 8),
        ("embed", 8),
    ],
)
def test_channels_are_those_of_the_submodule(features, path, num_channels):
    encoder = build_encoder(linear_units=16)
    hook = LayerHook(encoder, path)
    frames, lengths = record(hook, encoder, *features)
    assert hook.num_channels == frames.shape[2] == num_channels
    assert lengths.tolist() == encoder(*features)[1].tolist()


def test_output_of_another_shape_is_named(features):
    encoder = build_encoder()
    hook = LayerHook(encoder, "embed.conv")
    message = r"layer embed.conv: puts out \(2, 8, 9, 1\), expected .* = \(2, 9, 8\)"
    with pytest.raises(ValueError, match=message):
        record(hook, encoder, *features)


def test_time_and_channels_the_other_way_round_are_refused(features):
    encoder = build_encoder("e_branchformer", **E_BRANCHFORMER, input_layer="conv1d2")
    with pytest.raises(ValueError, match=r"\(2, 8, 18\), expected .* = \(2, 18, 8\)"):
        record(LayerHook(encoder, "embed.conv"), encoder, *features)


def test_longer_outputs_are_cut_to_the_encoders_lengths(features):
    """Blocks of the Longformer work on whole windows."""
    encoder = build_encoder()
    hook = LayerHook(encoder, 1)
    encoder.encoders[0].register_forward_hook(lambda m, a, out: None)
    encoder.after_norm.register_forward_hook(lambda m, a, out: out[:, :7])
    frames, lengths = record(hook, encoder, *features)
    assert frames.shape[1] == 9 and int(lengths.max()) == 9


def test_lengths_do_not_exceed_the_frames(features):
    encoder = build_encoder()
    stock = encoder.forward

    def forward(*args):
        output, lengths, states = stock(*args)
        return output, lengths + 5, states

    encoder.forward = forward
    frames, lengths = record(LayerHook(encoder, -1), encoder, *features)
    assert lengths.max() == frames.shape[1]


@pytest.mark.parametrize("kind", ["transformer", "conformer"])
@pytest.mark.parametrize("layer", [1, 2, "encoders.0", "encoders.1.norm1"])
def test_blocks_that_work_on_chunks_are_refused_at_once(kind, layer):
    blocks = {"block_size": 8, "hop_size": 4, "look_ahead": 2}
    encoder = build_encoder(f"contextual_block_{kind}", **blocks)
    with pytest.raises(ValueError, match="on chunks: use layer: -1, the encoder outp"):
        LayerHook(encoder, layer)
    assert LayerHook(encoder, "embed").num_channels == 8
    encoder.block_size = 0  # no chunks
    LayerHook(encoder, layer)


def test_layer_that_layer_drop_skips_has_no_frames(features):
    conf = {**E_BRANCHFORMER, "layer_drop_rate": 1.0}
    encoder = build_encoder("e_branchformer", **conf).train()
    assert record(LayerHook(encoder, 1), encoder, *features) is None
    assert record(LayerHook(encoder, -1), encoder, *features) is not None
    assert record(LayerHook(encoder, 1), encoder.eval(), *features) is not None


def test_nothing_is_kept_of_what_runs_again_in_the_backward_pass(features):
    conf = {**E_BRANCHFORMER, "gradient_checkpoint_layers": [0, 1, 2]}
    encoder, runs = build_encoder("e_branchformer", **conf).train(), []
    hook = LayerHook(encoder, 1)
    encoder.encoders[0].register_forward_pre_hook(lambda m, args: runs.append(1))
    frames, _ = record(hook, encoder, *features)
    frames.square().sum().backward()
    assert len(runs) == 2 and not encoder.encoders[0]._forward_hooks
    assert encoder.embed.conv[0].weight.grad.any()


@pytest.mark.parametrize("path", ["encoders", "encoders.0.norm1"])
def test_layer_that_never_runs_is_refused(features, monkeypatch, path):
    """The encoder runs the blocks one by one, not the list of them."""
    monkeypatch.setattr(layer_hook, "MAX_RUNS_WITHOUT_LAYER", 3)
    encoder = build_encoder()
    hook = LayerHook(encoder, path)
    if path != "encoders":
        assert record(hook, encoder, *features) is not None
        # As with LayerDrop: it has run before.
        encoder.encoders[0].norm1 = torch.nn.Identity()
    for _ in range(2):
        assert record(hook, encoder, *features) is None
    if path == "encoders":
        with pytest.raises(ValueError, match="encoders: the encoder ran 3 times with"):
            record(hook, encoder, *features)
    else:
        record(hook, encoder, *features)
