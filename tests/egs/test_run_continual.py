"""run_continual.sh: which steps it has asr_mvq.sh do, in which order."""

import pytest
import yaml
from builders import ROOT
from corpus_builders import noted_options, run_script

RECIPE = ROOT / "egs" / "mini_librispeech" / "asr1"
# Leaves scores as decoding and scoring do
LEAVE_SCORES = """
config = options["--asr_config"] or options["--mvq_asr_config"]
exp = pathlib.Path(options["--expdir"]) / (
    f"asr_{pathlib.Path(config).stem}_raw_en_bpe100_{options['--exp_tag']}"
)
if options["--stop_stage"] == "13":
    for number, name in enumerate(options["--test_sets"].split()):
        for metric in ("wer", "cer"):
            folder = exp / "decode" / name / f"score_{metric}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "result.json").write_text('{"error_rate": %d}' % number)
"""


@pytest.fixture
def recipe(copy_recipe):
    """Copy the recipe, with a stand-in for asr_mvq.sh."""
    return copy_recipe("run_continual.sh", "asr_mvq.sh", LEAVE_SCORES)


@pytest.fixture
def run(recipe):
    """Return a function that runs it."""
    return lambda *options: run_script(recipe, "run_continual.sh", *options)


def test_steps_and_their_order(recipe, run):
    done = run("--stage", "3", "--methods", "finetune decor_utterance")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = noted_options(recipe)
    domains = [call["--exp_tag"] for call in calls]
    two = ["telephone", "fast"]
    assert domains == ["clean", *two, "clean", *two, *two]
    assert [call["--skip_stages"] for call in calls[:3]] == ["", "5", "5"]
    first, tuned, again, decor, last = calls[3:]
    assert (first["--stage"], first["--test_sets"]) == ("6", "clean_test")
    assert "--init_param" not in first["--asr_args"]
    # The first model is an MVQ student of a big teacher.
    assert first["--teacher"] == "transformers/openai/whisper-tiny.en"
    student = yaml.safe_load((recipe / first["--mvq_asr_config"]).read_text())
    (data,) = student["train_data_path_and_name_and_type"]
    assert data[0] == "dump/continual/raw/clean_train/codebook_indexes.scp"
    # Each step starts from the one before, on the new domain alone, and is tested on
    # all domains seen.
    for call, previous in (
        (tuned, "train_asr_debug_mvq_raw_en_bpe100_clean"),
        (again, "train_asr_debug_raw_en_bpe100_telephone"),
        (decor, "train_asr_debug_mvq_raw_en_bpe100_clean"),
        (last, "train_asr_debug_decor_utterance_raw_en_bpe100_telephone"),
    ):
        path = f"exp/continual/asr_{previous}/valid.loss.ave.pth:::mvq."
        assert f"--init_param {path}" in call["--asr_args"]
        assert call["--train_set"] == f"{call['--exp_tag']}_train"
        assert call["--asr_stats_dir"] == f"exp/continual/stats_{call['--exp_tag']}"
    assert tuned["--test_sets"] == "clean_test telephone_test"
    assert last["--test_sets"] == "clean_test telephone_test fast_test"
    # The present model is the teacher.
    assert tuned["--mvq_asr_config"] == "" and "--teacher" not in tuned
    assert decor["--asr_config"] == ""
    assert decor["--teacher"].endswith("asr_train_asr_debug_mvq_raw_en_bpe100_clean")
    assert last["--teacher"].endswith("_decor_utterance_raw_en_bpe100_telephone")
    assert "--level utterance --num_codebooks 1" in last["--mvq_args"]
    assert "--index_name decor_utterance --mvq_dir" in last["--mvq_args"]
    student = yaml.safe_load((recipe / last["--mvq_asr_config"]).read_text())
    assert student.pop("model") == "mvq" and student.pop("allow_variable_data_keys")
    (data,) = student.pop("train_data_path_and_name_and_type")
    scp = "dump/continual/raw/fast_train/decor_utterance.scp"
    assert data == [scp, "codebook_indexes_utterance", "mvq_ark"]
    assert student["model_conf"].pop("mvq_conf")["layer"] == -1
    baseline = RECIPE / "conf" / "train_asr_debug.yaml"
    assert student == yaml.safe_load(baseline.read_text())
    table = (recipe / "exp" / "continual" / "CONTINUAL.md").read_text()
    assert "|decor_utterance|fast|0.0|1.0|2.0|" in table and table in done.stdout
    # Steps that are done are not done again.
    assert run("--stage", "5").returncode == 0
    tags = [call["--mvq_asr_config"] for call in noted_options(recipe)[len(calls) :]]
    assert len(tags) == 4 and not any("utterance" in tag for tag in tags)


def test_first_model_may_do_without_a_teacher(recipe, run):
    options = ("--methods", "finetune", "--first_teacher", "")
    done = run("--stage", "4", "--stop_stage", "5", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    first, tuned, _ = noted_options(recipe)
    assert first["--asr_config"] == "conf/train_asr_debug.yaml"
    assert first["--mvq_asr_config"] == "" and "--teacher" not in first
    assert "/asr_train_asr_debug_raw_en_bpe100_clean/" in tuned["--asr_args"]


def test_wrong_method_ends_in_a_line_that_names_it(recipe, run):
    done = run("--methods", "finetune replay")
    assert done.returncode == 2 and "got 'replay'" in done.stderr
    assert not noted_options(recipe)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--domains", "clean fast"], "expected one share per domain"),
        (["--domains", "clean fast clean"], "expected different domains"),
        (["--stage", "7"], "--stop_stage: got '6', expected no stage before"),
        (["--nj", "x"], "--nj: got 'x', expected a whole number from 1 up"),
        (["--layer", "last"], "--layer: got 'last', expected a whole number from -1"),
    ],
)
def test_wrong_options_are_refused(recipe, run, options, message):
    done = run(*options)
    assert done.returncode == 2 and message in done.stderr
    assert not noted_options(recipe)


def test_help_lists_the_stages(run):
    done = run("--help")
    assert done.returncode == 0 and "5 methods" in done.stdout
