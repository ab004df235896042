"""The demo recipe from data to report, on a few speakers of its corpus."""

import re
import shutil
from pathlib import Path

import pytest
from builders import ROOT
from corpus_builders import run_script

from espnet_mvq.indexes import FrameReader, IndexMetadata
from espnet_mvq.quantization import Quantizer

OPTIONS = [
    *("--nbpe", "40", "--num_codebooks", "4", "--max_frames", "2000"),
    *("--quantizer_iterations", "2", "--asr_args", "--max_epoch 4"),
]
# The fixture runs all stages of the recipe.
pytestmark = pytest.mark.timeout(1800)


def run_recipe(recipe, *options):
    """Run the copied recipe with this test's Python."""
    return run_script(recipe, "run.sh", *OPTIONS, *options)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Copy the recipe with a tenth of its corpus, and run it."""
    egs = tmp_path_factory.mktemp("checkout") / "egs"
    ignored = shutil.ignore_patterns("corpus", "exp", "dump", "data")
    for name in ("TEMPLATE", "demo"):
        shutil.copytree(ROOT / "egs" / name, egs / name, symlinks=True, ignore=ignored)
    scripts = Path("espnet_mvq") / "scripts"  # targets of the links in utils/
    shutil.copytree(ROOT / scripts, egs.parent / scripts)
    target = egs / "demo" / "asr1"
    for subset, num_speakers in (("train", 8), ("dev", 2), ("test", 2)):
        source = ROOT / "egs" / "demo" / "asr1" / "corpus" / subset
        for speaker in sorted(source.iterdir())[:num_speakers]:
            shutil.copytree(speaker, target / "corpus" / subset / speaker.name)
    done = run_recipe(target)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return target, done.stdout


def test_output_and_report(recipe):
    target, output = recipe
    report = (target / "exp" / "REPORT.md").read_text()
    for name in ("train_asr", "train_asr_mvq"):
        row = re.search(rf"^\|decode_.*/test\|{name}\|[\d.]+\|.*$", output, re.M)
        assert row and row.group() in report
    assert re.search(r"^\|train_asr\|[\d.]+\|\d+\|[\d:]+\|0\|$", report, re.M)
    data = "dump/raw/train/codebook_indexes.scp"
    assert f"|{data}|720,000|138,240,000|192|" in report
    assert "Report: exp/report.html" in output
    assert 'src="data:image' in (target / "exp" / "report.html").read_text()
    lines = re.findall(r"^epoch (\d)/4, [\d:]+ left, loss .*$", output, re.M)
    assert lines == list("12341234")
    assert "test" in (target / "exp" / "RESULTS.md").read_text()


def test_indexes_fit_corpus_and_quantizer(recipe):
    target, _ = recipe
    data = target / "dump" / "raw" / "train"
    metadata = IndexMetadata.beside(data / "codebook_indexes.scp")
    (path,) = target.glob("dump/mvq/*/quantizer.safetensors")
    assert metadata.quantizer_id == Quantizer.load(path).id
    reader = FrameReader(data / "codebook_indexes.scp")
    wav_scp = (data / "wav.scp").read_text().splitlines()
    assert list(reader) == [line.split()[0] for line in wav_scp]
    frames = [reader[utt_id] for utt_id in reader]
    assert sum(map(len, frames)) == metadata.num_frames
    assert len({tuple(row) for utterance in frames for row in utterance}) > 100
    # No embedding has reached the disk: all that is there is bytes a frame.
    (shards,) = target.glob("dump/mvq/*/train")
    written = sum(f.stat().st_size for f in shards.glob("codebook_indexes.*.ark"))
    assert written < 2 * 4 * metadata.num_frames + 200 * metadata.num_utterances


def test_student_learns_to_predict_the_indexes(recipe):
    target, _ = recipe
    log = (target / "exp" / "asr_train_asr_mvq_raw_en_bpe40" / "train.log").read_text()
    nats = [float(x) for x in re.findall(r"mvq_nats_below_chance=(-?[\d.]+)", log)]
    losses = [float(x) for x in re.findall(r"epoch results.*?loss_mvq=([\d.]+)", log)]
    assert losses[-1] < losses[0] and nats[-1] > nats[0]
    assert "espnet_mvq" in log.split("\n# Ended")[0]
    stock = target / "exp" / "asr_train_asr_raw_en_bpe40" / "train.log"
    assert "registered model 'mvq'" not in stock.read_text()


def test_stages_rerun_keep_finished_work(recipe):
    target, _ = recipe
    (shards,) = target.glob("dump/mvq/*/train")
    arks = sorted(shards.glob("*.ark"))
    before = [(ark.stat().st_mtime_ns, ark.read_bytes()) for ark in arks]
    done = run_recipe(target, "--stage", "6", "--stop_stage", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(a.stat().st_mtime_ns, a.read_bytes()) for a in arks] == before


@pytest.mark.parametrize(
    "options, named",
    [
        (["--stage", "6", "--stop_stage", "6", "--teacher", "s3prl/hubrt"], "hubrt"),
        (["--stage", "7", "--stop_stage", "7", "--layer", "9"], "quantizer"),
    ],
)
def test_bad_options_end_in_a_line_that_names_them(recipe, options, named):
    target, _ = recipe
    done = run_recipe(target, *options)
    assert done.returncode != 0
    assert named in done.stderr
    assert "Traceback" not in done.stderr
