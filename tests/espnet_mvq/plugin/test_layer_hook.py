"""What a tap hears of an encoder, and that it hears nothing else."""

import pytest
import torch

from espnet_mvq.plugin import layer_hook as tap_module
from espnet_mvq.plugin.layer_hook import EncoderTap

E_BRANCHFORMER = {"cgmlp_linear_units": 8, "cgmlp_conv_kernel": 3}


def hear(tap, encoder, *arguments):
    with tap.listening():
        encoder(*arguments)
        return tap.take()


@pytest.fixture
def features():
    return torch.randn(2, 40, 8), torch.tensor([40, 33])


@pytest.fixture
def build_encoder(build_model):
    """Return a function that builds an encoder of 2 blocks of 8 channels."""

    def build(encoder="transformer", **conf):
        model = build_model(model="espnet", encoder=encoder, encoder_conf=conf)
        return model.encoder.eval()

    return build


@pytest.mark.parametrize("layer, path", [(1, "encoders.0"), (2, "encoders.1")])
def test_number_and_path_mean_the_same(build_encoder, features, layer, path):
    encoder = build_encoder()
    by_number, by_path = EncoderTap(encoder, layer), EncoderTap(encoder, path)
    assert by_number.num_channels == by_path.num_channels == 8
    with by_number.listening(), by_path.listening():
        encoder(*features)
        heard, same = by_number.take(), by_path.take()
    assert torch.equal(heard[0], same[0]) and torch.equal(heard[1], same[1])


@pytest.mark.parametrize(
    "path, num_channels",
    [
        ("encoders.0.feed_forward.w_1", 16),
        ("encoders.1.norm1", 8),
        ("after_norm", 8),
        ("embed", 8),
    ],
)
def test_channels_are_those_of_the_submodule(
    build_encoder, features, path, num_channels
):
    encoder = build_encoder(linear_units=16)
    tap = EncoderTap(encoder, path)
    heard, lengths = hear(tap, encoder, *features)
    assert tap.num_channels == heard.shape[2] == num_channels
    assert lengths.tolist() == encoder(*features)[1].tolist()


def test_output_of_another_shape_is_named(build_encoder, features):
    encoder = build_encoder()
    tap = EncoderTap(encoder, "embed.conv")
    message = r"layer embed.conv: puts out \(2, 8, 9, 1\), expected .* = \(2, 9, 8\)"
    with pytest.raises(ValueError, match=message):
        hear(tap, encoder, *features)


def test_time_and_channels_the_other_way_round_are_refused(build_encoder, features):
    encoder = build_encoder("e_branchformer", **E_BRANCHFORMER, input_layer="conv1d2")
    with pytest.raises(ValueError, match=r"\(2, 8, 18\), expected .* = \(2, 18, 8\)"):
        hear(EncoderTap(encoder, "embed.conv"), encoder, *features)


def test_longer_outputs_are_cut_to_the_encoders_lengths(build_encoder, features):
    """Blocks of the Longformer work on whole windows."""
    encoder = build_encoder()
    tap = EncoderTap(encoder, 1)
    encoder.encoders[0].register_forward_hook(lambda m, a, out: None)
    encoder.after_norm.register_forward_hook(lambda m, a, out: out[:, :7])
    heard, lengths = hear(tap, encoder, *features)
    assert heard.shape[1] == 9 and int(lengths.max()) == 9


def test_lengths_do_not_exceed_the_frames(build_encoder, features):
    encoder = build_encoder()
    encoder.register_forward_hook(lambda m, a, out: (out[0], out[1] + 5, out[2]))
    heard, lengths = hear(EncoderTap(encoder, -1), encoder, *features)
    assert lengths.max() == heard.shape[1]


@pytest.mark.parametrize("kind", ["transformer", "conformer"])
@pytest.mark.parametrize("layer", [1, 2, "encoders.0", "encoders.1.norm1"])
def test_blocks_that_work_on_chunks_are_refused_at_once(build_encoder, kind, layer):
    blocks = {"block_size": 8, "hop_size": 4, "look_ahead": 2}
    encoder = build_encoder(f"contextual_block_{kind}", **blocks)
    with pytest.raises(ValueError, match="on chunks: use layer: -1, the encoder outp"):
        EncoderTap(encoder, layer)
    assert EncoderTap(encoder, "embed").num_channels == 8
    encoder.block_size = 0  # no chunks
    EncoderTap(encoder, layer)


def test_layer_that_was_dropped_is_silent(build_encoder, features):
    conf = {**E_BRANCHFORMER, "layer_drop_rate": 1.0}
    encoder = build_encoder("e_branchformer", **conf).train()
    assert hear(EncoderTap(encoder, 1), encoder, *features) == (None, None)
    assert hear(EncoderTap(encoder, -1), encoder, *features)[0] is not None
    assert hear(EncoderTap(encoder, 1), encoder.eval(), *features)[0] is not None


def test_nothing_is_kept_of_what_runs_again_in_the_backward_pass(
    build_encoder, features
):
    conf = {**E_BRANCHFORMER, "gradient_checkpoint_layers": [0, 1, 2]}
    encoder, runs = build_encoder("e_branchformer", **conf).train(), []
    tap = EncoderTap(encoder, 1)
    encoder.encoders[0].register_forward_pre_hook(lambda m, args: runs.append(1))
    heard, _ = hear(tap, encoder, *features)
    heard.square().sum().backward()
    assert len(runs) == 2 and tap.take() == (None, None)
    assert encoder.embed.conv[0].weight.grad.any()


@pytest.mark.parametrize("path", ["encoders", "encoders.0.norm1"])
def test_layer_that_never_runs_is_refused(build_encoder, features, monkeypatch, path):
    """The encoder runs the blocks one by one, not the list of them."""
    monkeypatch.setattr(tap_module, "MAX_RUNS_UNHEARD", 3)
    encoder = build_encoder()
    tap = EncoderTap(encoder, path)
    if path != "encoders":
        assert hear(tap, encoder, *features)[0] is not None
        encoder.encoders[0].norm1 = torch.nn.Identity()  # heard before: layer drop
    for _ in range(2):
        assert hear(tap, encoder, *features) == (None, None)
    if path == "encoders":
        with pytest.raises(ValueError, match="encoders: the encoder ran 3 times with"):
            hear(tap, encoder, *features)
    else:
        hear(tap, encoder, *features)
