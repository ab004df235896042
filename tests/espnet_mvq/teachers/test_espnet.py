"""Teachers trained with ESPnet against the models as ESPnet builds them."""

import builders
import numpy as np
import pytest
import torch
from builders import MVQ_CONF, TINY_MODEL
from corpus_builders import MakeFile, save_espnet

from espnet_mvq.teachers import TeacherError, build_teacher
from espnet_mvq.teachers.base import EmbeddingError

ENCODER = {
    "output_size": 8,
    "attention_heads": 2,
    "num_blocks": 2,
    "dropout_rate": 0.5,
    "positional_dropout_rate": 0.5,
}
TRANSFORMER = {"encoder": "transformer", "encoder_conf": {"linear_units": 8}}
CONFORMER = {"encoder": "conformer", "encoder_conf": {"linear_units": 8}}
E_BRANCHFORMER = {
    "encoder": "e_branchformer",
    "encoder_conf": {"cgmlp_linear_units": 8, "cgmlp_conv_kernel": 3},
}
INTERCTC = {
    "encoder": "conformer",
    "encoder_conf": {"linear_units": 8, **builders.INTERCTC},
    "model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.5},
}
SIZES = {"hidden_size": 8, "output_size": 8, "num_layers": 2}
RECURRENT = {"encoder": "rnn", "encoder_conf": {**dict.fromkeys(ENCODER), **SIZES}}
HUBERT = {
    "frontend": None,
    "input_size": 1,
    "encoder": "torchaudiohubert",
    "encoder_conf": {
        **dict.fromkeys(ENCODER),
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
    },
}
CNN = {
    "frontend": "wav2vec_cnn",
    "frontend_conf": {
        "n_fft": None,
        "hop_length": None,
        "n_mels": None,
        "norm_mode": "layer_norm",
        "conv_mode": "standard",
        "bias": True,
        "shapes": [[8, 10, 5]] + [[8, 3, 2]] * 4 + [[8, 2, 2]] * 2,
    },
    "encoder": "e_branchformer",
    "encoder_conf": {**E_BRANCHFORMER["encoder_conf"], "input_layer": "linear"},
}


def make_options(options):
    """Return options of a tiny model; None takes one away."""
    defaults = {
        **TINY_MODEL,
        "specaug": "specaug",
        "specaug_conf": {"time_mask_width_range": [0, 5]},
        "encoder_conf": ENCODER,
        "decoder": None,
        "model_conf": {"ctc_weight": 1.0},
    }
    merged = {**defaults, **options}
    for name in ("frontend_conf", "encoder_conf", "model_conf"):
        conf = {**defaults[name], **merged[name]}
        merged[name] = {k: v for k, v in conf.items() if v is not None}
    return merged


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a model; it returns its folder and the model."""

    def build(options=TRANSFORMER, folder="asr_tiny", seed=0, config=None, **others):
        options = make_options({**options, **others})
        path = tmp_path / folder
        return path, save_espnet(path, options, seed=seed, config=config)

    return build


def expected_layers(model, waveform):
    """Return input of the first block, its blocks' outputs and the encoder's."""
    encoder, lengths = model.encoder, torch.tensor([len(waveform)])
    states = []
    blocks = getattr(encoder, "encoders", None)
    if blocks is None:
        blocks = encoder.hubert_pretrain_model.wav2vec2.encoder.transformer.layers
    handles = [blocks[0].register_forward_pre_hook(lambda m, args: states.append(args))]
    for block in blocks:
        handles.append(
            block.register_forward_hook(lambda m, a, out: states.append(out))
        )
    with torch.no_grad():
        output, _ = model.encode(waveform[None].clone(), lengths)
    for handle in handles:
        handle.remove()
    for n, state in enumerate([*states, output]):
        while isinstance(state, tuple):
            state = state[0]
        states[n:] = [state, *states[n + 1 :]]
    return states


@pytest.mark.parametrize(
    "options", [TRANSFORMER, CONFORMER, E_BRANCHFORMER, INTERCTC, HUBERT, CNN]
)
def test_equals_the_model_itself(save, speech, options):
    path, model = save(options)
    states = expected_layers(model, speech[0][0])
    for layer, expected in zip((0, 1, 2, -1), states):
        teacher = build_teacher(f"espnet/{path}", layer)
        actual, lengths = teacher.embed(speech[0][:1], speech[1][:1])
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
        assert lengths.tolist() == [expected.shape[1]]
        assert (teacher.layer, teacher.dim) == (layer, expected.shape[2])


@pytest.mark.parametrize(
    "options",
    [TRANSFORMER, INTERCTC, HUBERT, {**CONFORMER, "normalize": "utterance_mvn"}],
)
@pytest.mark.parametrize("top, layers", [(-1, [0, 1, -1]), (2, [0, 1, 2])])
def test_all_layers_in_one_run(save, check_layers, options, top, layers):
    """The encoder output takes the place of the last block, whose norm it has."""
    path, _ = save(options)
    check_layers(lambda layer: build_teacher(f"espnet/{path}", layer), top, layers)


@pytest.mark.parametrize(
    "options",
    [
        CONFORMER,
        E_BRANCHFORMER,
        HUBERT,
        CNN,
        {**CONFORMER, "normalize": "utterance_mvn"},
    ],
)
def test_embeddings_do_not_depend_on_the_batch(save, check_batch_independence, options):
    path, _ = save(options)
    check_batch_independence(build_teacher(f"espnet/{path}", 1), [1, 2, 1])


def test_global_mvn_is_that_of_the_checkpoint(save, tmp_path, speech):
    """Of the whole recipe only the experiment folder need be there."""
    stats = tmp_path / "feats_stats.npz"
    np.savez(stats, count=4.0, sum=np.arange(8.0), sum_square=np.arange(8.0) ** 2 + 2)
    conf = {"stats_file": str(stats)}
    path, model = save(normalize="global_mvn", normalize_conf=conf)
    assert model.normalize.mean.any()
    stats.unlink()
    actual, _ = build_teacher(f"espnet/{path}").embed(speech[0][:1], speech[1][:1])
    expected = expected_layers(model, speech[0][0])[-1]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_student_is_a_teacher_without_what_the_plugin_added(save, speech):
    import espnet_mvq

    espnet_mvq.register()
    model_conf = {"ctc_weight": 1.0, "mvq_conf": {**MVQ_CONF, "layer": 1}}
    student, _ = save(CONFORMER, model="mvq", model_conf=model_conf)
    assert any(k.startswith("mvq.") for k in torch.load(student / "valid.acc.ave.pth"))
    teacher = build_teacher(f"espnet/{student}", 1)
    plain, _ = save(CONFORMER)
    same = build_teacher(f"espnet/{plain}", 1)
    assert teacher.id == same.id
    assert torch.equal(teacher.embed(*speech)[0], same.embed(*speech)[0])


def test_autocast_around_it_changes_nothing(save):
    """A student may train in half precision, where the log of silence is infinite."""
    spec = f"espnet/{save()[0]}"
    teacher = build_teacher(spec, layer=1)
    waveforms = [0.1 * torch.randn(4000), torch.zeros(4000)]
    actual = teacher.embed_batch(waveforms)
    with torch.autocast("cpu", torch.float16):
        again = teacher.embed_batch(waveforms)
    for one, other in zip(actual, again):
        assert one.isfinite().all() and torch.equal(one, other)
    half = build_teacher(spec, layer=1, dtype="float16").embed_batch(waveforms)[1]
    assert half.isfinite().all()


def test_id_stands_for_name_weights_and_config(save):
    teachers = [
        build_teacher(f"espnet/{save(**options)[0]}")
        for options in (
            {"seed": 0},
            {"seed": 0},
            {"seed": 1},
            {"frontend_conf": {"win_length": 100}},  # no weight knows of it
            {"folder": "asr_other"},
        )
    ]
    assert teachers[0].id == teachers[1].id
    assert len({teacher.id for teacher in teachers}) == 4
    assert teachers[0].id.startswith("espnet/asr_tiny@")
    assert teachers[0].id.split("@")[1] == teachers[4].id.split("@")[1]


@pytest.mark.parametrize(
    "options, shift, offset",
    [
        ({"encoder_conf": {"linear_units": 8, "input_layer": "conv2d"}}, 640, 480),
        ({"encoder_conf": {"linear_units": 8, "input_layer": "linear"}}, 160, 0),
        ({"frontend_conf": {"n_fft": 512, "center": False}}, 640, 480 + 256),
        ({"frontend_conf": {"n_fft": 512, "fs": "8k"}}, 640, 480),
        (CNN, 320, 199.5),
    ],
)
def test_frame_shift_and_offset(save, options, shift, offset):
    """A changed sample changes the frames around it, as many before as behind it."""
    overlapping = {"frontend_conf": {"n_fft": 512}}  # no sample between two windows
    path, _ = save({**CONFORMER, **overlapping, **options})
    teacher = build_teacher(f"espnet/{path}", 0)
    actual = teacher.frame_shift_samples, teacher.frame_offset_samples
    assert actual == (shift, offset)
    assert teacher.sample_rate == (8000 if "fs" in str(options) else 16000)
    waveform, misses = 0.1 * torch.randn(16000), []
    before = teacher.embed_batch([waveform])[0]
    for sample in range(8000, 8000 + shift, shift // 16):
        changed = waveform.clone()
        changed[sample] += 1.0
        differs = (teacher.embed_batch([changed])[0] != before).any(1).nonzero()
        centre = (float(differs[0]) + float(differs[-1])) / 2
        misses.append(offset + centre * shift - sample)
    assert abs(sum(misses) / len(misses)) < shift / 8


@pytest.mark.parametrize(
    "options, shift, offset", [(HUBERT, 320, 199.5), (RECURRENT, 640, 0)]
)
def test_frames_of_hubert_and_recurrent_encoders(save, options, shift, offset):
    teacher = build_teacher(f"espnet/{save(options)[0]}")
    actual = teacher.frame_shift_samples, teacher.frame_offset_samples
    assert actual == (shift, offset)


def test_pretrained_hubert_gives_embeddings_too(save, speech):
    """The HuBERT task's config: its model wants labels, the teacher does not."""
    path, model = save(HUBERT, config={"encoder": "torchaudio_hubert"})
    config = (path / "config.yaml").read_text()
    assert "finetuning: true" in config
    (path / "config.yaml").write_text(
        config.replace("finetuning: true", "finetuning: false")
    )
    actual, _ = build_teacher(f"espnet/{path}", 1).embed(speech[0][:1], speech[1][:1])
    expected = expected_layers(model, speech[0][0])[1]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_unknown_frames_must_be_given(save, speech, monkeypatch):
    monkeypatch.setattr("espnet_mvq.teachers.espnet.frame_grid", lambda **parts: None)
    path, _ = save(RECURRENT)
    spec = f"espnet/{path}"
    with pytest.raises(TeacherError, match="RNNEncoder are not known .*shift_samples="):
        build_teacher(spec)
    given = {"frame_shift_samples": 640, "frame_offset_samples": 10.0}
    teacher = build_teacher(spec, **given)
    assert (teacher.frame_shift_samples, teacher.frame_offset_samples) == (640, 10.0)
    assert teacher.embed(*speech)[1].tolist() == [16, 13, 11]
    with pytest.raises(TeacherError, match="got 50 frames for 2 s .* expected 100 at"):
        build_teacher(spec, **{**given, "frame_shift_samples": 320})
    with pytest.raises(TeacherError, match="got layer 1, but .* has no numbered"):
        build_teacher(spec, 1, **given)


def test_streaming_encoder_has_its_output_alone(save, speech):
    blocks = {"linear_units": 8, "block_size": 4, "hop_size": 2, "look_ahead": 1}
    path, model = save(encoder="contextual_block_transformer", encoder_conf=blocks)
    grid = {"frame_shift_samples": 640, "frame_offset_samples": 480}
    actual, _ = build_teacher(f"espnet/{path}", **grid).embed(*speech)
    expected, _ = model.encode(speech[0][:1].clone(), speech[1][:1])
    torch.testing.assert_close(actual[:1], expected, rtol=0, atol=1e-5)
    with pytest.raises(TeacherError, match="layers of the shapes .* one layer only"):
        build_teacher(f"espnet/{path}", **grid).embed_layers(list(speech[0]))
    with pytest.raises(TeacherError, match="work on chunks: use layer -1"):
        build_teacher(f"espnet/{path}", 1, **grid)


@pytest.mark.parametrize("norm_vars", [False, True])
@pytest.mark.parametrize("norm_means", [False, True])
def test_long_speech_is_normalised_before_it_is_cut(save, norm_means, norm_vars):
    conf = {"norm_means": norm_means, "norm_vars": norm_vars}
    path, _ = save(CONFORMER, normalize="utterance_mvn", normalize_conf=conf)
    teacher = build_teacher(f"espnet/{path}", 0)
    loudness = 10 ** torch.linspace(-3, 0, 3 * 16000)
    waveforms = [loudness * torch.randn(3 * 16000), torch.randn(8000), loudness]
    whole = teacher.embed_batch(waveforms)
    teacher.segment_s, teacher.overlap_s = 1.0, 0.2
    for actual, expected in zip(teacher.embed_batch(waveforms), whole):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_speech_too_short_for_an_encoder_is_named(save):
    conf = {**CONFORMER["encoder_conf"], "input_layer": "conv2d8"}
    grid = {"frame_shift_samples": 1280, "frame_offset_samples": 0}
    path, _ = save(CONFORMER, encoder_conf=conf, frontend_conf={"n_mels": 40})
    teacher = build_teacher(f"espnet/{path}", **grid)
    with pytest.raises(EmbeddingError, match="cannot embed 500 samples .TooShortUtt"):
        teacher.embed_batch([torch.randn(500)])


@pytest.mark.parametrize(
    "options",
    [
        {"frame_shift_samples": 0},
        {"frame_shift_samples": 640, "frame_offset_samples": -1},
    ],
)
def test_impossible_frames(save, options):
    with pytest.raises(TeacherError, match="expected a shift above 0 and an offset of"):
        build_teacher(f"espnet/{save()[0]}", **options)


@pytest.mark.parametrize("num_samples", [1, 63, 500, 961])
@pytest.mark.parametrize("options", [CONFORMER, HUBERT, RECURRENT])
def test_short_audio_has_a_frame(save, num_samples, options):
    layer = -1 if options is RECURRENT else 1
    teacher = build_teacher(f"espnet/{save(options)[0]}", layer)
    embeddings = teacher.embed_batch([torch.randn(num_samples)])[0]
    assert len(embeddings) >= 1 and embeddings.isfinite().all()


def test_layer_out_of_range(save):
    with pytest.raises(TeacherError, match="got layer 3, expected 1 to 2"):
        build_teacher(f"espnet/{save()[0]}", 3)


def test_checkpoint_is_chosen_as_espnet_does(save):
    path, _ = save()
    expected = build_teacher(f"espnet/{path}").id
    _, other = save(folder="other", seed=1)
    for name in ("valid.loss.ave.pth", "latest.pth", "1epoch.pth"):
        torch.save({"module": other.state_dict()}, path / name)
    assert build_teacher(f"espnet/{path}").id == expected
    chosen = build_teacher(f"espnet/{path}", checkpoint="1epoch.pth").id
    assert chosen != expected
    (path / "valid.acc.ave.pth").unlink()
    assert build_teacher(f"espnet/{path}").id == chosen
    with pytest.raises(TeacherError, match="got no x.pth in .*has 1epoch.pth, latest"):
        build_teacher(f"espnet/{path}", checkpoint="x.pth")


def test_folder_without_config_or_checkpoint(save, tmp_path):
    with pytest.raises(TeacherError, match="no such file .*config.yaml; expected an E"):
        build_teacher(f"espnet/{tmp_path}/none")
    path, _ = save()
    (path / "valid.acc.ave.pth").unlink()
    with pytest.raises(TeacherError, match="got no valid.acc.* has no .pth file; name"):
        build_teacher(f"espnet/{path}")


def test_code_in_a_checkpoint_is_not_run(save, tmp_path):
    path, model = save()
    state = {**model.state_dict(), "x": MakeFile(tmp_path / "executed")}
    torch.save(state, path / "valid.acc.ave.pth")
    with pytest.raises(TeacherError, match="damaged, or holds other objects"):
        build_teacher(f"espnet/{path}")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", [1], None])
def test_damaged_checkpoint(save, content):
    path, model = save()
    file = path / "valid.acc.ave.pth"
    if content is None:
        content = file.read_bytes()[:3000]
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(TeacherError, match="(damaged|got a list)"):
        build_teacher(f"espnet/{path}")


def test_checkpoint_of_another_model(save):
    path, model = save()
    state = model.state_dict()
    state["encoder.extra"] = state.pop("encoder.after_norm.bias")
    state["encoder.after_norm.weight"] = torch.ones(9)
    torch.save(state, path / "valid.acc.ave.pth")
    message = "1 weights are missing, 1 too many, 1 of .* first encoder.after_norm.bias"
    with pytest.raises(TeacherError, match=message):
        build_teacher(f"espnet/{path}")


@pytest.mark.parametrize(
    "config, message",
    [
        ("a: [", "config.yaml: not readable as yaml"),
        ("[]", "names no encoder; expected the config of an ASR"),
        ({"encoder": None}, "names no encoder"),
        ({"input_size": 83}, "reads features of 83 dimensions"),
        ({"use_adapter": True}, "has adapters"),
        ({"encoder": "no_such"}, "could not build it .*no_such"),
        ({"encoder_conf": {"no_such": 1}}, "could not build it .*no_such"),
        ({"encoder_conf": "x"}, "has encoder_conf: 'x', expected options by name"),
        ({"frontend_conf": {"fs": "much"}}, "(could not build it|fs: got 'much')"),
    ],
)
def test_config_that_is_no_teacher(save, config, message):
    if isinstance(config, str):
        path, _ = save()
        (path / "config.yaml").write_text(config)
    else:
        path, _ = save(config=config)
    with pytest.raises(TeacherError, match=f"teacher espnet/{path}: .*{message}"):
        build_teacher(f"espnet/{path}", frame_shift_samples=160)
