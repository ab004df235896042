"""run_losses.sh: one configuration for each loss, and all students in one run."""

from pathlib import Path

import pytest
import yaml
from corpus_builders import noted_options, run_script, write_table


@pytest.fixture
def run(copy_recipe):
    """Return a function that runs it with a stand-in for run.sh."""
    folder = copy_recipe("run_losses.sh", "run.sh")
    data = folder / "dump" / "raw" / "train_clean_5"
    data.mkdir(parents=True)
    write_table(data / "wav.scp", {f"u{n}": f"u{n}.wav" for n in range(9)})

    def run(*options):
        done = run_script(folder, "run_losses.sh", *options)
        return folder, done, noted_options(folder)

    return run


def test_students_of_all_losses_are_trained_in_one_run(run):
    options = ["--stage", "4", "--stop_stage", "4", "--teacher", "s3prl/hubert"]
    options += ["--teacher_conf", "window_s=0 revision=main"]
    folder, done, (call,) = run(*options, "--layer", "6", "--k_updates", "77")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (call["--stage"], call["--stop_stage"]) == ("11", "11")
    assert call["--asr_config"] == "conf/train_asr_debug.yaml"
    configs = {}
    for path in call["--mvq_asr_config"].split():
        name = Path(path).stem.removeprefix("train_asr_debug_")
        configs[name] = yaml.safe_load((folder / path).read_text())
    names = ["l2_stored", "l2_teacher", "l2_decoded", "mvq", "mvq_adakd"]
    names += ["mvq_two_layers", "text_quarter", "mvq_text_quarter"]
    assert list(configs) == names
    base = yaml.safe_load((folder / call["--asr_config"]).read_text())
    for config in configs.values():
        assert all(config[name] == base[name] for name in base if name != "model_conf")
    data = folder / "dump/raw/train_clean_5"
    no_text = (data / "no_text").read_text().split()
    assert no_text == ["u1", "u2", "u3", "u5", "u6", "u7"]
    assert not (data / "unlabelled").exists()  # would leave teacher_loss a quarter
    for name in ("text_quarter", "mvq_text_quarter"):
        lists = configs[name]["train_data_path_and_name_and_type"]
        assert ["dump/raw/train_clean_5/no_text", "unlabelled", "mvq_list"] in lists
    options = {n: c["model_conf"]["mvq_conf"] for n, c in configs.items()}
    assert options["l2_teacher"]["teacher"] == "s3prl/hubert"
    assert options["l2_teacher"]["teacher_layer"] == 6
    assert options["l2_teacher"]["teacher_conf"] == {
        "window_s": 0,
        "revision": "main",
    }
    quantizer = options["l2_decoded"]["quantizer"]
    folder = "hubert_layer6_window_s=0_revision=main_cb8"
    assert quantizer == f"dump/mvq/{folder}/quantizer.safetensors"
    assert options["mvq_adakd"]["weighting"]["k_updates"] == 77


def test_unknown_loss(run):
    _, done, calls = run("--stage", "4", "--stop_stage", "4", "--losses", "mvq l3")
    assert done.returncode != 0 and not calls
    assert "conf/losses/l3.yaml" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stage", "x"], "--stage: got 'x', expected a whole number from 1 up"),
        (["--nj", "0"], "--nj: got '0', expected a whole number from 1 up"),
        (["--k_updates", "1e3"], "--k_updates: got '1e3'"),
    ],
)
def test_wrong_options_end_in_one_line(run, options, message):
    _, done, calls = run(*options)
    assert done.returncode == 2 and message in done.stderr and not calls
    assert done.stderr.count("\n") == 1
