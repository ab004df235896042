"""The command that stores a teacher's task loss of each utterance."""

import errno
import io
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpus_builders import save_transformers, write_table

from espnet_mvq.bin import teacher_loss
from espnet_mvq.extraction.task_losses import read_texts
from espnet_mvq.files.scp import read_scp
from espnet_mvq.indexes.partial_losses import PartialLosses
from espnet_mvq.indexes.teacher_losses import TeacherLossMetadata, read_teacher_losses
from espnet_mvq.teachers.task_loss import TaskLoss, build_task_loss

TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B"]
TEXTS = ["A", "AB", "A BA", "BB", "ABABA", "B AB"]


@pytest.fixture(scope="session")
def ctc_dir(tmp_path_factory):
    """Save a tiny HuBERT with a CTC head; it takes mixed lengths."""
    folder = tmp_path_factory.mktemp("teacher") / "tiny_ctc"
    norms = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    return save_transformers(folder, "Hubert", "ForCTC", 7, TOKENS, **norms)


@pytest.fixture
def corpus(data_dir):
    """Add texts, in another order, and of one more utterance."""
    lines = [f"utt{n} {text}\n" for n, text in enumerate(TEXTS)]
    (data_dir / "text").write_text("".join([*reversed(lines), "other A\n"]))
    return data_dir


@pytest.fixture
def run(corpus, ctc_dir):
    """Return a function that runs the command."""

    def call(*options, teacher=f"transformers/{ctc_dir}"):
        paths = ["--data_dir", str(corpus), "--teacher", teacher]
        teacher_loss.main([*paths, *options])

    return call


@pytest.fixture
def calls(monkeypatch):
    """List the texts that the teacher computes the losses of, call by call."""
    called, loss = [], TaskLoss.loss

    def counting(task_loss, waveforms, texts):
        called.append(texts)
        return loss(task_loss, waveforms, texts)

    monkeypatch.setattr(TaskLoss, "loss", counting)
    return called


def set_text(corpus, utt_id, text):
    texts = {**read_texts(corpus, "unlabelled"), utt_id: text}
    texts = {u: t for u, t in texts.items() if t is not None}
    write_table(corpus / "text", texts)


def test_losses_are_the_teachers_divided_by_the_labels(run, corpus, ctc_dir):
    run()
    actual = read_teacher_losses(corpus / "teacher_loss")
    assert list(actual) == list(read_scp(corpus / "wav.scp"))
    task_loss = build_task_loss(f"transformers/{ctc_dir}")
    for number, (utt_id, value) in enumerate(actual.items()):
        waveform = task_loss.read(utt_id, f"{corpus}/{number}.wav")
        (nats,), (count,) = task_loss.loss([waveform], [TEXTS[number]])
        assert count == len(TEXTS[number])
        assert value == pytest.approx(nats / count, rel=1e-8)
    assert len(set(actual.values())) == 6


def test_metadata_describe_the_losses(run, corpus, ctc_dir):
    run("--log_level", "WARNING")
    content = json.loads((corpus / "teacher_loss.json").read_text())
    values = list(read_teacher_losses(corpus / "teacher_loss").values())
    assert content["teacher"] == build_task_loss(f"transformers/{ctc_dir}").id
    assert (content["loss"], content["unit"]) == ("ctc", "nats per label")
    assert (content["num_utterances"], content["num_labels"]) == (6, 18)
    assert content["mean"] == pytest.approx(np.mean(values))
    assert content["standard_deviation"] == pytest.approx(np.std(values))
    assert content["quartiles"] == pytest.approx(np.percentile(values, [25, 50, 75]))
    assert content["skipped"] == [] and "version" in content


def test_espnet_reads_the_file(run, corpus):
    from espnet2.train.dataset import ESPnetDataset

    run()
    entry = (str(corpus / "teacher_loss"), "teacher_loss", "text_float")
    dataset = ESPnetDataset([entry], preprocess=None)
    expected = read_teacher_losses(corpus / "teacher_loss")["utt3"]
    actual = dataset["utt3"][1]["teacher_loss"]
    assert actual.shape == (1,) and actual[0] == np.float32(expected)


def test_finished_losses_are_kept(run, corpus, calls):
    run()
    before = (corpus / "teacher_loss").stat().st_mtime_ns
    assert len(calls) == 6
    run()
    assert (corpus / "teacher_loss").stat().st_mtime_ns == before
    assert len(calls) == 6 and not list(corpus.glob("*.partial"))


def test_other_texts_teachers_or_damage_make_it_again(run, corpus, calls, caplog):
    caplog.set_level(logging.INFO)
    run()
    set_text(corpus, "utt3", "BA")
    run()
    assert len(calls) == 12 and "has other inputs and is made again" in caplog.text
    run("--teacher_conf", "case=upper")
    assert len(calls) == 18
    path = corpus / "teacher_loss"
    path.write_text(path.read_text().replace("utt2 ", "utt2 x"))
    run("--teacher_conf", "case=upper")
    assert len(calls) == 24 and "made again: teacher losses" in caplog.text
    (corpus / "teacher_loss.json").unlink()
    run("--teacher_conf", "case=upper")
    assert len(calls) == 30 and len(read_teacher_losses(path)) == 6


def test_output_in_another_folder(run, corpus, tmp_path):
    run("--output", str(tmp_path / "new" / "loss.v1"))
    metadata = TeacherLossMetadata.load(tmp_path / "new" / "loss.v1.json")
    losses = read_teacher_losses(tmp_path / "new" / "loss.v1")
    assert len(losses) == metadata.num_utterances == 6
    assert not (corpus / "teacher_loss").exists()


def test_batches_change_nothing_that_counts(run, corpus, calls, tmp_path):
    run("--output", str(tmp_path / "alone"))
    run("--batch_s", "2.5", "--num_workers", "1", "--output", str(tmp_path / "batch"))
    assert [len(texts) for texts in calls] == [1] * 6 + [2, 3, 1]
    actual, expected = map(
        read_teacher_losses, (tmp_path / "batch", tmp_path / "alone")
    )
    assert actual == pytest.approx(expected, rel=1e-4) and list(actual) == list(
        expected
    )


@pytest.mark.parametrize("end", [b"", b"utt0 1.", b"utt0 1.5 2 \xc3"])
def test_interrupted_run_resumes(run, corpus, calls, monkeypatch, caplog, end):
    run()
    expected = (corpus / "teacher_loss").read_bytes()
    (corpus / "teacher_loss").unlink()
    calls.clear()
    write = PartialLosses.write

    def interrupted(partial, losses):
        if "utt2" in losses:
            raise KeyboardInterrupt  # three longer ones are done
        write(partial, losses)

    with monkeypatch.context() as patch:
        patch.setattr(PartialLosses, "write", interrupted)
        with pytest.raises(SystemExit) as ended:
            run()
    assert ended.value.code == 130 and not (corpus / "teacher_loss").exists()
    with (corpus / "teacher_loss.partial").open("ab") as file:
        file.write(end)
    caplog.set_level(logging.INFO)
    run()
    assert "the losses of 3 utterances of a run that broke off are kept" in caplog.text
    assert calls[4:] == [[TEXTS[2]], [TEXTS[1]], [TEXTS[0]]]
    assert (corpus / "teacher_loss").read_bytes() == expected
    assert not (corpus / "teacher_loss.partial").exists()


def test_kept_are_only_losses_of_the_same_teacher_and_text(run, corpus, calls):
    set_text(corpus, "utt0", "AB" * 99)
    with pytest.raises(SystemExit):
        run()  # the shortest comes last, and has no room for its text
    assert len(calls) == 6
    set_text(corpus, "utt0", "A")
    set_text(corpus, "utt4", "BBBBB")
    run()
    assert calls[6:] == [["BBBBB"], ["A"]]
    (corpus / "teacher_loss").unlink()
    set_text(corpus, "utt0", "AB" * 99)
    with pytest.raises(SystemExit):
        run()
    run("--teacher_conf", "case=upper", "--on_error", "skip")
    assert len(calls) == 8 + 6 + 6


def test_second_writer_is_refused(run, corpus, ends_with_error):
    import fcntl

    with (corpus / "teacher_loss.partial").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is writing it" in ends_with_error(run)
    run()


class FullDisk(io.BufferedRandom):
    """File on a full disk."""

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk(run, corpus, monkeypatch, ends_with_error):
    def open_full(path, mode="r", **options):
        if path.suffix == ".partial":
            return FullDisk(io.FileIO(path, "a+"))
        return open(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_full)
    error = ends_with_error(run)
    assert "could not be written (No space left on device); the losses of 0" in error


def test_speech_without_transcripts_has_no_loss(run, corpus, caplog):
    set_text(corpus, "utt1", "")
    set_text(corpus, "utt4", "-")
    (corpus / "unlabelled").write_text("utt4\n\nnot_here 1\n")
    run()
    metadata = TeacherLossMetadata.load(corpus / "teacher_loss.json")
    assert (metadata.num_without_text, metadata.skipped) == (2, [])
    losses = read_teacher_losses(corpus / "teacher_loss")
    assert list(losses) == ["utt0", "utt2", "utt3", "utt5"]
    caplog.set_level(logging.INFO)
    run()
    assert "is done already" in caplog.text
    set_text(corpus, "utt1", "A")
    run()
    assert len(read_teacher_losses(corpus / "teacher_loss")) == 5


@pytest.mark.parametrize(
    "line, message",
    [
        ("", "got '', expected 'utt_id value'"),
        ("utt2 B", "got utterance utt2 again, expected each once"),
    ],
)
def test_damaged_text(run, corpus, ends_with_error, line, message):
    with (corpus / "text").open("a") as file:
        file.write(f"{line}\n")
    assert f"text:8: {message}" in ends_with_error(run)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("audio", "utterance utt3: "),
        ("text", "utterance utt3: text 'A, C': .* does not have ',' 'C'"),
        ("no text", "utterance utt3: is in wav.scp but has no line in the file text"),
        (
            "long text",
            "utterance utt3: got an infinite loss, as 150 labels do not fit into 0.70",
        ),
    ],
)
def test_unusable_utterances_stop_or_are_skipped(
    run, corpus, ends_with_error, caplog, kind, message
):
    if kind == "audio":
        soundfile.write(corpus / "3.wav", np.zeros(0), 16000)
    else:
        texts = {"text": "A, C", "no text": None, "long text": "AB" * 75}
        set_text(corpus, "utt3", texts[kind])
    error = ends_with_error(run)
    assert re.match(message, error)
    assert not (corpus / "teacher_loss").exists()
    caplog.clear()
    run("--on_error", "skip")
    assert "skipped: utterance utt3: " in caplog.text
    metadata = TeacherLossMetadata.load(corpus / "teacher_loss.json")
    assert metadata.skipped == ["utt3"] and metadata.num_utterances == 5
    assert "utt3" not in read_teacher_losses(corpus / "teacher_loss")
    caplog.clear()
    run("--on_error", "skip")
    assert "skipped" not in caplog.text  # it is done
    assert re.match(message, ends_with_error(run))


def test_texts_are_checked_before_the_first_loss(run, corpus, calls, ends_with_error):
    for utt_id in ("utt1", "utt4", "utt5"):
        set_text(corpus, utt_id, "Ä")
    error = ends_with_error(run)
    assert error.startswith("utterance utt1: ") and calls == []
    assert (
        "(3 utterances cannot be used); or leave them out with --on_error skip" in error
    )


def test_nothing_left(run, corpus, ends_with_error):
    for number in range(6):
        set_text(corpus, f"utt{number}", "Ä")
    assert "no utterance is left, 0 have no text and 6" in ends_with_error(
        run, "--on_error", "skip"
    )


def test_nan_stops_or_is_skipped(run, corpus, monkeypatch, caplog, ends_with_error):
    def loss(task_loss, waveforms, texts):
        nats = [float("nan") if text == "AB" else 1.0 for text in texts]
        return nats, [1] * len(texts)

    monkeypatch.setattr(TaskLoss, "loss", loss)
    message = "utterance utt1: the teacher transformers/"
    error = ends_with_error(run)
    assert error.startswith(message) and "gives NaN" in error
    caplog.clear()
    run("--on_error", "skip")
    metadata = TeacherLossMetadata.load(corpus / "teacher_loss.json")
    assert metadata.skipped == ["utt1"]
    assert f"skipped: {message}" in caplog.text
