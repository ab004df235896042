"""Whisper's cross entropy against the plain formula on the model's logits."""

import json
import math
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from corpus_builders import (
    PREFIX_TOKENS,
    change_json,
    save_whisper,
    waveforms_of,
    whisper_features,
)

from espnet_mvq.teachers import TeacherError
from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.task_loss import TextError, build_task_loss

START = PREFIX_TOKENS[0]
TEXTS = ["he is here", "He", "so the heathen"]
MULTILINGUAL = {"is_multilingual": True}


@pytest.fixture
def save(tmp_path):
    """Return `save_whisper` with a folder of the test."""
    return partial(save_whisper, tmp_path / "whisper")


def plain_loss(path, waveform, prefix, tokens):
    """Predict one token after the other; tokens (L,) with the end -> nats."""
    from transformers import WhisperForConditionalGeneration

    features = whisper_features(waveform)
    model = WhisperForConditionalGeneration.from_pretrained(path).eval()
    nats = 0.0
    for position, token in enumerate(tokens):
        before = torch.tensor([[*prefix, *tokens[:position]]])
        with torch.no_grad():
            logits = model(features, decoder_input_ids=before).logits[0, -1]
        nats -= float(logits.log_softmax(0)[token])
    return nats


@pytest.mark.parametrize(
    "generation, options, prefix",
    [
        (None, {}, [START, "<|notimestamps|>"]),
        ({"is_multilingual": False}, {}, [START, "<|notimestamps|>"]),
        (MULTILINGUAL, {"language": "de"}, [START, "<|de|>", *PREFIX_TOKENS[2:]]),
        (
            MULTILINGUAL,
            {"language": "German", "task": "translate"},
            [START, "<|de|>", "<|translate|>", "<|notimestamps|>"],
        ),
    ],
)
def test_equals_the_formula_on_the_models_logits(
    save, speech, generation, options, prefix
):
    path, tokenizer = save(generation)
    task_loss = build_task_loss(f"transformers/{path}", **options)
    waveforms = waveforms_of(speech)
    losses, counts = task_loss.loss(waveforms, TEXTS)
    prefix = tokenizer.convert_tokens_to_ids(prefix)
    assert task_loss.kind == "attention" and max(losses) - min(losses) > 1
    for waveform, text, actual, count in zip(waveforms, TEXTS, losses, counts):
        tokens = tokenizer(f" {text}", add_special_tokens=False).input_ids
        tokens.append(tokenizer.eos_token_id)
        expected = plain_loss(path, waveform, prefix, tokens)
        assert actual == pytest.approx(expected, abs=1e-3) and count == len(tokens)


def test_losses_do_not_depend_on_the_batch(save, speech):
    path, _ = save()
    waveforms = waveforms_of(speech)
    together = build_task_loss(f"transformers/{path}", batch_s=2.0)
    sizes, of_batch = [], together._losses_of_batch
    together._losses_of_batch = lambda w, y: sizes.append(len(w)) or of_batch(w, y)
    actual, _ = together.loss(waveforms, TEXTS)
    assert sizes == [2, 1] and together.mixes_lengths
    alone = build_task_loss(f"transformers/{path}")
    expected = [alone.loss([w], [t])[0][0] for w, t in zip(waveforms, TEXTS)]
    assert actual == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "options, text, expected",
    [
        ({}, "HE IS", " he is"),
        ({}, "He  is ", " He is"),
        ({"case": "keep"}, "HE IS", " HE IS"),
        ({"case": "upper"}, "he is", " HE IS"),
        ({"case": "lower"}, "He Is", " he is"),
        ({"leading_space": False}, "he is", "he is"),
    ],
)
def test_how_texts_are_written(save, options, text, expected):
    path, tokenizer = save()
    labels = build_task_loss(f"transformers/{path}", **options).encode(text).tolist()
    tokens = tokenizer(expected, add_special_tokens=False).input_ids
    assert labels == [*tokens, tokenizer.eos_token_id]


def test_texts_without_a_place_in_the_model(save):
    path, _ = save()
    task_loss = build_task_loss(f"transformers/{path}")
    with pytest.raises(TextError, match="contains no label"):
        task_loss.encode("  ")
    # 24 positions, of which 2 are the prefix's; the end of the text needs none
    assert len(task_loss.encode("x" * 21)) == 23
    with pytest.raises(TextError, match="has 23 tokens, expected at most 22"):
        task_loss.encode("x" * 22)
    assert math.isfinite(task_loss.loss([torch.zeros(9)], ["x" * 21])[0][0])


def test_speech_longer_than_the_window(save, tmp_path):
    path, _ = save()
    task_loss = build_task_loss(f"transformers/{path}")
    for num_samples in (16000, 16001):
        name = f"{tmp_path}/{num_samples}.wav"
        soundfile.write(name, np.zeros(num_samples), 16000)
    assert len(task_loss.read("utt", f"{tmp_path}/16000.wav")) == 16000
    with pytest.raises(AudioError, match="utterance utt: .* lasts 1.0 s, .* most 1 s"):
        task_loss.read("utt", f"{tmp_path}/16001.wav")


@pytest.mark.parametrize(
    "generation, options, message",
    [
        (MULTILINGUAL, {}, "got language None for a multilingual model"),
        (None, {"language": "en"}, "got language 'en' for an English-only model"),
        (MULTILINGUAL, {"language": "xx"}, "language 'xx', .*Unsupported language"),
        (
            MULTILINGUAL,
            {"language": "en", "task": "sing"},
            "task 'sing': Unsupported task",
        ),
        (None, {"case": "x"}, "got case 'x'"),
    ],
)
def test_bad_options(save, generation, options, message):
    path, _ = save(generation)
    with pytest.raises(TeacherError, match=message):
        build_task_loss(f"transformers/{path}", **options)


def test_tokenizer_of_another_model(save):
    path, _ = save(vocab_size=300)
    with pytest.raises(TeacherError, match="but the model has 300; expected the token"):
        build_task_loss(f"transformers/{path}")


def test_id_is_of_weights_and_options(save):
    path, _ = save(MULTILINGUAL)
    spec = f"transformers/{path}"
    options = [{}, {"case": "keep"}, {"leading_space": False}, {"task": "translate"}]
    ids = {build_task_loss(spec, language="en", **more).id for more in options}
    ids.add(build_task_loss(spec, language="de").id)
    assert len(ids) == 5


def test_id_is_of_settings_and_vocabulary(save):
    path, tokenizer = save()
    ids = [build_task_loss(f"transformers/{path}").id]
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "n_fft": 512}
    (path / "preprocessor_config.json").write_text(json.dumps(extractor))
    ids.append(build_task_loss(f"transformers/{path}").id)
    for changes in ({"activation_function": "relu"}, {"decoder_attention_heads": 4}):
        change_json(path / "config.json", changes)
        ids.append(build_task_loss(f"transformers/{path}").id)
    text = (path / "tokenizer.json").read_text()
    content = json.loads(text)
    vocabulary = content["model"]["vocab"]
    vocabulary["he"], vocabulary["a"] = vocabulary["a"], vocabulary["he"]
    (path / "tokenizer.json").write_text(json.dumps(content))
    ids.append(build_task_loss(f"transformers/{path}").id)
    assert len(set(ids)) == 5
