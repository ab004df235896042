"""Teachers out of transformers against the models called directly."""

import pytest
import torch
from corpus_builders import change_json

from espnet_mvq.teachers import TeacherError, build_teacher

KINDS = [
    ("Hubert", {"feat_extract_norm": "group"}),
    ("Hubert", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    ("Wav2Vec2", {"feat_extract_norm": "group"}),
    ("Wav2Vec2", {"feat_extract_norm": "layer"}),
    ("WavLM", {"feat_extract_norm": "group"}),
    ("WavLM", {"feat_extract_norm": "layer"}),
    ("UniSpeechSat", {"feat_extract_norm": "layer"}),
    ("Data2VecAudio", {}),
]


def hidden_states(path, waveform, normalize):
    from transformers import AutoModel

    if normalize:
        waveform = (waveform - waveform.mean()) / waveform.std(unbiased=False)
    with torch.no_grad():
        model = AutoModel.from_pretrained(path).eval()
        return model(waveform[None], output_hidden_states=True).hidden_states


@pytest.mark.parametrize("kind, options", KINDS)
def test_equals_the_model_itself(save_model, speech, kind, options):
    path = save_model(kind, **options)
    waveform = 3 * speech[0][0] + 0.2
    normalize = options.get("feat_extract_norm", "layer") == "layer"
    states = hidden_states(path, waveform, normalize)
    for layer in (0, 1, 2, -1):
        teacher = build_teacher(f"transformers/{path}", layer)
        actual, lengths = teacher.embed(waveform[None], torch.tensor([9600]))
        torch.testing.assert_close(actual, states[layer], rtol=1e-4, atol=1e-4)
        assert lengths.tolist() == [states[layer].shape[1]]
        assert teacher.layer == (2 if layer == -1 else layer)


@pytest.mark.parametrize("kind, options", KINDS)
@pytest.mark.parametrize("top, layers", [(-1, [0, 1, 2]), (1, [0, 1]), (0, [0])])
def test_all_layers_in_one_run(save_model, check_layers, kind, options, top, layers):
    path = save_model(kind, **options)
    check_layers(
        lambda layer: build_teacher(f"transformers/{path}", layer), top, layers
    )


@pytest.mark.parametrize("kind, options", KINDS)
def test_embeddings_do_not_depend_on_the_batch(
    save_model, check_batch_independence, kind, options
):
    path = save_model(kind, **options)
    mixes = kind != "Data2VecAudio" and options["feat_extract_norm"] == "layer"
    check_batch_independence(
        build_teacher(f"transformers/{path}", 1), [4] if mixes else [1, 2, 1]
    )


def test_preprocessor_file_decides_on_normalisation(save_model, speech):
    from transformers import Wav2Vec2FeatureExtractor

    path = save_model("Hubert", feat_extract_norm="group")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(path)
    waveform = 3 * speech[0][0] + 0.2
    actual, _ = build_teacher(f"transformers/{path}", 1).embed(
        waveform[None], torch.tensor([9600])
    )
    expected = hidden_states(path, waveform, normalize=True)[1]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_frames_of_the_convolutions(save_model):
    teacher = build_teacher(f"transformers/{save_model('Hubert')}")
    assert (teacher.sample_rate, teacher.frame_shift_samples) == (16000, 320)
    assert (teacher.frame_offset_samples, teacher.dim) == (199.5, 16)


@pytest.mark.parametrize("num_samples, frames", [(1, 1), (399, 1), (400, 1), (720, 2)])
def test_short_audio_has_at_least_a_frame(save_model, num_samples, frames):
    teacher = build_teacher(f"transformers/{save_model('Hubert')}", 1)
    speech = torch.randn(1, num_samples)
    embeddings, lengths = teacher.embed(speech, torch.tensor([num_samples]))
    assert embeddings.shape == (1, frames, 16) and lengths.tolist() == [frames]
    assert embeddings.isfinite().all()


def test_id_stands_for_name_and_weights(save_model):
    first, same, other = (
        build_teacher(f"transformers/{save_model('Hubert', seed)}")
        for seed in (0, 0, 1)
    )
    assert first.id == same.id != other.id
    assert first.id.startswith("transformers/tiny@")


def test_weights_saved_as_half_precision_are_run_as_float32(save_model, speech):
    from transformers import HubertModel

    path = save_model("Hubert")
    HubertModel.from_pretrained(path).half().save_pretrained(path)
    embeddings, _ = build_teacher(f"transformers/{path}").embed(*speech)
    assert embeddings.dtype == torch.float32


def test_name_that_is_no_model():
    with pytest.raises(TeacherError, match="transformers/no such: no such model"):
        build_teacher("transformers/no such")


def test_checkpoint_that_lacks_weights_is_refused(save_model):
    from safetensors.torch import load_file, save_file

    path = save_model("Hubert")
    weights = load_file(path / "model.safetensors")
    weights.pop("encoder.layers.1.final_layer_norm.weight")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    message = "1 weights are missing .* encoder.layers.1.final_layer_norm.weight"
    with pytest.raises(TeacherError, match=message):
        build_teacher(f"transformers/{path}")


def id_and_embeddings(path, **options):
    teacher = build_teacher(f"transformers/{path}", **options)
    # Longer than the distances that WavLM tells apart
    waveform = torch.randn(48000, generator=torch.Generator().manual_seed(0))
    return teacher.id, teacher.embed_batch([3 * waveform + 0.2])[0]


CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WHISPER = {"feature_extractor_type": "WhisperFeatureExtractor"}


@pytest.mark.parametrize(
    "kind, file, changes",
    [
        ("Hubert", CONFIG, {"hidden_act": "relu"}),
        ("Hubert", CONFIG, {"feat_extract_activation": "relu"}),
        ("Hubert", CONFIG, {"do_stable_layer_norm": True}),
        ("Hubert", CONFIG, {"layer_norm_eps": 0.1}),
        ("Hubert", CONFIG, {"num_attention_heads": 4}),
        ("Hubert", CONFIG, {"conv_stride": [5, 2, 2, 2, 2, 2, 1]}),
        ("Data2VecAudio", CONFIG, {"hidden_act": "relu"}),
        ("WavLM", CONFIG, {"max_bucket_distance": 20}),
        ("Hubert", PREPROCESSOR, {"do_normalize": True}),
        ("Hubert", "processor_config.json", {"do_normalize": True}),
        ("Whisper", CONFIG, {"activation_function": "relu"}),
        ("Whisper", CONFIG, {"encoder_attention_heads": 4}),
        ("Whisper", PREPROCESSOR, {**WHISPER, "n_fft": 512}),
        ("Whisper", PREPROCESSOR, {**WHISPER, "hop_length": 200}),
        ("Whisper", PREPROCESSOR, {**WHISPER, "padding_value": 0.5}),
    ],
)
def test_id_stands_for_settings_that_change_embeddings(save_model, kind, file, changes):
    path = save_model(kind)
    options = {"window_s": 0.9} if kind == "Whisper" else {}
    if kind == "Hubert":
        extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
        change_json(path / PREPROCESSOR, {**extractor, "do_normalize": False})
        if file == "processor_config.json":  # goes before the older file
            changes = {"feature_extractor": {**extractor, **changes}}
    before = id_and_embeddings(path, **options)
    change_json(path / file, changes)
    actual = id_and_embeddings(path, **options)
    assert not torch.equal(actual[1], before[1])
    assert actual[0] != before[0]


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("Hubert", {"hidden_dropout": 0.5, "layerdrop": 0.5, "mask_time_prob": 0.5}),
        ("Whisper", {"dropout": 0.5, "encoder_layerdrop": 0.5, "decoder_layers": 1}),
    ],
)
def test_id_does_not_stand_for_settings_of_training_and_saving(
    save_model, kind, changes
):
    path = save_model(kind)
    before = id_and_embeddings(path, **{"window_s": 1.0} if kind == "Whisper" else {})
    notes = {"transformers_version": "4.0.0", "_name_or_path": "x", "dtype": "float16"}
    notes.update(return_dict=False, id2label={"0": "a"}, label2id={"a": 0})
    change_json(path / CONFIG, {**changes, **notes})
    actual = id_and_embeddings(path, **{"window_s": 1.0} if kind == "Whisper" else {})
    assert actual[0] == before[0] and torch.equal(actual[1], before[1])


@pytest.mark.parametrize(
    "kind, file, content, message",
    [
        ("Hubert", CONFIG, "no json", "could not read .*config.json"),
        ("Hubert", CONFIG, "[1]", "could not read .*config.json"),
        ("Hubert", CONFIG, {"conv_kernel": "x"}, "could not read .*config.json"),
        ("Hubert", CONFIG, {"num_feat_extract_layers": 2}, "could not read .*conf"),
        ("Hubert", CONFIG, {"conv_stride": [5, 2, 2, 2, 2, 2, 0]}, "a shift above 0"),
        ("Hubert", PREPROCESSOR, "no json", "could not read its preprocessor"),
        ("Hubert", PREPROCESSOR, "[1]", "could not read its preprocessor"),
        (
            "Hubert",
            PREPROCESSOR,
            {"do_normalize": "x"},
            "do_normalize 'x', expected tr",
        ),
        ("Hubert", PREPROCESSOR, {"sampling_rate": 0}, "sampling_rate 0, expected Hz"),
        ("Hubert", PREPROCESSOR, WHISPER, "do_normalize None, expected true or"),
        ("Whisper", PREPROCESSOR, "no json", "could not read its preprocessor"),
        ("Whisper", PREPROCESSOR, {"feature_size": 8}, "8 mel bins .*, expected 80"),
        ("Whisper", PREPROCESSOR, {"n_fft": 0}, "could not read its preprocessor"),
    ],
)
def test_files_that_are_damaged(save_model, kind, file, content, message):
    path = save_model(kind)
    if isinstance(content, str):
        (path / file).write_text(content)
    else:
        kinds = {"Hubert": "Wav2Vec2", "Whisper": "Whisper"}
        extractor = {"feature_extractor_type": f"{kinds[kind]}FeatureExtractor"}
        change_json(path / PREPROCESSOR, extractor)
        change_json(path / file, content)
    with pytest.raises(TeacherError, match=f"teacher transformers/{path}: .*{message}"):
        build_teacher(f"transformers/{path}")
