"""The report of a baseline and its student as one page."""

import re

import numpy as np
import pytest
import torch
from builders import index_metadata
from corpus_builders import end_with_error, write_table
from experiment_builders import write_experiment, write_indexes, write_result

from espnet_mvq.bin import inspect_quantizer
from espnet_mvq.bin.report import main
from espnet_mvq.quantization import QuantizerTrainer

REFS = {"u1": "the cat sat", "u2": "a dog", "u3": "on the mat"}
BASELINE = {"u1": "the <unk> hat down", "u2": "a dog", "u3": "on the mat"}
STUDENT = {"u1": "the cat sat", "u2": "a", "u3": "on the mat"}
MVQ = {"loss_mvq": 5.5, "acc_mvq": 0.25, "mvq_nats_below_chance": 1.5}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Return the folder of a recipe with a baseline and a student, both decoded."""
    recipe = tmp_path_factory.mktemp("asr1")
    (recipe / "dump" / "raw" / "test").mkdir(parents=True)
    write_table(recipe / "dump" / "raw" / "test" / "text", REFS)
    frames = torch.randn(240, 6, generator=torch.Generator().manual_seed(0))
    trainer = QuantizerTrainer(6, 2, codebook_size=4, num_iterations=2)
    quantizer = trainer.fit(frames, frames, {"teacher": "own"})
    arrays = {"u1": np.zeros((100, 2), np.uint8)}
    scp = write_indexes(recipe, quantizer, index_metadata(), arrays)
    np.save(recipe / "feats.npy", frames.numpy())
    path = recipe / "dump" / "mvq" / "own" / "quantizer.safetensors"
    inspect_quantizer.main([str(path), "--feats", str(recipe / "feats.npy")])
    write_experiment(
        recipe / "exp" / "asr_base_raw",
        [({"loss": 9.0}, {"loss": 8.0}), ({"loss": 7.0}, {"loss": 6.5})],
        texts=BASELINE,
        model="espnet",
        optim_conf={"lr": 0.002, "eps": 1e-6},
    )
    write_experiment(
        recipe / "exp" / "asr_kd_raw",
        [
            ({"loss": 14.0, **MVQ}, {"loss": 9.0, "acc_mvq_cb1": 0.1}),
            (
                {"loss": 12.0, **MVQ},
                {"loss": 6.25, "acc_mvq_cb1": 0.5, "acc_mvq_cb2": 0.125},
            ),
        ],
        data=[[scp, "codebook_indexes", "mvq_ark"]],
        texts=STUDENT,
        model="mvq",
        optim_conf={"lr": 0.002, "eps": 1e-5},
    )
    return recipe


@pytest.fixture
def run(recipe, monkeypatch, tmp_path):
    """Return a function that writes a report in the recipe and returns its texts."""

    def run(*options):
        monkeypatch.chdir(recipe)
        page, tables = tmp_path / "report.html", tmp_path / "REPORT.md"
        main([*options, "--output", str(page), "--markdown", str(tables)])
        return page.read_text(), tables.read_text()

    return run


def test_page_and_tables(run, capsys):
    base, kd = "exp/asr_base_raw", "exp/asr_kd_raw"
    page, tables = run(base, kd, "--baseline", base)
    for row in (
        # 3 and 1 of 8 words
        "|decode_asr/test|base|37.5|–|",
        "|decode_asr/test|kd|12.5|-66.7 %|",
        "|base|2|6.50 (2)|–|–|–|",
        "|kd|2|6.25 (2)|5.500|1.500|25.0|",
        "|kd|50.0|12.5|",
        "|dimension|6|",
        "|good|The indexes lose ",
        "|frames|100|",
        "|kd|0.300|54|00:16|",
        # 50 frames a second, 6 floats of 4 bytes against 2 bytes
        "|dump/raw/train/codebook_indexes.scp|360,000|4,320,000|12|",
        "|model|espnet|mvq|",
        "|optim_conf.eps|1.0e-06|1.0e-05|",
        "|train_data_path_and_name_and_type|–|dump/raw/train/codebook_indexes.scp, ",
    ):
        assert row in tables
    assert "optim_conf.lr" not in tables and "output_dir" not in tables
    assert tables.count("\n## ") == 8 and "\n\n\n" not in tables
    assert "|decode_asr/test|kd|12.5|" in capsys.readouterr().out
    assert page.count("<h2") == 9
    # 4 figures of the training, 1 of the codebooks
    assert page.count('<img src="data:image/svg+xml;base64,') == 5
    assert "&lt;unk&gt;" in page and "<unk>" not in page
    assert re.search(r"u1: 3 and 0 word errors.*u2: 0 and 1 word errors", page, re.S)
    assert '<span class="D">∗∗∗</span>' in page
    assert not re.search(r"https?://|@import|<script|<link", page)


def test_parts_that_are_missing_have_a_sentence(run, recipe):
    write_experiment(recipe / "exp" / "new", [], model="espnet")
    page, tables = run("exp/new")
    for sentence in (
        "Not decoded and scored yet: new.",
        "No baseline was given",
        "new: no epoch is finished.",
        "It is measured on the validation set.",
        "No arm has stored data of a teacher.",
        "There is one arm only.",
        "compared with those of a baseline",
    ):
        assert sentence in page
    scp = "dump/raw/none/codebook_indexes.scp"
    write_experiment(
        recipe / "exp" / "gone",
        [({"loss": 9.0}, {"loss": 8.0})],
        data=[[scp, "codebook_indexes", "mvq_ark"]],
        accum_grad=3,
    )
    page, tables = run("exp/gone", "--baseline", "exp/new")
    assert "No utterance of a set that is decoded with the baseline" in page
    assert tables.count("none/codebook_indexes") == 3
    assert "|gone|0.300|9|00:02|–|" in tables


def test_hypotheses_of_another_set_end_no_report(run, recipe):
    exp = recipe / "exp" / "changed"
    write_experiment(exp, [], texts={"u9": "on the mat"})
    for metric in ("wer", "cer"):
        write_result(exp, f"test/score_{metric}", error_rate=1.0)
    page, tables = run("exp/changed", "--baseline", "exp/asr_base_raw")
    assert "test|changed|1.0|" in tables
    assert "1 hypotheses have no reference: u9" in page


def test_log_without_times(run, recipe):
    """As that of ESPnet's trainer for DeepSpeed."""
    exp = write_experiment(recipe / "exp" / "deep", [({"loss": 9.0}, {"loss": 8.0})])
    log = (exp / "train.log").read_text()
    (exp / "train.log").write_text(log.replace("train_time=0.3, ", ""))
    _, tables = run("exp/deep")
    assert "|deep|–|–|–|0|" in tables


def test_other_folders_are_named(run, recipe, caplog):
    for name in ("dump", "exp/missing"):
        error = end_with_error(caplog, run, name)
        assert error.startswith(f"{name}: no config.yaml in it, expected")
    write_experiment(recipe / "exp" / "no_log", [])
    (recipe / "exp" / "no_log" / "train.log").unlink()
    assert "no_log: no train.log in it" in end_with_error(caplog, run, "exp/no_log")


def test_names_of_arms(run, recipe):
    """The words at the end of all names are left out, unless names were the same."""
    other = write_experiment(recipe / "other" / "asr_kd_raw", [])
    write_result(other, "dev/score_wer", error_rate=1)
    page, _ = run("exp/asr_base_raw", "other/asr_kd_raw")
    assert "<h1>Report: base, kd</h1>" in page
    page, _ = run("exp/asr_kd_raw", "other/asr_kd_raw", "exp/asr_kd_raw/")
    assert "<h1>Report: exp/asr_kd_raw, other/asr_kd_raw</h1>" in page


def test_each_target_has_its_curves(run, recipe):
    stats = {"acc_mvq": 0.25, "acc_mvq_layer9": 0.5, "acc_mvq_own_name": 0.75}
    write_experiment(recipe / "exp" / "targets", [(stats, {"loss": 9.0})])
    page, tables = run("exp/targets")
    title = "accuracy of the indexes, %"
    for name in (title, f"{title} layer9", f"{title} own name"):
        assert f"|{name}, last epoch" in tables and f'alt="{name} of targets"' in page
    assert "|targets|1|9.00 (1)|25.0|50.0|75.0|" in tables
