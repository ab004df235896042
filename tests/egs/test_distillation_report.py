"""The report of a distillation out of logs, scores and metadata."""

import json
import shutil

import pytest
import torch
import yaml
from builders import index_metadata
from corpus_builders import load_script

from espnet_mvq.quantization import Quantizer

report = load_script("egs/TEMPLATE/asr1/pyscripts/distillation_report.py")

EPOCH = (
    "[vm] 2026-01-01 00:00:00,000 (trainer:394) INFO: {n}epoch results: [train] "
    "iter_time=0.018, loss={loss}, {mvq}optim0_lr0=2.000e-04, train_time={time}, "
    "time=58.68 seconds, total_count=27, [valid] loss={valid}, cer_ctc=nan, time=1.6 "
    "seconds, total_count=5, [att_plot] time=0 seconds, total_count=0\n"
)
MVQ = "loss_mvq={}, acc_mvq=0.25, mvq_nats_below_chance=1.5, "


@pytest.fixture
def options(tmp_path):
    """Two experiments of three epochs, the last of one of them run twice."""
    for name, mvq, wer in (("base", "", 50.0), ("mvq", MVQ, 40.25)):
        exp = tmp_path / name
        exp.mkdir()
        epochs = [(1, 9.0, 0.5), (2, 8.0, 0.25), (3, 7.0, 0.75), (3, 6.0, 0.3)]
        lines = [
            EPOCH.format(n=n, loss=v, mvq=mvq.format(v), time=t, valid=v)
            for n, v, t in epochs
        ]
        (exp / "train.log").write_text("".join(lines))
        data = [["wav.scp", "speech", "sound"]]
        (exp / "config.yaml").write_text(
            yaml.safe_dump({"train_data_path_and_name_and_type": data})
        )
        for unit in ("wer", "cer"):
            score = exp / "decode" / "test" / f"score_{unit}"
            score.mkdir(parents=True)
            (score / "result.json").write_text(json.dumps({"error_rate": wer}))
    metadata = index_metadata(num_utterances=5, num_frames=100)
    metadata.save(tmp_path / "codebook_indexes.json")
    quantizer = Quantizer(torch.randn(2, 4, 6))
    quantizer.provenance["relative_reconstruction_error"] = 0.125
    quantizer.save(tmp_path / "quantizer.safetensors")
    return {
        "--baseline": tmp_path / "base",
        "--student": tmp_path / "mvq",
        "--inference": "decode",
        "--test_sets": "test",
        "--index_metadata": tmp_path / "codebook_indexes.json",
        "--quantizer": tmp_path / "quantizer.safetensors",
        "--out": tmp_path / "REPORT.md",
    }


def run(options):
    report.main([str(word) for pair in options.items() for word in pair])


def test_tables(options, capsys):
    run(options)
    text = options["--out"].read_text()
    assert "| |test WER %|test CER %|epochs|train s/step|targets, bytes|" in text
    assert "|baseline|50.0|50.0|3|0.300|0|" in text
    assert "|MVQ student|40.2|40.2|3|0.300|0|" in text
    # 50 frames a second, 6 floats of 4 bytes against 2 bytes
    assert "|float32 embeddings (6-d)|4,320,000|" in text
    assert "|codebook indexes (2 bytes a frame)|360,000|" in text
    assert "|ratio|12|" in text
    assert "|3|6.00|6.00|6.00|1.500|25.0|" in text
    assert "relative reconstruction error 0.125" in text
    assert "|MVQ student|40.2|" in capsys.readouterr().out


def test_several_students_without_baseline(options):
    """Each has a row and a table of losses; numbers missing in the log are left out."""
    base = options["--out"].parent
    shutil.copytree(base / "base", base / "asr_kd")
    words = [str(w) for pair in options.items() for w in pair if pair[0] != "--student"]
    students = ["--student", str(base / "mvq"), str(base / "asr_kd")]
    report.main([*words, *students])
    text = options["--out"].read_text()
    assert text.startswith("# Baseline and MVQ students\n")
    assert "|baseline|50.0|" in text and "|mvq|40.2|" in text and "|kd|50.0|" in text
    assert "### mvq\n" in text and "|3|6.00|6.00|6.00|1.500|25.0|" in text
    assert "### kd\n" in text and "|3|6.00|6.00|\n" in text
    report.main([*words[2:], *students[:2]])
    text = options["--out"].read_text()
    assert text.startswith("# MVQ student\n") and "baseline|" not in text
    assert "|MVQ student|40.2|" in text and "|3|-|6.00|6.00|1.500|25.0|" in text


def test_each_target_has_its_curves(options, tmp_path):
    log = tmp_path / "mvq" / "train.log"
    second = "acc_mvq_layer9=0.5, acc_mvq_own_name=0.75, optim0"
    log.write_text(log.read_text().replace("optim0", second))
    run(options)
    text = options["--out"].read_text()
    assert (
        "|index accuracy %|index accuracy %, layer9|index accuracy %, own name|" in text
    )
    assert "|3|6.00|6.00|6.00|1.500|25.0|50.0|75.0|" in text


def test_epochs_of_older_logs(options, tmp_path):
    """ESPnet renames the logs before; a training that is done writes none anew."""
    log = tmp_path / "mvq" / "train.log"
    lines = log.read_text().splitlines(keepends=True)
    log.rename(tmp_path / "mvq" / "train.10.log")
    (tmp_path / "mvq" / "train.9.log").write_text(lines[3].replace("=6.0", "=5.0"))
    log.write_text("nothing to do\n")
    run(options)
    text = options["--out"].read_text()
    assert "|2|8.00|8.00|" in text and "|3|6.00|5.00|" in text


def test_targets_on_disk_are_counted_once(options, tmp_path):
    """Arks behind the scp, and quantizers; several entries of an ark are one file."""
    (tmp_path / "a.ark").write_bytes(bytes(1000))
    (tmp_path / "b.scp").write_text("u1 {0}:5\nu2 {0}:9\n".format(tmp_path / "a.ark"))
    (tmp_path / "loss").write_text("u1 0.5\n")
    quantizer = options["--quantizer"]
    config = {
        "train_data_path_and_name_and_type": [
            [str(tmp_path / "wav.scp"), "speech", "sound"],
            [str(tmp_path / "b.scp"), "codebook_indexes", "mvq_ark"],
            [str(tmp_path / "loss"), "teacher_loss", "mvq_loss"],
        ],
        "model_conf": {"mvq_conf": {"targets": {"x": {"quantizer": str(quantizer)}}}},
    }
    (tmp_path / "mvq" / "config.yaml").write_text(yaml.safe_dump(config))
    expected = 1000 + (tmp_path / "b.scp").stat().st_size + len("u1 0.5\n")
    expected += quantizer.stat().st_size
    assert report.target_bytes(tmp_path / "mvq") == expected


@pytest.mark.parametrize(
    "removed, message",
    [
        ("mvq/train.log", "train.log; run stage 11"),
        ("base/decode/test/score_cer/result.json", "run stages 12 and 13"),
        ("codebook_indexes.json", "codebook_indexes.json: no such file"),
        ("quantizer.safetensors", "quantizer.safetensors: no such file"),
    ],
)
def test_missing_files_are_named(options, ends_with_error, removed, message):
    (options["--out"].parent / removed).unlink()
    assert message in ends_with_error(run, options)
    assert not options["--out"].exists()
