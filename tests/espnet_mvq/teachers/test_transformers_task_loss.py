"""CTC losses of transformers' models against the plain formula on their logits."""

import json
import math

import pytest
import torch
from corpus_builders import change_json, save_ctc, waveforms_of

from espnet_mvq.teachers import TeacherError
from espnet_mvq.teachers.task_loss import TextError, build_task_loss

CAPITALS = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C", "'"]
GROUP_NORM = {"feat_extract_norm": "group"}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
TEXTS = ["A CAB", "B", "ABBA'C"]
LABELS = [[5, 4, 7, 5, 6], [6], [5, 6, 6, 5, 8, 7]]


@pytest.fixture
def save(tmp_path):
    """Return a function that saves a model with a CTC head and its vocabulary."""

    def build(kind="Hubert", vocabulary=CAPITALS, folder="ctc", **options):
        options = {"hidden_dropout": 0.5, "final_dropout": 0.5, **options}
        return save_ctc(tmp_path / folder, vocabulary, kind, **options)

    return build


def plain_ctc(log_probs, labels, blank=0):
    """Sum the probabilities of all alignments, frame by frame; (T, V), [L] -> nats."""
    states = [blank]
    for label in labels:
        states += [label, blank]
    alpha = [0.0] * len(states)
    probs = log_probs.double().exp()
    alpha[0], alpha[1] = float(probs[0, blank]), float(probs[0, labels[0]])
    for frame in probs[1:]:
        before = alpha
        alpha = []
        for s, label in enumerate(states):
            total = before[s] + (before[s - 1] if s > 0 else 0.0)
            if s > 1 and label != blank and label != states[s - 2]:
                total += before[s - 2]
            alpha.append(total * float(frame[label]))
    return -math.log(alpha[-1] + alpha[-2])


def log_probs_of(path, waveform, normalize):
    """Run the saved model on one utterance."""
    from transformers import AutoModelForCTC

    if normalize:
        waveform = (waveform - waveform.mean()) / waveform.std(unbiased=False)
    model = AutoModelForCTC.from_pretrained(path).eval()
    with torch.no_grad():
        return model(waveform[None]).logits[0].log_softmax(1)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("Hubert", GROUP_NORM),
        ("Hubert", LAYER_NORM),
        ("Wav2Vec2", LAYER_NORM),
        ("WavLM", GROUP_NORM),
        ("Data2VecAudio", {}),
        ("UniSpeechSat", LAYER_NORM),
    ],
)
def test_equals_the_formula_on_the_models_logits(save, speech, kind, options):
    path = save(kind, **options)
    task_loss = build_task_loss(f"transformers/{path}")
    waveforms = waveforms_of(speech)
    losses, counts = task_loss.loss(waveforms, TEXTS)
    assert counts == [5, 1, 6] and task_loss.kind == "ctc"
    for waveform, labels, actual in zip(waveforms, LABELS, losses):
        normalize = options != GROUP_NORM
        expected = plain_ctc(log_probs_of(path, waveform, normalize), labels)
        assert actual == pytest.approx(expected, abs=2e-4)
    assert max(losses) - min(losses) > 1


@pytest.mark.parametrize("options", [GROUP_NORM, LAYER_NORM])
def test_losses_do_not_depend_on_the_batch(save, speech, options):
    path = save(**options)
    waveforms = waveforms_of(speech)
    waveforms.append(waveforms[1].flip(0))
    texts = [*TEXTS, "CAB"]
    together = build_task_loss(f"transformers/{path}", batch_s=10.0)
    assert together.mixes_lengths == (options == LAYER_NORM)
    sizes, forward = [], together._logits._forward
    together._logits._forward = lambda x, n: sizes.append(len(x)) or forward(x, n)
    actual, _ = together.loss(waveforms, texts)
    assert sizes == ([4] if options == LAYER_NORM else [1, 2, 1])
    alone = build_task_loss(f"transformers/{path}")
    expected = [alone.loss([w], [t])[0][0] for w, t in zip(waveforms, texts)]
    assert actual == pytest.approx(expected, abs=1e-3)


def test_long_speech_is_cut_but_its_text_is_not(save, speech):
    """All of it is heard: the loss is near that of the whole, not of a piece."""
    path = save(**GROUP_NORM)
    task_loss = build_task_loss(f"transformers/{path}")
    waveform = speech[0][0]
    labels = LABELS[0]
    expected = plain_ctc(log_probs_of(path, waveform, False), labels)
    task_loss._logits.segment_s, task_loss._logits.overlap_s = 0.4, 0.1
    actual = task_loss.loss([waveform], TEXTS[:1])[0][0]
    assert actual == pytest.approx(expected, rel=0.2) and actual != expected


@pytest.mark.parametrize("num_samples, text", [(1, "AA"), (800, "ABC"), (1100, "AAA")])
def test_speech_too_short_for_its_text(save, num_samples, text):
    """Training's zero_infinity would call such utterances the easiest."""
    task_loss = build_task_loss(f"transformers/{save(ctc_zero_infinity=True)}")
    waveform = 0.1 * torch.randn(num_samples)
    assert task_loss.loss([waveform], [text])[0] == [math.inf]
    assert math.isfinite(task_loss.loss([waveform], [text[0]])[0][0])


def test_text_takes_the_case_of_the_vocabulary(save):
    small = [token.lower() for token in CAPITALS]
    capitals = build_task_loss(f"transformers/{save()}")
    for text in ("a cab", "A  CAB ", "A Cab"):
        assert capitals.encode(text).tolist() == LABELS[0]
    other = build_task_loss(f"transformers/{save(vocabulary=small, folder='small')}")
    assert other.encode("A CAB").tolist() == LABELS[0]
    both = [*CAPITALS, "a", "b", "c"]
    mixed = build_task_loss(f"transformers/{save(vocabulary=both, folder='both')}")
    assert mixed.encode("Ab").tolist() == [5, 10]
    spec = f"transformers/{save()}"
    with pytest.raises(TextError, match="does not have 'a' 'b'; write"):
        build_task_loss(spec, case="keep").encode("ab")
    with pytest.raises(TeacherError, match="got case 'x', expected one of auto, keep"):
        build_task_loss(spec, case="x")


@pytest.mark.parametrize(
    "text, message",
    [
        ("A, DAB.", "does not have ',' '.' 'D'; write .*ignored_characters"),
        ("Ä", "does not have 'Ä'"),
        ("A<pad>", "does not have '<pad>'"),
        (" ", "contains no label"),
    ],
)
def test_text_without_labels(save, text, message):
    task_loss = build_task_loss(f"transformers/{save()}")
    with pytest.raises(TextError, match=message):
        task_loss.encode(text)


def test_vocabulary_without_unknown(save):
    vocabulary = [token for token in CAPITALS if token != "<unk>"]
    task_loss = build_task_loss(f"transformers/{save(vocabulary=vocabulary)}")
    assert task_loss.encode("CAB").tolist() == [6, 4, 5]
    with pytest.raises(TextError, match="does not have 'D'"):
        task_loss.encode("DAB")


def test_characters_can_be_left_out(save):
    spec = f"transformers/{save()}"
    task_loss = build_task_loss(spec, ignored_characters=",.")
    assert task_loss.encode("A, CAB.").tolist() == LABELS[0]
    assert task_loss.id != build_task_loss(spec).id


def test_id_is_of_all_weights_and_options(save):
    from transformers import HubertForCTC

    path = save()
    first = build_task_loss(f"transformers/{path}").id
    assert first.startswith("transformers/ctc@")
    assert build_task_loss(f"transformers/{path}", case="upper").id != first
    assert build_task_loss(f"transformers/{path}", dtype="bfloat16").id != first
    model = HubertForCTC.from_pretrained(path)
    model.lm_head.bias.data += 1
    model.save_pretrained(path)
    assert build_task_loss(f"transformers/{path}").id != first


def test_id_is_of_vocabulary_and_settings(save):
    path = save()
    ids = [build_task_loss(f"transformers/{path}").id]
    for changes in ({"hidden_act": "relu"}, {"pad_token_id": 1}):
        change_json(path / "config.json", changes)
        ids.append(build_task_loss(f"transformers/{path}").id)
    swapped = [{"A": "B", "B": "A"}.get(token, token) for token in CAPITALS]
    vocabulary = {token: number for number, token in enumerate(swapped)}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    ids.append(build_task_loss(f"transformers/{path}").id)
    assert len(set(ids)) == 4


def test_half_precision_is_near(save, speech):
    spec = f"transformers/{save(**LAYER_NORM)}"
    losses = [
        build_task_loss(spec, dtype=dtype).loss([speech[0][0]], ["A CAB"])[0][0]
        for dtype in ("float32", "bfloat16")
    ]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)


def test_head_that_is_not_in_the_checkpoint(save):
    from safetensors.torch import load_file, save_file

    path = save()
    weights = load_file(path / "model.safetensors")
    del weights["lm_head.weight"], weights["lm_head.bias"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match="2 weights are missing .* first lm_head"):
        build_task_loss(f"transformers/{path}")


@pytest.mark.parametrize("blank", [None, -1, 99])
def test_blank_that_is_no_label(save, blank):
    path = save()
    change_json(path / "config.json", {"pad_token_id": blank})
    message = f"pad_token_id {blank}, expected the number of the blank, 0 to 8"
    with pytest.raises(TeacherError, match=message):
        build_task_loss(f"transformers/{path}")


@pytest.mark.parametrize("content", ["{", "[]", '{"A": "x"}'])
def test_vocabulary_that_is_damaged(save, content):
    path = save()
    (path / "vocab.json").write_text(content)
    with pytest.raises(TeacherError, match="could not load its tokenizer"):
        build_task_loss(f"transformers/{path}")


def test_unsupported_models_and_missing_tokenizers(save):
    path = save("Wav2Vec2", add_adapter=True)
    with pytest.raises(TeacherError, match="shortens its output"):
        build_task_loss(f"transformers/{path}")
    path = save(folder="no_vocabulary")
    (path / "vocab.json").unlink()
    with pytest.raises(TeacherError, match="could not load its tokenizer"):
        build_task_loss(f"transformers/{path}")
    with pytest.raises(TeacherError, match="unknown option: .*window_s"):
        build_task_loss(f"transformers/{path}", window_s=1)
