"""Embeddings of other programs in the place of a teacher, up to a quantizer."""

import json

import numpy as np
import pytest
import torch
from corpus_builders import QUANTIZER_SIZES, write_features, write_table

from espnet_mvq.bin import train_quantizer
from espnet_mvq.extraction.embedding_stream import embed_utterances
from espnet_mvq.quantization import Quantizer
from espnet_mvq.teachers import TeacherError, build_teacher
from espnet_mvq.teachers.audio import AudioError

SHIFT = {"frame_shift_samples": 320}


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    shapes = {f"utt{n}": (20 + n, 4) for n in range(12)}
    return {u: generator.standard_normal(s).astype("f4") for u, s in shapes.items()}


@pytest.fixture
def write(tmp_path, arrays):
    """Return a function that writes embeddings in a form and returns the file."""

    def write(form="ark", arrays=arrays, name="feats"):
        return write_features(tmp_path, arrays, form, name)

    return write


def test_our_embeddings_must_be_of_the_utterance(write, tmp_path):
    """Ids in others' arks may be older than a copied data folder's."""
    scp = write()
    text = scp.read_text().replace("utt7 ", "x ").replace("utt8 ", "utt7 ")
    scp.write_text(text.replace("x ", "utt8 "))
    read = build_teacher(f"feats/{scp}", 6, **SHIFT).read
    assert len(read("utt7", "")) == 28
    (tmp_path / "feats.json").write_text('{"format": "espnet_mvq.embeddings"}')
    read = build_teacher(f"feats/{scp}", 6, teacher_id="t", **SHIFT).read
    assert len(read("utt9", "")) == 29
    with pytest.raises(AudioError, match="utterance utt7 in .*mvq.sh --stage 4"):
        read("utt7", "")


@pytest.mark.parametrize("form", ["ark", "npy", "hdf5"])
def test_embeddings_by_utterance(write, arrays, form):
    teacher = build_teacher(f"feats/{write(form)}", 6, **SHIFT)
    for utt_id in ("utt7", "utt0", "utt11"):
        actual = teacher.read(utt_id, "no such audio")
        assert actual.dtype == torch.float32
        np.testing.assert_array_equal(actual.numpy(), arrays[utt_id])
    assert (teacher.dim, teacher.layer, teacher.sample_rate) == (4, 6, 16000)
    assert (teacher.frame_shift_samples, teacher.frame_offset_samples) == (320, 199.5)


def test_one_npy_is_one_utterance(write, arrays, tmp_path):
    write("npy")
    teacher = build_teacher(f"feats/{tmp_path}/utt3.npy", **SHIFT)
    np.testing.assert_array_equal(teacher.read("utt3", ""), arrays["utt3"])


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_other_floats_become_float32(write, arrays, dtype):
    stored = {utt_id: array.astype(dtype) for utt_id, array in arrays.items()}
    teacher = build_teacher(f"feats/{write('npy', stored)}", **SHIFT)
    expected = torch.from_numpy(stored["utt2"]).float()
    assert torch.equal(teacher.read("utt2", ""), expected)


def test_arrays_are_read_when_they_are_asked_for(write, tmp_path):
    teacher = build_teacher(f"feats/{write('npy')}", teacher_id="wavlm", **SHIFT)
    (tmp_path / "utt5.npy").unlink()
    assert len(teacher.read("utt4", "")) == 24
    with pytest.raises(AudioError, match="utterance utt5 in .*no such file"):
        teacher.read("utt5", "")


def test_stream_of_stored_embeddings(write, arrays):
    teacher = build_teacher(f"feats/{write()}", **SHIFT)
    places = dict.fromkeys(arrays, "x.wav")
    actual = [e for _, e in embed_utterances(teacher, ["utt9", "utt2"], places)]
    assert [len(embeddings) for embeddings in actual] == [29, 22]


def test_options_of_frames(write):
    path = write()
    with pytest.raises(TeacherError, match="give --teacher_conf frame_shift_samples="):
        build_teacher(f"feats/{path}")
    conf = {"frame_shift_samples": 160, "sample_rate": 8000}
    teacher = build_teacher(f"feats/{path}", **conf)
    assert (teacher.sample_rate, teacher.frame_offset_samples) == (8000, 99.5)
    teacher = build_teacher(f"feats/{path}", frame_offset_samples=0, **conf)
    assert teacher.frame_offset_samples == 0
    with pytest.raises(TeacherError, match="got layer -2, expected -1 or more"):
        build_teacher(f"feats/{path}", -2, **SHIFT)
    with pytest.raises(TeacherError, match="unknown option: .*window_s"):
        build_teacher(f"feats/{path}", window_s=1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frame_shift_samples": 0}, "frame_shift_samples 0 and .* above 0"),
        ({"frame_offset_samples": -1.0}, "offset_samples -1.0, expected .* 0 or more"),
        ({"sample_rate": 0}, "sample_rate 0, expected both above 0"),
    ],
)
def test_options_that_cannot_be(write, options, message):
    path = write()
    with pytest.raises(TeacherError, match=message):
        build_teacher(f"feats/{path}", **{**SHIFT, **options})


def test_json_beside_the_file_that_cannot_be(write):
    path = write()
    content = {"format": "espnet_mvq.embeddings", "frame_shift_samples": "x"}
    path.with_suffix(".json").write_text(json.dumps(content))
    message = "feats.json beside it: frame_shift_samples: got 'x', expected a whole"
    with pytest.raises(TeacherError, match=message):
        build_teacher(f"feats/{path}")


def test_id_stands_for_content_or_is_given(write, arrays):
    first = build_teacher(f"feats/{write()}", **SHIFT).id
    again = build_teacher(f"feats/{write('npy')}", **SHIFT).id
    assert first == again and first.startswith("feats/feats.scp@")
    other = {utt_id: array + 1 for utt_id, array in arrays.items()}
    path = write("ark", other)
    assert build_teacher(f"feats/{path}", **SHIFT).id != first
    named = build_teacher(f"feats/{path}", teacher_id="wavlm_large", **SHIFT)
    assert named.id == "feats/wavlm_large"


def test_missing_utterance_is_named(write):
    teacher = build_teacher(f"feats/{write()}", **SHIFT)
    with pytest.raises(AudioError, match="utterance nobody: not in .*has 12 utteranc"):
        teacher.read("nobody", "")


@pytest.mark.parametrize(
    "array, message",
    [
        (
            np.zeros((3, 5), "f4"),
            r"got shape \(3, 5\), expected \(T, 4\) as of .* utt0",
        ),
        (np.zeros((0, 4), "f4"), r"got shape \(0, 4\), expected \(T, 4\)"),
        (np.full((3, 4), np.nan, "f4"), "got NaN or infinity in frame 0"),
    ],
)
def test_bad_embeddings_name_the_utterance(write, arrays, array, message):
    path = write("npy", {**arrays, "utt1": array})
    # With its own id, no embeddings but the first are read at the start
    teacher = build_teacher(f"feats/{path}", teacher_id="wavlm", **SHIFT)
    with pytest.raises(AudioError, match=f"utterance utt1 in .*{message}"):
        teacher.read("utt1", "")


def test_quantizer_is_trained_on_them(write, arrays, tmp_path):
    """The places in wav.scp are not read."""
    wav_scp = write_table(tmp_path / "wav.scp", dict.fromkeys(arrays, "none.wav"))
    path = tmp_path / "quantizer.safetensors"
    words = ["--wav_scp", wav_scp, "--quantizer", path, *QUANTIZER_SIZES, "--layer", 6]
    words += ["--teacher", f"feats/{write()}"]
    words += ["--teacher_conf", "frame_shift_samples=320"]
    train_quantizer.main([str(word) for word in words])
    made = Quantizer.load(path)
    assert (made.dim, made.num_codebooks, made.provenance["layer"]) == (4, 2, 6)
    assert made.provenance["teacher"].startswith("feats/feats.scp@")
    assert made.provenance["relative_reconstruction_error"] < 0.8
