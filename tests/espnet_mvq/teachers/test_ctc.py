"""Teachers with a CTC head against the models themselves, and their tokens."""

import json

import pytest
import torch
from builders import INTERCTC, TINY_MODEL
from corpus_builders import save_ctc, save_espnet, save_transformers, waveforms_of

from espnet_mvq.teachers import TeacherError, build_teacher
from espnet_mvq.teachers.ctc import build_ctc_teacher

VOCABULARY = ["<pad>", "<s>", "</s>", "[UNK]", "|", "A", "B"]
CONDITIONED = {
    **TINY_MODEL,
    "encoder": "conformer",
    "encoder_conf": {**TINY_MODEL["encoder_conf"], **INTERCTC},
    "decoder": None,
    "model_conf": {"ctc_weight": 1.0, "interctc_weight": 0.5},
}


@pytest.fixture
def save(tmp_path):
    """Return a function that saves an ESPnet model; it returns folder and model."""

    def build(options=TINY_MODEL, **config):
        path = tmp_path / "asr"
        return path, save_espnet(path, options, random_heads=True, config=config)

    return build


@pytest.fixture
def hubert(tmp_path):
    """Save a HuBERT with a CTC head and its vocabulary; return the folder."""
    tokenizer = {"unk_token": "[UNK]"}
    return save_ctc(tmp_path / "ctc", VOCABULARY, "Hubert", tokenizer)


@pytest.mark.parametrize("options", [TINY_MODEL, CONDITIONED])
def test_logits_of_espnet_are_those_of_its_ctc(save, speech, options):
    path, model = save(options)
    teacher = build_ctc_teacher(f"espnet/{path}", batch_s=10.0)
    plain = build_teacher(f"espnet/{path}")
    assert teacher.token_list == TINY_MODEL["token_list"] and teacher.dim == 5
    assert teacher.frame_shift_samples == plain.frame_shift_samples == 640
    assert teacher.frame_offset_samples == plain.frame_offset_samples
    assert teacher.id != plain.id and teacher.id.startswith("espnet/asr@")
    waveforms = waveforms_of(speech)
    for waveform, logits in zip(waveforms, teacher.embed_batch(waveforms)):
        with torch.no_grad():
            frames = model.encode(waveform[None], torch.tensor([len(waveform)]))[0]
            frames = frames[0] if isinstance(frames, tuple) else frames
            expected = model.ctc.log_softmax(frames)[0]
        torch.testing.assert_close(logits.log_softmax(1), expected, rtol=0, atol=1e-4)


def test_logits_of_transformers_are_those_of_its_head(hubert, speech):
    from transformers import AutoModelForCTC

    teacher = build_ctc_teacher(f"transformers/{hubert}")
    model = AutoModelForCTC.from_pretrained(hubert).eval()
    for waveform in waveforms_of(speech):
        (logits,) = teacher.embed_batch([waveform])
        with torch.no_grad():
            expected = model(waveform[None]).logits[0]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_special_tokens_of_transformers_have_espnets_names(hubert):
    spec = f"transformers/{hubert}"
    teacher = build_ctc_teacher(spec)
    names = ["<blank>", "<s>", "</s>", "<unk>", "<space>", "A", "B"]
    assert teacher.token_list == names and teacher.frame_shift_samples == 320
    vocabulary = json.loads((hubert / "vocab.json").read_text())
    vocabulary["Z"] = vocabulary.pop("A")
    (hubert / "vocab.json").write_text(json.dumps(vocabulary))
    assert build_ctc_teacher(spec).id != teacher.id


def test_models_without_ctc_are_refused(save, tmp_path):
    attention = {**TINY_MODEL, "model_conf": {"ctc_weight": 0.0}}
    path, _ = save(attention)
    for spec in (
        f"espnet/{path}",
        f"transformers/{save_transformers(tmp_path / 'hubert', 'Hubert')}",
        f"transformers/{save_transformers(tmp_path / 'whisper', 'Whisper')}",
        "s3prl/hubert",
        "hubert",
    ):
        with pytest.raises(TeacherError, match=f"teacher {spec}: has no CTC head"):
            build_ctc_teacher(spec)


def test_token_list_of_another_size_is_refused(save):
    path, _ = save(token_list=["<blank>", "a"])
    with pytest.raises(TeacherError, match="got 2 tokens in .* expected 5, as its CTC"):
        build_ctc_teacher(f"espnet/{path}")
