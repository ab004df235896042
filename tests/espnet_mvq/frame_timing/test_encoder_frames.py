"""Frames of parts of ESPnet's models, measured at their inputs."""

import pytest
import torch
from builders import BLOCK as CONFORMER_BLOCK
from builders import build_model

from espnet_mvq.frame_timing.encoders import (
    counts_padding,
    find_blocks,
    num_frames,
    subsampling,
)
from espnet_mvq.frame_timing.front_ends import frame_grid, frontend_frames

CONV1D = {"block_type": "conv1d", "output_size": 8, "kernel_size": 3}


def build_transducer_encoder(blocks, streaming=False, **input_conf):
    """Build the encoder of the task asr_transducer."""
    from espnet2.asr_transducer.encoder.encoder import Encoder

    blocks = [dict(block) for block in blocks]
    main_conf = {"dynamic_chunk_training": streaming}
    return Encoder(32, blocks, input_conf, main_conf).eval()


def measure_frames(function, frames, num_features=80):
    """Return the centres of the feature frames that outputs of a function see."""
    sensitivity = torch.zeros(len(frames), num_features)
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(1, num_features, 32, requires_grad=True)
        y = function(x)
        for n, frame in enumerate(frames):
            (gradient,) = torch.autograd.grad(y[0, frame].sum(), x, retain_graph=True)
            sensitivity[n] += gradient[0].abs().sum(1)
    inputs = [row.nonzero() for row in sensitivity]
    return [float(i[0] + i[-1]) / 2 for i in inputs]


@pytest.mark.parametrize(
    "input_conf, expected",
    [
        ({"vgg_like": False, "subsampling_factor": 2}, (2, 3)),
        ({"vgg_like": False, "subsampling_factor": 4}, (4, 3)),
        ({"vgg_like": False, "subsampling_factor": 6}, (6, 5)),
        ({"vgg_like": True, "subsampling_factor": 4}, (4, 4.5)),
        # ESPnet's poolings have a stride of 2 each for this factor too
        ({"vgg_like": True, "subsampling_factor": 6}, (4, 5)),
    ],
)
def test_input_blocks_of_the_task_asr_transducer(input_conf, expected):
    encoder = build_transducer_encoder([CONFORMER_BLOCK], **input_conf)
    shift, centre = subsampling(encoder)
    assert (shift, centre) == expected
    centres = measure_frames(lambda x: encoder.embed(x)[0], (3, 4, 7))
    for frame, place in zip((3, 4, 7), centres):
        assert abs(centre + frame * shift - place) <= shift / 2


@pytest.mark.parametrize("streaming", [False, True])
def test_convolution_blocks_of_the_task_asr_transducer(streaming):
    """Blocks before the layer count, those behind do not."""
    blocks = [{**CONV1D, "stride": 2}, {**CONV1D, "dilation": 2}, CONFORMER_BLOCK]
    if streaming:
        blocks[1] = CONV1D
    encoder = build_transducer_encoder(blocks, streaming)
    places = {"embed": (4, 3)}
    if streaming:  # causal, and then ESPnet leaves out the stride
        places.update({1: (4, 3 - 4), 2: (4, 3 - 8), -1: (4, 3 - 8)})
    else:
        places.update({1: (8, 7), 2: (8, 23), -1: (8, 23)})
    places["encoders.blocks.0"], places["encoders.blocks.1.conv"] = places[1], places[2]
    for layer, expected in places.items():
        assert subsampling(encoder, layer) == expected, layer

    def run(x):
        y, mask = encoder.embed(x, torch.zeros(1, x.shape[1], dtype=torch.bool))
        position = encoder.pos_enc(y)
        for block in encoder.encoders.blocks[:2]:
            y, mask, position = block(y, position, mask)
        return y

    shift, centre = places[2]
    expected = [centre + frame * shift for frame in (5, 6)]
    assert measure_frames(run, (5, 6), 160) == expected


@pytest.mark.parametrize(
    "blocks, input_conf",
    [
        ([], {"vgg_like": False, "subsampling_factor": 2}),
        ([], {"vgg_like": False, "subsampling_factor": 6}),
        ([], {"vgg_like": True, "subsampling_factor": 4}),
        ([], {"vgg_like": True, "subsampling_factor": 6}),
        ([{**CONV1D, "stride": 2}, {**CONV1D, "dilation": 2}], {}),
    ],
)
def test_number_of_frames_in_the_task_asr_transducer(blocks, input_conf):
    """ESPnet counts those of the features: all of padding are among them."""
    encoder = build_transducer_encoder([*blocks, CONFORMER_BLOCK], **input_conf)
    assert counts_padding(encoder)
    for length in range(60, 72):
        lengths = torch.tensor([length])
        frames, _ = encoder(torch.randn(1, length, 32), lengths)
        assert num_frames(encoder, lengths).tolist() == [frames.shape[1]]
        embedded = encoder.embed(torch.randn(1, length, 32))[0]
        assert num_frames(encoder, lengths, "embed").tolist() == [embedded.shape[1]]


@pytest.mark.parametrize(
    "input_layer", ["linear", "conv1d2", "conv2d", "conv2d1", "conv2d6", "conv2d8"]
)
def test_number_of_frames(input_layer):
    model = build_model(
        model="espnet",
        frontend_conf={"n_mels": 32},
        encoder_conf={"input_layer": input_layer},
    )
    encoder = model.encoder.eval()
    assert not counts_padding(encoder)
    for length in range(30, 38):
        lengths = torch.tensor([length])
        _, counted, _ = encoder(torch.randn(1, length, 32), lengths)
        assert num_frames(encoder, lengths).tolist() == counted.tolist()
    assert num_frames(encoder, torch.tensor([0])).tolist() == [0]


def build_frontend(kind, **options):
    from espnet2.tasks.asr import frontend_choices

    if kind == "wav2vec_cnn":
        options.update(norm_mode="layer_norm", conv_mode="standard", bias=True)
    return frontend_choices.get_class(kind)(**options).eval()


FBANK = {"frontend_conf": {"upstream": "fbank_no_cmvn"}}
TILED = {"frontend_conf": {"upstream": "fbank_no_cmvn", "tile_factor": 2}}
HOPS = [{"frontend_type": "default", "hop_length": hop} for hop in (128, 256)]


@pytest.mark.parametrize(
    "kind, options, expected",
    [
        ("default", {}, (128, 0)),
        ("default", {"center": False}, (128, 256)),
        ("sliding_window", {}, (160, 199.5)),
        ("sliding_window", {"win_length": 800, "hop_length": 320}, (320, 399.5)),
        ("wav2vec_cnn", {"shapes": [[4, 10, 5]] + [[4, 3, 2]] * 2}, (20, 19.5)),
        ("s3prl", FBANK, (160, 199.5)),
        ("s3prl", TILED, (80, 159.5)),
        ("fused", {"frontends": HOPS}, (128, -32)),
    ],
)
def test_front_ends(kind, options, expected):
    """A changed sample changes the frames around it, as many before as behind."""
    if kind == "s3prl":
        pytest.importorskip("s3prl")
    frontend = build_frontend(kind, **options)
    shift, offset = frontend_frames(frontend)
    assert (shift, offset) == expected
    waveform, lengths, misses = 0.1 * torch.randn(1, 8000), torch.tensor([8000]), []
    if kind == "sliding_window":
        waveform = waveform.abs() + 1
    with torch.no_grad():
        before = frontend(waveform, lengths)[0][0]
        for sample in range(4000, 4000 + int(4 * shift), max(1, int(shift) // 8)):
            changed = waveform.clone()
            changed[0, sample] += 1.0
            differs = frontend(changed, lengths)[0][0] != before
            frames = differs.reshape(len(before), -1).any(1).nonzero()
            centre = (float(frames[0]) + float(frames[-1])) / 2
            misses.append(offset + centre * shift - sample)
    assert abs(sum(misses) / len(misses)) < shift / 4


def stand_in(name, **attributes):
    """Return a module whose class has the name of another package's."""
    module = type(name, (torch.nn.Module,), {})()
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


def test_chosen_layers_of_s3prl_are_not_tiled():
    frontend = stand_in("S3prlFrontend", hop_length=320, tile_factor=2, layer=3)
    assert frontend_frames(frontend) == (320, 199.5)
    frontend.layer = -1
    assert frontend_frames(frontend) == (160, 119.5)


def test_front_ends_that_are_encoders():
    frontend = stand_in("ESPnetSSLFrontend", upstream=build_model(model="espnet"))
    assert frontend_frames(frontend) == (640, 480)
    # The spectrogram's hop; behind it are Whisper's convolutions
    assert frontend_frames(stand_in("WhisperFrontend", hop_length=160)) == (320, 0)


def test_encoders_that_read_speech():
    shapes = [(10, 5)] + [(3, 2)] * 4 + [(2, 2)] * 2
    layers = [torch.nn.Sequential(torch.nn.Conv1d(1, 1, k, s)) for k, s in shapes]
    extractor = stand_in("Extractor", conv_layers=torch.nn.ModuleList(layers))
    model = stand_in("Wav2Vec2Model", feature_extractor=extractor)
    encoder = stand_in("FairSeqWav2Vec2Encoder", encoders=model)
    assert frame_grid(encoder) == (320, 199.5)
    assert find_blocks(encoder) is None
