"""Whisper's encoder as a teacher: windows, padding, and weights of both kinds."""

import pytest
import torch
from corpus_builders import whisper_features

from espnet_mvq.teachers import TeacherError, build_teacher

WINDOW_S = 1.0  # the tiny model has 50 positions of 20 ms


@pytest.fixture
def path(save_model):
    return save_model("Whisper")


def hidden_states(path, waveform):
    """Run the saved model on at most one window padded with silence."""
    from transformers import WhisperModel

    features = whisper_features(waveform)
    encoder = WhisperModel.from_pretrained(path).get_encoder().eval()
    with torch.no_grad():
        return encoder(features, output_hidden_states=True).hidden_states


def embed(teacher, waveform):
    return teacher.embed(waveform[None], torch.tensor([len(waveform)]))[0][0]


@pytest.mark.parametrize("model", ["Model", "Encoder"])
def test_equals_the_model_itself(save_model, speech, model):
    path = save_model("Whisper")
    states = hidden_states(path, speech[0][0])
    saved = save_model("Whisper", model=model)
    for layer in (0, 1, 2, -1):
        teacher = build_teacher(f"transformers/{saved}", layer, window_s=WINDOW_S)
        actual = embed(teacher, speech[0][0])
        torch.testing.assert_close(actual, states[layer][0, :30], rtol=0, atol=1e-5)


def test_whole_model_and_encoder_have_the_same_id(save_model):
    ids = {
        build_teacher(
            f"transformers/{save_model('Whisper', model=model)}", window_s=1.0
        ).id
        for model in ("Model", "Encoder")
    }
    assert len(ids) == 1


def test_embeddings_do_not_depend_on_the_batch(path, check_batch_independence):
    for window_s in (WINDOW_S, 0):
        teacher = build_teacher(f"transformers/{path}", 1, window_s=window_s)
        check_batch_independence(teacher, [4])


@pytest.mark.parametrize("top, layers", [(-1, [0, 1, 2]), (1, [0, 1])])
def test_all_layers_in_one_run_over_windows(path, check_layers, top, layers):
    def build(layer):
        return build_teacher(f"transformers/{path}", layer, window_s=0.5, batch_s=3.0)

    check_layers(build, top, layers, [0.1 * torch.randn(n) for n in (9600, 20000)])


def test_window_whose_samples_are_no_exact_float(save_model):
    """4.02 s times 16 kHz are a little less than 201 frames of 320 samples."""
    path = save_model("Whisper", max_source_positions=300)
    teacher = build_teacher(f"transformers/{path}", 1, window_s=4.02)
    assert len(embed(teacher, torch.randn(201 * 320))) == 201


@pytest.mark.parametrize("window_s", [WINDOW_S, 0.5, 0.06])
def test_long_speech_is_cut_into_windows_that_overlap(path, window_s):
    """Each frame is out of a window in which it has an eighth of it on both sides."""
    teacher = build_teacher(f"transformers/{path}", 1, window_s=window_s)
    window = int(16000 * window_s)
    waveform = 0.1 * torch.randn(2 * window + 4000)
    context = -(-window // 8 // 320)  # frames
    step = window // 320 - 2 * context
    expected, first = [], 0
    for start in range(0, 99, step):
        part = waveform[start * 320 :][:window]
        last = start * 320 + window >= len(waveform)
        end = None if last else step + context
        expected.append(embed(teacher, part)[first - start : end])
        first = start + step + context
        if last:
            break
    assert len(expected) >= 3
    torch.testing.assert_close(
        embed(teacher, waveform), torch.cat(expected), rtol=0, atol=1e-5
    )
    assert len(embed(teacher, waveform)) == -(-len(waveform) // 320)


def test_own_length_windows(path):
    """window_s 0: no silence is appended, long speech is cut at the most there is."""
    teacher = build_teacher(f"transformers/{path}", 1, window_s=0)
    waveform = 0.1 * torch.randn(16000 + 3200)
    actual = embed(teacher, waveform)
    assert len(actual) == 60
    full = hidden_states(path, waveform[:16000])[1][0]
    torch.testing.assert_close(actual[:43], full[:43], rtol=0, atol=1e-5)
    assert len(embed(teacher, waveform[:1000])) == 4


@pytest.mark.parametrize("num_samples", [1, 160, 320])
@pytest.mark.parametrize("window_s", [0, WINDOW_S])
def test_short_audio_has_one_frame(path, num_samples, window_s):
    teacher = build_teacher(f"transformers/{path}", 1, window_s=window_s)
    actual = embed(teacher, torch.randn(num_samples))
    assert actual.shape == (1, 16) and actual.isfinite().all()


def test_frames_and_id(path):
    teacher = build_teacher(f"transformers/{path}", window_s=WINDOW_S)
    assert (teacher.frame_shift_samples, teacher.frame_offset_samples) == (320, 0)
    assert (teacher.dim, teacher.sample_rate, teacher.layer) == (16, 16000, 2)
    ids = [build_teacher(f"transformers/{path}", window_s=s).id for s in (1.0, 0.5, 0)]
    assert len(set(ids)) == 3 and ids[0] == teacher.id
    assert "window_s=0.5" in ids[1] and "window_s" not in ids[0]


def test_id_does_not_change_with_use(path):
    teacher = build_teacher(f"transformers/{path}", window_s=0)
    embed(teacher, torch.randn(8000))
    again = embed(teacher, torch.ones(16000))
    fresh = build_teacher(f"transformers/{path}", window_s=0)
    torch.testing.assert_close(again, embed(fresh, torch.ones(16000)), rtol=0, atol=0)


@pytest.mark.parametrize("window_s", [-1, 1.02, 30, 0.51, 0.04, 1e-9])
def test_window_out_of_range(path, window_s):
    with pytest.raises(
        TeacherError, match=f"window_s {window_s}, expected 0 to 1 s, a mu"
    ):
        build_teacher(f"transformers/{path}", window_s=window_s)


def test_layer_out_of_range(path):
    with pytest.raises(TeacherError, match="got layer 3, expected 1 to 2"):
        build_teacher(f"transformers/{path}", 3, window_s=WINDOW_S)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("window_s", [0, WINDOW_S])
def test_half_precision_on_a_cpu_is_near(path, speech, dtype, window_s):
    """Of the model alone: the spectrogram of quiet speech would suffer."""
    teachers = [
        build_teacher(f"transformers/{path}", window_s=window_s, dtype=name)
        for name in ("float32", dtype)
    ]
    expected, actual = (t.embed_batch([1e-3 * speech[0][0]])[0] for t in teachers)
    assert 0 < (actual - expected).norm() / expected.norm() < 0.02
    features = (t._log_mel(speech[0][0], 30) for t in teachers)
    assert torch.equal(*features)
