"""Where encoder frames lie in time, probed by gradients and by counting frames."""

import pytest
import torch

from espnet_mvq.distillation import IGNORE
from espnet_mvq.plugin.geometry import student_frame_grid, subsampling

INPUT_LAYERS = ["linear", None] + [f"conv2d{n}" for n in ("", 1, 2, 6, 8)]
INPUT_LAYERS += ["conv1d2"]
CONFORMER_LAYERS = ["conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "linear"]


def build_encoder(input_layer, conformer=False):
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
    from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

    encoder_class = ConformerEncoder if conformer else TransformerEncoder
    return encoder_class(
        32,
        output_size=8,
        attention_heads=2,
        linear_units=8,
        num_blocks=1,
        input_layer=input_layer,
    ).eval()


def receptive_field(embed, frame, num_frames=60):
    """Return first and last feature frame that an encoder frame depends on."""
    # Random weights behind a ReLU may be deaf to a frame: look through many draws
    seen = torch.zeros(num_frames)
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(1, num_frames, 32, requires_grad=True)
        if isinstance(embed, torch.nn.Sequential | torch.nn.Linear):
            y = embed(x)
        else:
            y = embed(x, torch.ones(1, 1, num_frames, dtype=torch.bool))[0]
        y = y[0] if isinstance(y, tuple) else y
        y[0, frame].square().sum().backward()
        seen += x.grad[0].abs().sum(1)
    touched = seen.nonzero().flatten()
    return int(touched[0]), int(touched[-1])


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_centre_of_the_receptive_field(input_layer):
    encoder = build_encoder(input_layer)
    factor, centre = subsampling(encoder)
    for frame in (0, 1, 3):
        first, last = receptive_field(encoder.embed, frame)
        assert (first + last) / 2 == centre + frame * factor


@pytest.mark.parametrize("input_layer", CONFORMER_LAYERS)
def test_input_layers_of_the_conformer_are_known(input_layer):
    encoder = build_encoder(input_layer, conformer=True)
    factor, _ = subsampling(encoder)
    lengths = torch.tensor([400])
    _, lengths, _ = encoder(torch.randn(1, 400, 32), lengths)
    assert int(lengths) == pytest.approx(400 / factor, abs=5)


@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d2", "conv2d6", "linear"])
def test_an_impulse_lands_in_the_frame_that_predicts_it(build_model, input_layer):
    """Teacher frames that know their own time, looked up by the student's frames."""
    options = {"input_layer": input_layer}
    model = build_model(encoder_conf=options, frontend_conf={"n_mels": 32})
    grid = student_frame_grid(model.frontend, model.encoder)
    frame = 5
    first, last = receptive_field(model.encoder.embed, frame)
    centre_samples = 160 * (first + last) / 2
    indexes = torch.arange(200).reshape(1, 200, 1).expand(-1, -1, 2)
    targets = model.mvq.aligner.targets(
        indexes, torch.tensor([200]), torch.tensor([20]), 20
    )
    times = 199.5 + 320 * targets[0, frame][targets[0, frame] != IGNORE]
    assert abs(float(times.mean()) - centre_samples) <= 160
    assert (times - centre_samples).abs().max() <= max(grid.shift_samples / 2, 160)


def test_grid_counts_hop_and_subsampling(build_model):
    model = build_model(frontend_conf={"hop_length": 128})
    grid = student_frame_grid(model.frontend, model.encoder)
    assert (grid.shift_samples, grid.offset_samples) == (512, 384)


def test_stft_that_is_not_centred_shifts_the_grid(build_model):
    model = build_model(frontend_conf={"center": False})
    grid = student_frame_grid(model.frontend, model.encoder)
    assert (grid.shift_samples, grid.offset_samples) == (640, 480 + 64)


def test_given_grid_is_taken(build_model):
    model = build_model()
    grid = student_frame_grid(model.frontend, model.encoder, 100, 7.5)
    assert (grid.shift_samples, grid.offset_samples) == (100, 7.5)


@pytest.mark.parametrize("encoder", ["transformer", "rnn"])
def test_grid_fits_the_number_of_encoder_frames(
    build_model, build_recurrent_model, speech, encoder
):
    """A grid that is guessed wrong would distil from other places, silently."""
    build = build_recurrent_model if encoder == "rnn" else build_model
    try:
        model = build({"layer": -1})
    except ValueError as error:
        assert "student_frame_shift_samples" in str(error)
        return
    grid = student_frame_grid(model.frontend, model.encoder)
    _, lengths = model.eval().encode(*speech)
    assert (lengths * grid.shift_samples - speech[1]).abs().max() < 3000


def test_front_ends_and_input_layers_not_known_say_what_to_give():
    with pytest.raises(ValueError, match="front end NoneType.*_frame_shift_samples"):
        student_frame_grid(None, build_encoder("conv2d"))
    encoder = torch.nn.Module()
    encoder.embed = torch.nn.Conv1d(1, 1, 1)
    frontend = torch.nn.Module()
    frontend.hop_length = 160
    with pytest.raises(ValueError, match="input layer Conv1d: .*_frame_shift_samples"):
        student_frame_grid(frontend, encoder)
