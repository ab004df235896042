"""Tables of arms and seeds: configurations, the queue, the statistics, the report."""

import fcntl
import json
from pathlib import Path
from statistics import NormalDist

import faiss
import numpy as np
import pytest
import torch
import yaml
from builders import ROOT, index_metadata, write_indexes
from corpus_builders import (
    NOTING,
    PREFIX_TOKENS,
    load_script,
    noted_options,
    run_script,
    save_whisper,
    whisper_features,
    write_speech,
    write_table,
)

from espnet_mvq.indexes.reader import FrameReader
from espnet_mvq.quantization import Quantizer
from espnet_mvq.teachers.audio import read_audio

PYSCRIPTS = ROOT / "egs" / "TEMPLATE" / "asr1" / "pyscripts"
RECIPE = ROOT / "egs" / "mini_librispeech" / "asr1"
# Decodes what it is told to train; fails for arms whose name has "broken"
STAND_IN = """
config = options["--asr_config"] or options["--mvq_asr_config"]
name = pathlib.Path(config).stem
if "broken" in name and not pathlib.Path("repaired").exists():
    sys.exit("ERROR: no luck")
exp = pathlib.Path(options["--expdir"]) / f"asr_{name}_raw_en_bpe100"
exp.mkdir(parents=True, exist_ok=True)
if options["--stage"] == "11":
    for file in ("checkpoint.pth", "1epoch.pth", "train.log"):
        with open(exp / file, "a") as log:
            log.write(name)
    sys.exit()
test = exp / "decode_asr_debug_asr_model_valid.cer_ctc.ave/test_clean"
test.mkdir(parents=True, exist_ok=True)
(test / "text").write_text("u0 a\\n")
"""
ARMS = """
student: conf/train_asr_small.yaml
train_set: train_clean_5
tables: {main: All labels, few: Few labels}
losses: {mvq: {optim_conf: {lr: 0.2, weight_decay: 0.1}}}
layer: 2    # of the teacher
num_codebooks: 8
layers: {2: mvq, 3: broken}
indexes: {layer9: --layer 9, layer8: --layer 8}
arms:
-   {name: none, table: main, title: no KD, seeds: [0, 1]}
-   name: mvq
    table: main
    title: MVQ
    seeds: [0, 1]
    loss: mvq
    options: {optim_conf: {lr: 0.5}}
    against: none
-   {name: broken, table: few, title: few, seeds: [0], train_set: train_1h,
     loss: mvq, indexes: layer9}
"""
PRETRAINED = """
-   {name: early, table: few, title: few, seeds: [0], pretrained: masked}
-   {name: late, table: few, title: few, seeds: [0], pretrained: masked}
-   {name: half, table: few, title: few, seeds: [0], starts_from: early,
     options: {encoder_conf: {num_blocks: 2}}}
pretraining: ../ssl1/conf/pretrain_mvq.yaml
pretrainings:
    masked: {options: {max_epoch: 3}, indexes: layer8, target: embeddings}
"""


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads a script whose neighbours it may import."""
    monkeypatch.syspath_prepend(PYSCRIPTS)
    return lambda name: load_script(PYSCRIPTS / f"{name}.py")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(ARMS)
    return path


def test_each_arm_and_seed_has_a_configuration(load, table, tmp_path, monkeypatch):
    monkeypatch.chdir(RECIPE)
    options = ["--table", str(table), "--expdir", str(tmp_path / "exp")]
    load("table_jobs").main(options)
    jobs = (tmp_path / "exp" / "jobs").read_text().splitlines()
    # The first seeds of all arms come first.
    names = ["none_seed0", "mvq_seed0", "broken_seed0", "none_seed1", "mvq_seed1"]
    assert [job.split()[0] for job in jobs] == names
    assert jobs[2].split()[1] == "train_1h"
    indexes = (tmp_path / "exp" / "indexes").read_text()
    assert indexes == "layer9 --layer 9\n"
    configs = [yaml.safe_load(Path(job.split()[2]).read_text()) for job in jobs]
    student = yaml.safe_load(Path("conf/train_asr_small.yaml").read_text())
    assert configs[3] == {**student, "seed": 1}
    # Those of the loss in this table come before those of the arm.
    assert configs[2]["optim_conf"] == {"lr": 0.2, "weight_decay": 0.1}
    assert configs[4]["optim_conf"] == {"lr": 0.5, "weight_decay": 0.1}
    data = configs[4]["train_data_path_and_name_and_type"]
    assert data[0][0] == "dump/raw/train_clean_5/codebook_indexes.scp"
    data = configs[2]["train_data_path_and_name_and_type"]
    assert data[0][0] == "dump/layer9/train_clean_5/codebook_indexes.scp"
    load("table_jobs").main([*options, "--arms", "mvq"])
    assert len((tmp_path / "exp" / "jobs").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("loss: mvq\n", "lose: mvq\n", "arm mvq: got unknown key lose"),
        (
            "against: none",
            "against: nun",
            "arm mvq: got against 'nun', which is no arm",
        ),
        ("name: mvq", "name: none", "arm none: got a name that another arm has"),
        ("seeds: [0], ", "", "arm broken: got no seeds"),
        ("table: few", "table: fev", "arm broken: got table 'fev'"),
        (
            "against: none",
            "pretrained: nun",
            "arm mvq: got pretrained 'nun', which is not in pretrainings",
        ),
        (
            "indexes: layer9",
            "indexes: layer7",
            "arm broken: got indexes 'layer7', which is not in indexes",
        ),
        ("losses: {mvq", "losses: {l2", "losses: got 'l2', which no arm has"),
        ("3: broken", "3: braken", "layers: got 'braken', which is no arm"),
        ("loss: mvq\n", "loss: mwq\n", "conf/losses/mwq.yaml"),
    ],
)
def test_bad_tables_are_refused(
    load, table, tmp_path, monkeypatch, caplog, old, new, message
):
    monkeypatch.chdir(RECIPE)
    table.write_text(ARMS.replace(old, new))
    with pytest.raises(SystemExit) as ended:
        load("table_jobs").main(["--table", str(table), "--expdir", str(tmp_path)])
    assert ended.value.code == 1 and message in caplog.text


def test_shipped_table_has_valid_arms(load, monkeypatch, tmp_path):
    monkeypatch.chdir(RECIPE)
    load("table_jobs").main(["--expdir", str(tmp_path)])
    jobs = (tmp_path / "jobs").read_text().splitlines()
    assert len(jobs) > 20
    unlabelled = yaml.safe_load(
        Path(tmp_path / "conf/mvq_1h_all_seed0.yaml").read_text()
    )
    assert ["dump/raw/train_1h/unlabelled", "unlabelled", "mvq_list"] in unlabelled[
        "train_data_path_and_name_and_type"
    ]


def test_queue_resumes_and_goes_on_after_a_failure(copy_recipe, table):
    folder = copy_recipe("run_table.sh", "run.sh", STAND_IN)
    shared = ROOT / "egs" / "TEMPLATE" / "asr1" / "cmd.sh"
    (folder / "cmd.sh").symlink_to(shared)
    teacher = folder / "exp" / "table" / "teacher"
    teacher.mkdir(parents=True)
    (teacher / "text").write_text("u0 a\n")
    options = ["--stage", "3", "--stop_stage", "3", "--table", str(table), "--nj", "2"]

    def calls():
        """Return the options of the calls, by name of the job and stage."""
        calls = {}
        for call in noted_options(folder):
            config = call["--asr_config"] or call["--mvq_asr_config"]
            calls[Path(config).stem, call["--stage"]] = call
        return calls

    done = run_script(folder, "run_table.sh", *options)
    output = done.stdout + done.stderr
    assert done.returncode != 0 and "no luck" in output
    names = ["mvq_seed0", "mvq_seed1", "none_seed0", "none_seed1"]
    both = [(name, stage) for name in names for stage in ("11", "12")]
    assert sorted(calls()) == [("broken_seed0", "11"), *both]
    for name, train_set, stats in (
        ("broken_seed0", "train_1h", "exp/table/stats_train_1h"),
        ("mvq_seed1", "train_clean_5", "exp/table/stats"),
    ):
        call = calls()[name, "11"]
        assert (call["--train_set"], call["--asr_stats_dir"]) == (train_set, stats)
    (folder / "repaired").touch()
    (folder / "calls").unlink()
    next(folder.glob("exp/table/asr_mvq_seed1_*/*/test_clean/text")).unlink()
    done = run_script(folder, "run_table.sh", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    # A trained student is only decoded.
    both = [("broken_seed0", "11"), ("broken_seed0", "12")]
    assert sorted(calls()) == [*both, ("mvq_seed1", "12")]
    # A report does not change the jobs of a queue that may be running.
    jobs = (folder / "exp" / "table" / "jobs").read_text()
    report = ["--stage", "4", "--table", str(table), "--arms", "none"]
    run_script(folder, "run_table.sh", *report)
    assert (folder / "exp" / "table" / "jobs").read_text() == jobs
    # Options and teacher of what is there are kept; only one run has the queue.
    refused = {
        "got other options than those with which exp/table/asr_mvq_seed": options,
        "got exp/table of 'Teacher: whisper-base (win": [*options, "--teacher", "a/b"],
    }
    table.write_text(ARMS.replace("lr: 0.5", "lr: 0.6"))
    for message, wrong in refused.items():
        done = run_script(folder, "run_table.sh", *wrong)
        assert done.returncode != 0 and message in done.stdout + done.stderr
    with open(folder / "exp" / "table" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_script(folder, "run_table.sh", *options)
    assert "in which another run is at work" in done.stdout + done.stderr


def test_arms_wait_for_one_pretraining(copy_recipe, table):
    folder = copy_recipe("run_table.sh", "run.sh", STAND_IN)
    shared = ROOT / "egs" / "TEMPLATE" / "asr1" / "cmd.sh"
    (folder / "cmd.sh").symlink_to(shared)
    ssl = folder.parent / "ssl1"
    ssl.mkdir()
    (ssl / "conf").symlink_to(RECIPE.parent / "ssl1" / "conf")
    (ssl / "run.sh").write_text(NOTING + "import time\ntime.sleep(0.5)\n")
    (ssl / "run.sh").chmod(0o755)
    table.write_text(ARMS + PRETRAINED)
    teacher = folder / "exp" / "table" / "teacher"
    teacher.mkdir(parents=True)
    (teacher / "text").write_text("u0 a\n")
    options = ["--stage", "3", "--stop_stage", "3", "--table", str(table), "--nj", "2"]
    for arms in ("early late", "late"):
        done = run_script(folder, "run_table.sh", *options, "--arms", arms)
        assert done.returncode == 0, done.stdout + done.stderr
    (call,) = [call for call in noted_options(folder) if "--exp" in call]
    exp = folder / "exp" / "table"
    assert call["--exp"] == str(exp / "ssl_masked_seed0")
    assert (call["--datadir"], call["--target"]) == ("dump/layer8", "embeddings")
    assert yaml.safe_load(Path(call["--ssl_config"]).read_text())["max_epoch"] == 3
    trained = [call for call in noted_options(folder) if call["--stage"] == "11"]
    assert len(trained) == 2
    # Without a trained model of that name
    done = run_script(folder, "run_table.sh", *options, "--arms", "half")
    error = "asr_early_seed0_raw_en_bpe100: no such file"
    assert done.returncode != 0 and error in done.stdout + done.stderr
    job = (exp / "jobs").read_text().split()
    assert job[3:] == ["starts_from", "early_seed0"]
    encoder = ["exp/table/ssl_masked_seed0/latest.pth:encoder:encoder"]
    for call in trained:
        config = yaml.safe_load((folder / call["--asr_config"]).read_text())
        assert config["init_param"] == encoder


def test_bootstrap_of_known_systems(load):
    report = load("table_report")
    errors = np.random.default_rng(1).poisson(5.0, 400).astype(float)
    assert report.paired_bootstrap(errors, errors) == (0, 0, 1)
    low, high, not_better = report.paired_bootstrap(errors / 2, errors)
    assert (low, high, not_better) == (-50, -50, 0)
    low, high, _ = report.paired_bootstrap(2 * errors, errors)
    assert (low, high) == (100, 100)


def test_bootstrap_interval_is_that_of_the_normal_distribution(load):
    """For a baseline of constant errors, the change is a mean of utterances."""
    generator = np.random.default_rng(2)
    baseline = np.full(500, 10.0)
    errors = baseline + generator.normal(-0.1, 2.0, 500)
    low, high, not_better = load("table_report").paired_bootstrap(errors, baseline)
    change = 100 * (errors.mean() / 10 - 1)
    width = 1.96 * 100 * errors.std() / 10 / np.sqrt(500)
    assert low == pytest.approx(change - width, abs=0.1)
    assert high == pytest.approx(change + width, abs=0.1)
    share = 1 - NormalDist(change, width / 1.96).cdf(0)
    assert not_better == pytest.approx(share, abs=0.005)


def write_experiment(folder, cers, text, quantizer_error=None):
    folder.mkdir(parents=True)
    lines = []
    state = {"encoder.weight": torch.zeros(1000, 931), "mvq.head": torch.zeros(10**6)}
    torch.save(state, folder / "latest.pth")
    for epoch, cer in enumerate(cers, 1):
        lines.append(
            f"INFO: {epoch}epoch results: [train] loss=9.0, train_time=0.500, time=1 "
            f"minute, total_count={100 * epoch}, [valid] loss=8.0, cer_ctc={cer}, "
            "time=1 second, total_count=5\n"
        )
    (folder / "train.log").write_text("".join(lines))
    data = folder.parent / "data"
    data.mkdir(exist_ok=True)
    write_table(data / "text", {"a": "x", "b": "y", "c": "z"})
    write_table(data / "utt2num_samples", {"a": 36000, "b": 72000, "c": 10**9})
    (data / "unlabelled").write_text("c\n")
    paths = [[str(data / "text"), "text", "text"]]
    paths += [[str(data / "unlabelled"), "unlabelled", "mvq_list"]]
    if quantizer_error is not None:
        arks = folder / "arks"
        arks.mkdir()
        (arks / "1.ark").write_text("indexes")
        write_table(arks / "indexes.scp", {"a": f"{arks / '1.ark'}:0"})
        paths += [[str(arks / "indexes.scp"), "codebook_indexes", "mvq_ark"]]
        quality = {"format": "espnet_mvq.quality_report", "version": 1}
        quality["quality"] = {"relative_error": quantizer_error}
        (folder / "quantizer_report.json").write_text(json.dumps(quality))
    config = {"train_data_path_and_name_and_type": paths, "frontend_conf": {"fs": 1000}}
    config["optim_conf"] = {"lr": 0.002}
    (folder / "commit").write_text("abc123\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if text:
        (folder / "decode").mkdir()
        (folder / "decode" / "text").write_text(text)


def test_report(load, table, tmp_path):
    exp = tmp_path / "exp"
    (tmp_path / "ref").write_text("u0 ab cd\nu1 ef\n")
    # CER of 5 + 2 characters: 2 of 7, 1 of 7 and 0
    write_experiment(exp / "asr_none_seed0_x", [0.9, 0.5], "u0 ab ce\nu1 eg\n")
    write_experiment(exp / "asr_none_seed1_x", [0.7], "u0 ab cd\nu1 eg\n")
    write_experiment(
        exp / "asr_mvq_seed0_x", [0.6, 0.3, 0.4], "u0 ab cd\nu1 ef\n", 0.25
    )
    write_experiment(exp / "asr_mvq_seed1_x", [0.8], None)
    (exp / "teacher").mkdir()
    (exp / "teacher" / "ref").write_text("u0 a b c d\n")
    (exp / "teacher" / "text").write_text("u0 a b c x\n")
    (exp / "advice").mkdir()
    scores = [{"layer": 2, "error_rate": 0.25}, {"layer": 3, "error_rate": None}]
    advice = {"scores": scores, "verdict": {"sentences": ["Use layer 3."]}}
    (exp / "advice" / "advice.json").write_text(json.dumps(advice))
    options = ["--table", str(table), "--expdir", str(exp), "--suffix", "x"]
    options += ["--inference", "decode", "--ref", str(tmp_path / "ref")]
    figure = tmp_path / "curves.png"
    options += ["--out", str(tmp_path / "page.md"), "--figure", str(figure)]
    load("table_report").main([*options, "--note", "Teacher: big."])
    page = (tmp_path / "page.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line[:1] == "|"]
    none, mvq = rows[2:4]
    assert rows[6:] == [["2", "25.0", "`mvq`", "30.0", "0.0"], ["3"]]
    assert "`espnet_mvq.bin.advise`: Use layer 3." in page
    assert none[:5] == ["no KD", "0.03", "0.002", "2 of 2", "60.0 ± 14.1"]
    assert none[5:8] == ["50.0 ± 23.6", "21.4 ± 10.1", ""]
    # All columns are of the decoded seeds, the change is of those of both arms.
    assert mvq[:7] == ["MVQ", "0.03", "0.002", "1 of 2", "30.0", "0.0", "0.0"]
    assert mvq[7].startswith("-100.0 [-100.0, -100.0]")
    assert mvq[7].endswith(", none, 1 seed")
    run = ["2 ± 1", "`asr_none_seed0_x`", "abc123"]
    assert none[8:] == ["0.93 M", "0.0", "", "0.500", *run]
    assert mvq[10] == "0.250"
    assert "greedy: WER 25.0 %, CER 14.3 %" in page
    assert "Not begun: broken." in page and "Teacher: big." in page
    assert "## Few labels" not in page
    assert figure.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("kind", ["pq", "rq"])
def test_faiss_quantizer_is_that_of_faiss(kind):
    script = load_script("egs/mini_librispeech/asr1/local/faiss_quantizer.py")
    frames = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    quantizer = Quantizer(torch.from_numpy(script.train(frames, kind, 2)))
    if kind == "pq":
        theirs = faiss.ProductQuantizer(8, 2, 8)
    else:
        theirs = faiss.ResidualQuantizer(8, 2, 8)
        theirs.max_beam_size = script.BEAM_SIZE
    theirs.train(frames)
    codes = theirs.compute_codes(frames)
    indexes = torch.from_numpy(codes)
    decoded = theirs.decode(codes)
    np.testing.assert_allclose(quantizer.decode(indexes), decoded, atol=1e-5)
    found = quantizer.encode(torch.from_numpy(frames))
    if kind == "pq":
        assert (found == indexes).float().mean() > 0.999  # ties
    errors = (np.square(y - frames).sum() for y in (quantizer.decode(found), decoded))
    assert next(errors) <= 1.0001 * next(errors)


def test_shuffled_indexes_are_those_of_other_utterances(tmp_path):
    script = load_script("egs/mini_librispeech/asr1/local/shuffle_indexes.py")
    arrays = {f"u{n}": np.full((3 + n % 3, 2), n, np.uint8) for n in range(4)}
    write_indexes(tmp_path, arrays)
    write_table(tmp_path / "wav.scp", dict.fromkeys(arrays, "audio"))
    lengths = {utt_id: 320 * len(array) for utt_id, array in arrays.items()}
    write_table(tmp_path / "utt2num_samples", lengths)
    options = ["--data_dir", str(tmp_path), "--outdir", str(tmp_path / "shuffled")]
    script.main(options)
    original = FrameReader(tmp_path / "codebook_indexes.scp")
    shuffled = FrameReader(tmp_path / "codebook_indexes_shuffled.scp")
    assert list(shuffled) == list(original) == list(arrays)
    for utt_id, array in arrays.items():
        assert shuffled[utt_id].shape == array.shape
        assert shuffled[utt_id][0, 0] != array[0, 0]
    assert shuffled.metadata.quantizer_id == index_metadata().quantizer_id


def test_teacher_writes_normalised_texts(tmp_path):
    from transformers import WhisperForConditionalGeneration
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    folder, tokenizer = save_whisper(tmp_path / "whisper")
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    # It writes letters and "he": the logits of all other tokens are 0.
    words = tokenizer.convert_tokens_to_ids([*"abcdefgh", "Ġhe"])
    weight = model.model.decoder.embed_tokens.weight.data
    kept = weight[words].clone()
    weight.zero_()
    weight[words] = kept
    model.save_pretrained(folder)
    data = write_speech(tmp_path / "data", {"u0": 12000, "u1": 24000})
    write_table(data / "text", {"u0": "IT'S HERE", "u1": "TWENTY MEN"})
    script = load_script("egs/mini_librispeech/asr1/local/teacher_text.py")
    options = ["--teacher", f"transformers/{folder}", "--data_dir", str(data)]
    options += ["--outdir", str(tmp_path / "out")]
    script.main(options)
    ref = (tmp_path / "out" / "ref").read_text()
    assert ref == "u0 it is here\nu1 20 men\n"
    prefix = tokenizer.convert_tokens_to_ids([PREFIX_TOKENS[0], PREFIX_TOKENS[-1]])

    def greedy(waveform):
        """Choose the most likely token again and again, to the end of the positions."""
        features, tokens = whisper_features(waveform), list(prefix)
        while len(tokens) < 24 and tokens[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                output = model(features, decoder_input_ids=torch.tensor([tokens]))
            tokens.append(int(output.logits[0, -1].argmax()))
        return tokenizer.decode(tokens, skip_special_tokens=True)

    waveforms = [read_audio(f"u{n}", str(data / f"{n}.wav"), 16000) for n in (0, 1)]
    texts = [greedy(waveforms[0])]
    # The windows of the model have 1 s.
    texts.append(" ".join(map(greedy, waveforms[1].tensor_split(2))))
    normalize = EnglishTextNormalizer({})
    expected = [f"u{n} {normalize(text)}\n" for n, text in enumerate(texts)]
    assert (tmp_path / "out" / "text").read_text(encoding="utf-8") == "".join(expected)
    assert all(len(line.split()) > 1 for line in expected)
    with pytest.raises(SystemExit) as ended:
        script.main([*options, "--language", "en"])
    assert ended.value.code == 1
