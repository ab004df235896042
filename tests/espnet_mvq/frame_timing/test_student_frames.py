"""Where encoder frames lie in time, measured at the samples."""

import pytest
import torch
from builders import RECURRENT, build_model

from espnet_mvq.frame_timing.encoders import subsampling
from espnet_mvq.frame_timing.front_ends import student_frame_grid

# Input layers of each encoder, and what its options have beside those of the tiny model
ENCODERS = {
    "transformer": (["linear", "conv1d2", "conv2d8"], {}),
    "conformer": (["conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8"], {}),
    "branchformer": (["linear", "conv2d", "conv2d2"], {"linear_units": None}),
    "e_branchformer": (["conv1d1", "conv1d2", "conv1d3", "conv2d6", "linear"], {}),
    "contextual_block_transformer": (["linear", "conv2d", "conv2d6", "conv2d8"], {}),
    "contextual_block_conformer": (["linear", "conv2d"], {}),
}
KINDS = [(name, layer) for name, (layers, _) in ENCODERS.items() for layer in layers]
# Encoder, its options, and how it subsamples
RECURRENT_KINDS = [
    ("rnn", {"subsample": [1, 2, 2]}, (4, 0)),
    ("rnn", {"subsample": [2]}, (2, 0)),
    ("rnn", {"subsample": [3, 1, 1], "rnn_type": "gru"}, (3, 0)),
    ("rnn", {"subsample": [1], "bidirectional": False}, (1, 0)),
    ("rnn", {"use_projection": False}, (1, 0)),
    ("vgg_rnn", {}, (4, 1.5)),
    ("vgg_rnn", {"use_projection": False, "bidirectional": False}, (4, 1.5)),
]
NUM_SAMPLES = 14_400
TEACHER_FRAMES = (18, 19, 25)


def measure_centres(model, num_draws):
    """Return the centres of the samples from which teacher frames are predicted.

    Through the whole model: front end, encoder, alignment and loss.
    """
    # The task's own loss is not to reach the speech; the hook of the layer runs before.
    handle = model.encoder.register_forward_hook(
        lambda module, args, output: (output[0].detach(), *output[1:])
    )
    batch_size, num_frames = len(TEACHER_FRAMES), NUM_SAMPLES // 320
    indexes = torch.full((batch_size, num_frames, 2), -1)
    indexes[torch.arange(batch_size), torch.tensor(TEACHER_FRAMES)] = 1
    sensitivity = torch.zeros(batch_size, NUM_SAMPLES)
    for seed in range(num_draws):
        torch.manual_seed(seed)
        for parameter in model.encoder.parameters():
            if parameter.dim() > 2:
                torch.nn.init.xavier_uniform_(parameter)
        speech = (0.1 * torch.randn(batch_size, NUM_SAMPLES)).requires_grad_()
        loss, _, _ = model(
            speech=speech,
            speech_lengths=torch.full((batch_size,), NUM_SAMPLES),
            text=torch.tensor([[2, 3]] * batch_size),
            text_lengths=torch.tensor([2] * batch_size),
            codebook_indexes=indexes,
            codebook_indexes_lengths=torch.full((batch_size,), num_frames),
        )
        loss.backward()
        sensitivity += speech.grad.abs()
    handle.remove()
    samples = [row.nonzero() for row in sensitivity]
    return [float(s[0] + s[-1]) / 2 for s in samples]


def check_alignment(model, layer, num_draws=5):
    """Check that predictions see speech at most half a frame from their time.

    Random weights behind a ReLU may ignore a frame, hence several draws.
    """
    shift = student_frame_grid(model.frontend, model.encoder, layer=layer).shift_samples
    centres = measure_centres(model.eval(), num_draws)
    for teacher_frame, centre in zip(TEACHER_FRAMES, centres):
        time = 199.5 + 320 * teacher_frame
        assert abs(centre - time) <= shift / 2, teacher_frame


def build_encoder_model(layer, frontend_conf={}, **options):
    """Build a model whose windows overlap."""
    frontend_conf = {"n_fft": 512, "n_mels": 32, **frontend_conf}
    return build_model({"layer": layer}, frontend_conf=frontend_conf, **options)


@pytest.mark.parametrize(
    "encoder, input_layer, hop",
    [(*kind, 128) for kind in KINDS] + [("conformer", "conv2d", 160)],
)
def test_input_layers(encoder, input_layer, hop):
    """Layers before the blocks see frames around the teacher's."""
    model = build_encoder_model(
        "embed",
        encoder=encoder,
        encoder_conf={**ENCODERS[encoder][1], "input_layer": input_layer},
        frontend_conf={"hop_length": hop},
    )
    check_alignment(model, "embed")


@pytest.mark.parametrize("n_mels", [8, 32])  # 8: as many as the encoder's channels
def test_no_input_layer(n_mels):
    model = build_encoder_model(
        "encoders.0.norm1",  # of each frame alone
        encoder_conf={"input_layer": None},
        frontend_conf={"n_mels": n_mels},
    )
    check_alignment(model, "encoders.0.norm1")


@pytest.mark.parametrize("encoder, options, expected", RECURRENT_KINDS)
def test_recurrent_encoders(encoder, options, expected):
    conf = {**RECURRENT, "num_layers": 3, **options}
    model = build_encoder_model(-1, encoder=encoder, encoder_conf=conf)
    assert subsampling(model.encoder) == expected
    # No memory: the frames that an RNN remembers depend on its training.
    for module in model.encoder.modules():
        if isinstance(module, (torch.nn.LSTM, torch.nn.GRU)):
            forget_memory(module)
    check_alignment(model, -1, num_draws=5 if encoder == "vgg_rnn" else 1)


def forget_memory(rnn):
    """Shut the gates through which an LSTM or GRU remembers."""
    for name, parameter in rnn.named_parameters():
        if name.startswith(("weight_hh", "bias_hh")):
            parameter.data.zero_()
        elif name.startswith("bias_ih"):
            num_gates = 4 if isinstance(rnn, torch.nn.LSTM) else 3
            parameter.data.chunk(num_gates)[1].fill_(-1e4)


def test_grid_counts_hop_and_subsampling():
    model = build_model(frontend_conf={"hop_length": 128})
    grid = student_frame_grid(model.frontend, model.encoder)
    assert (grid.shift_samples, grid.offset_samples) == (512, 384)


def test_given_grid_is_taken():
    model = build_model()
    for given, expected in (
        ((100, 7.5), (100, 7.5)),
        ((100, None), (100, 0)),
        ((None, 7.5), (640, 7.5)),
    ):
        grid = student_frame_grid(model.frontend, model.encoder, *given)
        assert (grid.shift_samples, grid.offset_samples) == expected


def test_features_from_files():
    """`feats_type: extracted`: their frame shift is not known."""
    options = {"input_size": 32, "frontend_conf": {}}
    message = "takes one of 4 of them, the first .* frame 3, .* give 640 and 480; give"
    with pytest.raises(ValueError, match=message):
        build_model(**options)
    given = {"student_frame_shift_samples": 640, "student_frame_offset_samples": 480}
    model, features = build_model(given, **options), torch.randn(2, 60, 32)
    _, stats, _ = model(
        speech=features,
        speech_lengths=torch.tensor([60, 50]),
        text=torch.tensor([[2, 3], [3, 2]]),
        text_lengths=torch.tensor([2, 2]),
        codebook_indexes=torch.randint(0, 4, (2, 30, 2)),
        codebook_indexes_lengths=torch.tensor([30, 25]),
    )
    assert float(stats["mvq_frames"]) == 14 + 13


class Unknown(torch.nn.Module):
    hop_length = 160


def test_parts_not_known_say_what_to_give():
    model = build_model()
    encoder, given = Unknown(), "give mvq_conf: {student_frame_shift_samples"
    with pytest.raises(ValueError, match="encoder Unknown: its subsampling.*" + given):
        student_frame_grid(model.frontend, encoder)
    encoder.embed = torch.nn.Conv1d(1, 1, 1)
    with pytest.raises(ValueError, match="Unknown: input layer Conv1d: .*" + given):
        student_frame_grid(model.frontend, encoder)
    with pytest.raises(ValueError, match="front end Unknown: its frame shift.*"):
        student_frame_grid(Unknown(), model.encoder)
    with pytest.raises(ValueError, match="pre-encoder Unknown: its frames .*" + given):
        student_frame_grid(model.frontend, model.encoder, preencoder=Unknown())
