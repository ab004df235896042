"""The command that turns audio into codebook indexes."""

import json

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from corpus_builders import save_ctc

from espnet_mvq.indexes import IndexMetadata, PosteriorMetadata
from espnet_mvq.indexes.metadata import EmbeddingMetadata
from espnet_mvq.indexes.shard import finished_shard, shard_paths
from espnet_mvq.quantization import Quantizer
from espnet_mvq.teachers import Teacher, build_teacher, speech_model
from espnet_mvq.teachers.audio import read_audio
from espnet_mvq.teachers.ctc import build_ctc_teacher


@pytest.fixture
def shards(tmp_path):
    return tmp_path / "shards"


def kaldi_arrays(shards):
    """Read all arrays of shard 1."""
    return dict(kaldiio.load_ark(str(shard_paths(shards, 1)[0])))


def embed_alone(teacher, utt_id, place):
    """Embed an utterance alone."""
    return teacher.embed_batch([teacher.read(utt_id, place)])[0]


def write_empty_audio(data_dir):
    """Replace the audio of utt3."""
    soundfile.write(data_dir / "3.wav", np.zeros(0), 16000)


def test_indexes_are_those_of_teacher_and_quantizer(
    extract, shards, quantizer, teacher_dir, data_dir
):
    extract()
    teacher = build_teacher(f"transformers/{teacher_dir}", 1)
    actual = kaldiio.load_scp(str(shard_paths(shards, 1)[1]))
    assert list(actual) == [f"utt{n}" for n in (5, 4, 3, 2, 1, 0)]  # by length
    for utt_id, indexes in actual.items():
        speech = read_audio(utt_id, f"{data_dir}/{utt_id[3]}.wav", 16000)
        embeddings, _ = teacher.embed(speech[None], torch.tensor([len(speech)]))
        expected = Quantizer.load(quantizer).encode(embeddings[0])
        assert indexes.dtype == np.uint8
        np.testing.assert_array_equal(indexes, expected.numpy())


def test_metadata_describe_the_indexes(extract, shards, quantizer, teacher_dir):
    extract("--beam_size", "2")
    actual = finished_shard(shards, 1)
    assert actual.teacher.startswith(f"transformers/{teacher_dir.name}@")
    assert actual.quantizer_id == Quantizer.load(quantizer).id
    assert (actual.layer, actual.num_codebooks, actual.codebook_size) == (1, 2, 4)
    assert (actual.frame_shift_samples, actual.frame_offset_samples) == (320, 199.5)
    assert actual.encode == {
        "beam_size": 2,
        "refine_passes": 5,
        "pair_candidates": 1,
        "perturbation_rounds": 0,
    }
    assert actual.num_utterances == 6


def test_finished_shard_is_kept(extract, shards):
    extract()
    before = [path.stat().st_mtime_ns for path in shard_paths(shards, 1)]
    extract()
    assert [path.stat().st_mtime_ns for path in shard_paths(shards, 1)] == before
    extract(job=2)
    assert finished_shard(shards, 2) is not None


def test_a_job_sets_its_threads(extract, monkeypatch):
    """Else, each of several jobs would use all cores."""
    numbers = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    extract()
    extract("--num_threads", "3")
    assert numbers == [1, 3]


def test_other_settings_or_utterances_make_it_again(
    extract, shards, data_dir, quantizer, tmp_path
):
    extract()
    old = Quantizer.load(quantizer)
    other = Quantizer(old.codebooks + 0.1, old.mean, old.scale, old.provenance)
    other.save(tmp_path / "other.safetensors")
    extract(quantizer=tmp_path / "other.safetensors")
    assert finished_shard(shards, 1).quantizer_id == other.id
    extract("--refine_passes", "0")
    assert finished_shard(shards, 1).encode["refine_passes"] == 0
    lines = (data_dir / "wav.scp").read_text().splitlines(True)
    (data_dir / "wav.scp").write_text("".join(lines[:4]))
    extract("--refine_passes", "0")
    assert finished_shard(shards, 1).num_utterances == 4


def test_bad_audio_stops_or_is_skipped(
    extract, shards, data_dir, ends_with_error, caplog
):
    write_empty_audio(data_dir)
    error = ends_with_error(extract)
    assert error.startswith("utterance utt3: ") and "is empty" in error
    assert finished_shard(shards, 1) is None
    caplog.clear()
    extract("--on_error", "skip")
    assert finished_shard(shards, 1).num_utterances == 5
    assert f"skipped: {error}" in caplog.text
    before = shard_paths(shards, 1)[0].stat().st_mtime_ns
    extract("--on_error", "skip")
    assert shard_paths(shards, 1)[0].stat().st_mtime_ns == before


def test_damaged_metadata_are_made_again(extract, shards, caplog):
    extract()
    ark, _, described = shard_paths(shards, 1)
    content = ark.read_bytes()
    described.write_text("{")
    extract()
    assert ark.read_bytes() == content and finished_shard(shards, 1) is not None
    assert f"{described}: not readable" in caplog.text


def test_finished_shard_that_another_job_spoilt_is_made_again(extract, shards, caplog):
    """On a file system without locks, it appends to the ark after its renaming."""
    extract()
    ark = shard_paths(shards, 1)[0]
    content = ark.read_bytes()
    with ark.open("ab") as file:
        file.write(content[:100])
    extract()
    assert ark.read_bytes() == content
    assert f"{ark}: its checksum is wrong; the shard is made again" in caplog.text


def test_nan_of_the_teacher_stops_or_is_skipped(
    extract, shards, monkeypatch, caplog, ends_with_error
):
    embed_batch = Teacher.embed_batch

    def broken(teacher, waveforms):
        actual = embed_batch(teacher, waveforms)
        return [
            e * float("nan" if len(w) == 11200 else 1)
            for w, e in zip(waveforms, actual)
        ]

    monkeypatch.setattr(Teacher, "embed_batch", broken)
    error = ends_with_error(extract)
    assert error.startswith("utterance utt3: the teacher ") and "gives NaN" in error
    extract("--on_error", "skip")
    assert finished_shard(shards, 1).skipped == ["utt3"]
    assert finished_shard(shards, 1).num_utterances == 5
    assert f"skipped: {error}" in caplog.text


def test_mended_audio_is_added_to_the_shard(extract, shards, data_dir, monkeypatch):
    """The other utterances are kept as they are, whatever --on_error says."""
    from espnet_mvq.indexes import ShardWriter

    extract()
    whole = kaldi_arrays(shards)
    shard_paths(shards, 1)[2].unlink()
    audio = {n: (data_dir / f"{n}.wav").read_bytes() for n in (1, 3)}
    for number in audio:
        (data_dir / f"{number}.wav").write_bytes(b"no audio")
    extract("--on_error", "skip")
    assert finished_shard(shards, 1).skipped == ["utt3", "utt1"]
    before = shard_paths(shards, 1)[0].read_bytes()
    written, write = [], ShardWriter.write

    def noting(shard, utt_id, array):
        written.append(utt_id)
        write(shard, utt_id, array)

    monkeypatch.setattr(ShardWriter, "write", noting)
    (data_dir / "3.wav").write_bytes(audio[3])
    extract("--on_error", "skip")
    assert written == ["utt3"] and finished_shard(shards, 1).skipped == ["utt1"]
    assert shard_paths(shards, 1)[0].read_bytes().startswith(before)
    (data_dir / "1.wav").write_bytes(audio[1])
    extract()
    assert written == ["utt3", "utt1"] and finished_shard(shards, 1).skipped == []
    assert shard_paths(shards, 1)[0].read_bytes().startswith(before)
    actual = kaldi_arrays(shards)
    assert sorted(actual) == sorted(whole) and len(actual) == 6
    for utt_id, indexes in whole.items():
        np.testing.assert_array_equal(actual[utt_id], indexes)


def test_unusable_audio_stops_without_harm_to_a_finished_shard(
    extract, shards, data_dir, ends_with_error
):
    write_empty_audio(data_dir)
    extract("--on_error", "skip")
    before = [path.read_bytes() for path in shard_paths(shards, 1)]
    assert "utterance utt3: " in ends_with_error(extract)
    assert [path.read_bytes() for path in shard_paths(shards, 1)] == before


def test_interrupted_extraction_resumes(extract, shards, monkeypatch, caplog):
    def interrupted(utt_id, place, sample_rate):
        if utt_id == "utt2":
            raise KeyboardInterrupt  # three longer ones are done
        return read_audio(utt_id, place, sample_rate)

    with monkeypatch.context() as patch:
        patch.setattr(speech_model, "read_audio", interrupted)
        with pytest.raises(SystemExit) as ended:
            extract()
    assert ended.value.code == 130
    assert finished_shard(shards, 1) is None
    caplog.set_level("INFO")
    extract()
    assert "3 utterances of a run that broke off are kept" in caplog.text
    assert IndexMetadata.load(shard_paths(shards, 1)[2]).num_utterances == 6
    resumed = shard_paths(shards, 1)[0].read_bytes()
    shard_paths(shards, 1)[2].unlink()
    extract()
    assert shard_paths(shards, 1)[0].read_bytes() == resumed


def test_batches_change_nothing(extract, shards):
    """A tiny model gives the same bytes; big ones differ in a rare tie."""
    extract()
    alone = shard_paths(shards, 1)[0].read_bytes()
    shard_paths(shards, 1)[2].unlink()
    extract("--batch_s", "10", "--num_workers", "1")
    assert shard_paths(shards, 1)[0].read_bytes() == alone


def test_batch_that_broke_off_runs_whole_again(extract, shards, monkeypatch, caplog):
    """The shard must not depend on the moment of the interruption."""
    from espnet_mvq.indexes import ShardWriter

    write = ShardWriter.write
    with monkeypatch.context() as patch:

        def break_off(shard, utt_id, array):
            if utt_id == "utt4":
                raise KeyboardInterrupt
            write(shard, utt_id, array)

        patch.setattr(ShardWriter, "write", break_off)
        with pytest.raises(SystemExit):
            extract("--batch_s", "10")
    sizes = []
    embed_batch = Teacher.embed_batch

    def counting(teacher, waveforms):
        sizes.append([len(w) for w in waveforms])
        return embed_batch(teacher, waveforms)

    monkeypatch.setattr(Teacher, "embed_batch", counting)
    monkeypatch.setattr(
        "espnet_mvq.extraction.embedding_stream.group_by_length",
        lambda lengths, *options: [[5, 4], [3], [2, 1, 0]],
    )
    extract("--batch_s", "10")
    assert sizes[0] == [14400, 12800]
    assert finished_shard(shards, 1).num_utterances == 6


@pytest.fixture
def embed(data_dir, teacher_options, shards):
    """Return a function that extracts embeddings."""
    from espnet_mvq.bin.extract import main

    def run(*options):
        paths = ["--wav_scp", f"{data_dir}/wav.scp", "--outdir", str(shards)]
        main([*paths, "--target", "embeddings", *teacher_options, *options])

    return run


def test_embeddings_are_those_of_the_teacher(embed, shards, teacher_dir, data_dir):
    embed()
    metadata = EmbeddingMetadata.load(shards / "embeddings.1.json")
    assert (metadata.dim, metadata.layer, metadata.num_utterances) == (16, 1, 6)
    actual = kaldiio.load_scp(str(shards / "embeddings.1.scp"))
    teacher = build_teacher(f"transformers/{teacher_dir}", 1)
    for utt_id, embeddings in actual.items():
        expected = embed_alone(teacher, utt_id, f"{data_dir}/{utt_id[3]}.wav")
        assert embeddings.dtype == np.float16
        np.testing.assert_array_equal(embeddings, expected.half().numpy())


def test_embeddings_can_be_a_teacher(embed, shards, data_dir, tmp_path, teacher_dir):
    """Stored embeddings are near those of the teacher."""
    embed()
    spec = f"feats/{shards}/embeddings.1.scp"
    json_path = shards / "embeddings.1.json"
    content = json.loads(json_path.read_text())
    json_path.write_text(json.dumps({**content, "frame_offset_samples": 7.5}))
    again = build_teacher(spec, 1)
    direct = build_teacher(f"transformers/{teacher_dir}", 1)
    assert again.frame_shift_samples == direct.frame_shift_samples
    assert (again.frame_offset_samples, again.sample_rate) == (7.5, 16_000)
    assert build_teacher(spec, 1, frame_offset_samples=3).frame_offset_samples == 3
    place = f"{data_dir}/4.wav"
    actual, expected = (embed_alone(t, "utt4", place) for t in (again, direct))
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-3)


def test_embeddings_too_big_for_float16(embed, monkeypatch, ends_with_error):
    monkeypatch.setattr(
        Teacher, "embed_batch", lambda self, w: [torch.full((9, 16), 7e4)] * len(w)
    )
    error = ends_with_error(embed)
    assert "utterance utt5: got NaN or infinity in float16" in error
    assert "take a layer whose embeddings are smaller" in error


@pytest.fixture
def posteriors(data_dir, shards, tmp_path):
    """Return a function that extracts posteriors, and the name of the teacher."""
    from espnet_mvq.bin.extract import main

    teacher = f"transformers/{save_ctc(tmp_path / 'ctc', list('_<#|AB'))}"

    def run(*options):
        paths = ["--wav_scp", f"{data_dir}/wav.scp", "--outdir", str(shards)]
        main([*paths, "--target", "posteriors", "--teacher", teacher, *options])

    return run, teacher


def test_posteriors_are_those_of_the_teacher(posteriors, shards, data_dir):
    extract, spec = posteriors
    extract("--top_k", "3")
    metadata = PosteriorMetadata.load(shards / "posteriors.1.json")
    teacher = build_ctc_teacher(spec)
    assert metadata.token_list == teacher.token_list and metadata.teacher == teacher.id
    assert (metadata.top_k, metadata.num_utterances) == (3, 6)
    assert metadata.frame_shift_samples == 320
    actual = kaldiio.load_scp(str(shards / "posteriors.1.scp"))
    assert len(actual) == 6
    for utt_id, stored in actual.items():
        logits = embed_alone(teacher, utt_id, f"{data_dir}/{utt_id[3]}.wav")
        largest, tokens = logits.softmax(1).topk(3, dim=1)
        assert stored.dtype == np.uint16
        np.testing.assert_array_equal(stored[:, :3], tokens.numpy())
        probs = np.exp(stored[:, 3:] / -2048.0)
        np.testing.assert_allclose(probs[:, :3], largest.numpy(), rtol=1e-3)
        np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-3)
    ark = shards / "posteriors.1.ark"
    before = ark.stat().st_mtime_ns
    extract("--top_k", "3")
    assert ark.stat().st_mtime_ns == before
    extract("--top_k", "2")
    assert PosteriorMetadata.load(shards / "posteriors.1.json").top_k == 2


def test_embeddings_of_utterances_are_means(embed, shards, teacher_dir, data_dir):
    embed("--level", "utterance")
    metadata = EmbeddingMetadata.load(shards / "embeddings.1.json")
    assert (metadata.level, metadata.num_frames) == ("utterance", 6)
    actual = kaldiio.load_scp(str(shards / "embeddings.1.scp"))
    teacher = build_teacher(f"transformers/{teacher_dir}", 1)
    for utt_id, embedding in actual.items():
        frames = embed_alone(teacher, utt_id, f"{data_dir}/{utt_id[3]}.wav").numpy()
        expected = sum(frames[t] for t in range(len(frames))) / len(frames)
        np.testing.assert_allclose(embedding, expected[None], atol=2e-3)


@pytest.fixture
def utterance_quantizer(data_dir, teacher_options, tmp_path):
    """Train a quantizer of one codebook with 3 entries on vectors of utterances."""
    from espnet_mvq.bin.train_quantizer import main

    path = tmp_path / "q_utterance" / "quantizer.safetensors"
    words = f"--wav_scp {data_dir}/wav.scp --quantizer {path} --level utterance"
    main([*words.split(), "--codebook_size", "3", *teacher_options])
    return path


def test_index_of_an_utterance_is_that_of_its_mean(
    extract, shards, utterance_quantizer, teacher_dir, data_dir
):
    extract("--level", "utterance", quantizer=utterance_quantizer)
    metadata = finished_shard(shards, 1)
    assert (metadata.level, metadata.num_codebooks) == ("utterance", 1)
    teacher = build_teacher(f"transformers/{teacher_dir}", 1)
    codebook = Quantizer.load(utterance_quantizer).decode(torch.arange(3)[:, None])
    actual = kaldiio.load_scp(str(shard_paths(shards, 1)[1]))
    assert len(actual) == 6
    for utt_id, indexes in actual.items():
        frames = embed_alone(teacher, utt_id, f"{data_dir}/{utt_id[3]}.wav")
        distances = torch.cdist(frames.mean(0)[None], codebook)[0]
        assert indexes.dtype == np.uint8 and indexes.shape == (1, 1)
        assert indexes.item() == distances.argmin()


def test_another_level_makes_another_shard(
    extract, shards, quantizer, utterance_quantizer, ends_with_error
):
    extract()
    extract("--level", "utterance", quantizer=utterance_quantizer)
    assert finished_shard(shards, 1).num_frames == 6
    before = shard_paths(shards, 1)[0].stat().st_mtime_ns
    extract("--level", "utterance", quantizer=utterance_quantizer)
    assert shard_paths(shards, 1)[0].stat().st_mtime_ns == before
    error = ends_with_error(extract, "--level", "utterance", quantizer=quantizer)
    assert "made for --level frame, got --level utterance" in error
    error = ends_with_error(extract, quantizer=utterance_quantizer)
    assert "made for --level utterance, got --level frame" in error
