"""Reading ahead and batching, as the extraction and the samplers use them."""

import re
import threading

import numpy as np
import pytest
import soundfile
import torch

from espnet_mvq.extraction.embedding_stream import (
    embed_batches,
    embed_utterances,
    plan_batches,
    read_num_samples,
)
from espnet_mvq.files.scp import read_scp
from espnet_mvq.teachers import build_teacher, speech_model
from espnet_mvq.teachers.audio import AudioError
from espnet_mvq.teachers.base import EmbeddingError


@pytest.fixture
def teacher(teacher_dir):
    return build_teacher(f"transformers/{teacher_dir}", 1)


@pytest.fixture
def places(data_dir):
    return read_scp(data_dir / "wav.scp")


@pytest.fixture
def num_samples():
    return {f"utt{n}": 6400 + 1600 * n for n in range(6)}


def test_lengths_of_the_file_or_of_the_headers(places, data_dir, num_samples, caplog):
    scp = str(data_dir / "wav.scp")
    assert read_num_samples(places, None, scp) == num_samples
    (data_dir / "utt2num_samples").rename(data_dir / "lengths")
    assert read_num_samples(places, str(data_dir / "lengths"), scp) == num_samples
    caplog.set_level("INFO")
    places["utt1"], places["utt2"] = "none.wav", "feats.ark:17"
    expected = {**num_samples, "utt1": 0, "utt2": 0}
    assert read_num_samples(places, None, scp) == expected
    assert "read from the audio's headers" in caplog.text


def test_batches_equal_utterances_alone(teacher, places, num_samples):
    teacher.batch_samples = 40000
    teacher.mixes_lengths = True  # this one does not; only the plan is looked at
    batches = plan_batches(teacher, num_samples)
    assert batches == [["utt5", "utt4"], ["utt3", "utt2", "utt1"], ["utt0"]]
    done = ["utt5", "utt4", "utt2"]  # a batch runs as a whole, or not at all
    assert plan_batches(teacher, num_samples, done) == batches[1:]
    teacher.mixes_lengths = False
    actual = {}
    for batch in embed_batches(teacher, batches, places):
        actual.update(batch)
    assert list(actual) == ["utt5", "utt4", "utt3", "utt2", "utt1", "utt0"]
    for utt_id, embeddings in actual.items():
        expected = teacher.embed_batch([teacher.read(utt_id, places[utt_id])])[0]
        torch.testing.assert_close(embeddings, expected, rtol=0, atol=2e-5)


def test_bad_audio_spoils_no_other_utterance(teacher, places):
    places["utt3"] = "none.wav"
    (batch,) = embed_batches(teacher, [["utt2", "utt3"]], places)
    assert isinstance(batch["utt2"], torch.Tensor)
    assert isinstance(batch["utt3"], AudioError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_of_the_teacher_is_an_error_of_that_utterance(
    teacher, places, monkeypatch, value
):
    def embed_batch(waveforms):
        return [torch.full((2, 16), value if len(w) == 9600 else 0) for w in waveforms]

    monkeypatch.setattr(teacher, "embed_batch", embed_batch)
    (batch,) = embed_batches(teacher, [["utt1", "utt2", "utt3"]], places)
    assert list(batch) == ["utt1", "utt2", "utt3"]
    assert all(isinstance(batch[u], torch.Tensor) for u in ("utt1", "utt3"))
    message = "utterance utt2: the teacher .* gives NaN or infinity at layer 1"
    assert re.match(message, str(batch["utt2"]))


def test_utterances_that_the_teacher_cannot_embed(places, data_dir, caplog):
    """They are found in a batch, and the commands stop or skip as with bad audio."""
    for number in (1, 3):
        soundfile.write(f"{data_dir}/{number}.wav", np.full(10, 0.1), 16000)
    teacher = build_teacher("s3prl/mel", 0, batch_s=10)
    (batch,) = embed_batches(teacher, [["utt1", "utt2", "utt3"]], places)
    assert isinstance(batch["utt2"], torch.Tensor)
    assert isinstance(batch["utt3"], EmbeddingError)
    message = "utterance utt1: the teacher s3prl/mel cannot embed 10 samples"
    assert str(batch["utt1"]).startswith(message)
    utt_ids = list(places)
    with pytest.raises(EmbeddingError, match=message):
        list(embed_utterances(teacher, utt_ids, places))
    caplog.clear()
    actual = embed_utterances(teacher, utt_ids, places, on_error="skip")
    assert [utt_id for utt_id, _ in actual] == ["utt0", "utt2", "utt4", "utt5"]
    assert f"skipped: {message}" in caplog.text
    with pytest.raises(ValueError, match="no utterance is left, all 2 were skipped"):
        list(embed_utterances(teacher, ["utt1", "utt3"], places, on_error="skip"))


def test_fault_of_the_device_is_none_of_the_utterance(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("full")

    teacher = build_teacher("s3prl/fbank", 0)
    monkeypatch.setattr(teacher._upstream, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        teacher.embed_batch([torch.zeros(9600)])


def test_reading_keeps_ahead_but_not_of_memory(teacher, places, monkeypatch):
    """While a batch is worked on, others are read, a few and not the corpus."""
    read, enough = [], threading.Event()

    def read_audio(utt_id, place, sample_rate):
        read.append(utt_id)
        if len(read) == 4:
            enough.set()
        return torch.zeros(6400)

    monkeypatch.setattr(speech_model, "read_audio", read_audio)
    before = set(threading.enumerate())  # other tests may have left threads behind
    stream = embed_batches(teacher, [[u] for u in places], places, num_workers=1)
    next(stream)
    assert enough.wait(timeout=30) and len(read) == 4
    stream.close()
    assert set(threading.enumerate()) <= before
