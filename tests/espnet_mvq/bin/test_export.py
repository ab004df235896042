"""The command that makes a plain ESPnet experiment of one trained with the plugin."""

import difflib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders import write_indexes
from corpus_builders import write_speech, write_table

from espnet_mvq.bin.export import main
from espnet_mvq.plugin import export
from espnet_mvq.plugin.export_folder import NOTE_NAME

EXP = "exp/asr_mvq"
CONFIG = """
frontend_conf: {n_fft: 128, hop_length: 160, n_mels: 8}
encoder: conformer
encoder_conf: {output_size: 8, attention_heads: 2, linear_units: 8, num_blocks: 2,
               input_layer: conv2d2, macaron_style: true, use_cnn_module: true}
decoder: transformer
decoder_conf: {attention_heads: 2, linear_units: 8, num_blocks: 1}
model_conf: {ctc_weight: 0.5}
optim_conf: {lr: 0.01}
best_model_criterion: [[valid, loss, min]]
keep_nbest_models: 2
"""
MVQ_CONFIG = """
model: mvq
model_conf: {ctc_weight: 0.5, mvq_conf: {layer: 1}}
allow_variable_data_keys: true
train_data_path_and_name_and_type:
-   [data/codebook_indexes.scp, codebook_indexes, mvq_ark]
"""
UTTERANCES = {f"u{n}": "abab"[n:] for n in range(4)}
TRAINING = "--max_epoch 3 --batch_type unsorted --batch_size 2 --num_workers 0".split()
TRAINING += "--num_att_plot 0 --use_matplotlib false --use_tensorboard false".split()
TRAINING += [
    *("--token_list", "data/tokens.txt", "--token_type", "char"),
    *("--normalize", "global_mvn"),
    *("--normalize_conf", "stats_file=exp/stats/feats_stats.npz"),
]
for part in ("train", "valid"):
    TRAINING += [f"--{part}_shape_file", "data/speech_shape"]
    for entry in ("data/wav.scp,speech,sound", "data/text,text,text"):
        TRAINING += [f"--{part}_data_path_and_name_and_type", entry]
# Use of the export without espnet_mvq
WITHOUT_PLUGIN = """
import json, sys
sys.modules["espnet_mvq"] = None
sys.path.insert(0, sys.argv[1])
import decoding
from espnet2.bin import pack
from espnet2.tasks.asr import ASRTask

print("RESULT", json.dumps(decoding.decode("exp/asr_mvq_exported")))
folder = "exp/asr_mvq_exported/"
pack.main(["asr", "--asr_train_config", folder + "config.yaml",
    "--asr_model_file", folder + "valid.loss.ave.pth",
    "--option", folder + "RESULTS.md", "--option", folder + "images",
    "--outpath", folder + "packed.zip"])
ASRTask.main(cmd=["--config", "conf/train.yaml", *json.loads(sys.argv[2]),
    "--init_param", folder + "valid.loss.best.pth", "--max_epoch", "1",
    "--output_dir", "exp/fine_tuned"])
"""
DECODING = """
import soundfile
from espnet2.bin.asr_inference import Speech2Text


def decode(folder):
    results = []
    for name in ("valid.loss.ave.pth", "valid.loss.best.pth"):
        speech2text = Speech2Text(
            folder + "/config.yaml", folder + "/" + name,
            beam_size=3, nbest=2, minlenratio=0.2, maxlenratio=0.5,
        )
        for number in range(2):
            speech, _ = soundfile.read(f"data/{number}.wav")
            for text, tokens, ids, hypothesis in speech2text(speech):
                results.append([text, tokens, ids, float(hypothesis.score)])
    return results
"""


def write_data(folder):
    """Write noise of four utterances with texts, codebook indexes and statistics."""
    write_speech(folder, dict.fromkeys(UTTERANCES, 9600))
    write_table(folder / "text", UTTERANCES)
    write_table(folder / "speech_shape", dict.fromkeys(UTTERANCES, 9600))
    generator = np.random.default_rng(0)
    write_indexes(folder, {u: generator.integers(0, 4, (29, 2)) for u in UTTERANCES})
    (folder / "tokens.txt").write_text("<blank>\n<unk>\na\nb\n<sos/eos>\n")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Train three epochs with the plugin, through ESPnet, in a folder of its own."""
    from espnet2.tasks.asr import ASRTask

    import espnet_mvq

    espnet_mvq.register()
    folder = tmp_path_factory.mktemp("recipe")
    for name in ("conf", "exp/stats"):
        (folder / name).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data(Path("data"))
        stats = {"sum": np.zeros(8), "sum_square": np.ones(8)}
        np.savez("exp/stats/feats_stats.npz", count=1, **stats)
        Path("conf/train.yaml").write_text(CONFIG)
        config = yaml.safe_load(CONFIG) | yaml.safe_load(MVQ_CONFIG)
        Path("conf/train_mvq.yaml").write_text(yaml.safe_dump(config))
        options = ["--config", "conf/train_mvq.yaml", "--output_dir", EXP]
        ASRTask.main(cmd=[*options, *TRAINING])
        Path(EXP, "RESULTS.md").write_text("# RESULTS\n")
        for name in ("images", "tensorboard"):
            Path(EXP, name).mkdir(exist_ok=True)
            Path(EXP, name, "loss.png").write_text("plot")
    return folder


@pytest.fixture(scope="module")
def exported(recipe):
    """Export with default options; return the folder and the lines of the log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel("INFO")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(recipe)
            main(["--asr_exp", f"{EXP}/"])
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return recipe / f"{EXP}_exported", lines


@pytest.fixture
def quick(recipe, tmp_path, monkeypatch):
    """Go to a copy of the recipe; return the command, proving in this process."""
    shutil.copytree(recipe, tmp_path / "recipe", symlinks=True)
    shutil.rmtree(tmp_path / "recipe" / f"{EXP}_exported", ignore_errors=True)
    monkeypatch.chdir(tmp_path / "recipe")
    monkeypatch.setattr(export, "_encode_noise_without_plugin", export.encode_noise)
    return lambda *options: main(["--asr_exp", EXP, *options])


def content_of(folder):
    """Return all below a folder: bytes of files, targets of links."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_config_differs_only_by_the_plugin(exported, recipe):
    texts = [
        (folder / "config.yaml").read_text().splitlines()
        for folder in (recipe / EXP, exported[0])
    ]
    changes = [line for line in difflib.ndiff(*texts) if line[:1] in "+-"]
    mvq_conf = [line for line in changes if line.startswith("-         ")]
    rest = [line for line in changes if line not in mvq_conf]
    assert rest == [
        "- output_dir: exp/asr_mvq",
        "+ output_dir: exp/asr_mvq_exported",
        "- -   - data/codebook_indexes.scp",
        "-     - codebook_indexes",
        "-     - mvq_ark",
        "- allow_variable_data_keys: true",
        "+ allow_variable_data_keys: false",
        "- model: mvq",
        "+ model: espnet",
        "-     mvq_conf:",
    ]
    assert "-         quantizer_id: 0123456789abcdef" in mvq_conf


def test_files_of_the_export(exported, recipe):
    folder, _ = exported
    names = {path.name for path in folder.iterdir()} - {"packed.zip"}
    weights = {path.name for path in (recipe / EXP).glob("*.pth")} - {"checkpoint.pth"}
    assert {"valid.loss.ave_2best.pth", "latest.pth", "3epoch.pth"} <= weights
    assert names == weights | {"config.yaml", "images", "RESULTS.md", NOTE_NAME}
    assert not list((folder / "images").iterdir())
    for name in weights:
        ours, original = folder / name, recipe / EXP / name
        assert ours.is_symlink() == original.is_symlink()
        if ours.is_symlink():
            assert os.readlink(ours) == os.readlink(original)
    note = json.loads((folder / NOTE_NAME).read_text())
    assert note["asr_exp"] == EXP and set(note["files"]) == names - {"images"}


def test_weights_are_those_of_the_original_without_the_plugin(exported, recipe):
    for path in exported[0].glob("*.pth"):
        state = torch.load(path, weights_only=True)
        original = torch.load(recipe / EXP / path.name, weights_only=True)
        assert list(state) == [k for k in original if not k.startswith("mvq.")]
        assert len(state) < len(original)
        assert all(torch.equal(value, original[name]) for name, value in state.items())


def test_log_names_the_verified_checkpoints(exported):
    folder, lines = exported
    for path in folder.glob("*.pth"):
        line = next(line for line in lines if line.startswith(f"{path.name}: "))
        if path.is_symlink():
            assert f"link to {os.readlink(path)}" in line
        else:
            assert "without espnet_mvq loads them strictly" in line
            assert line.endswith("are equal bit for bit")
    number = len(list(folder.glob("*.pth")))
    assert lines[-1] == f"exp/asr_mvq_exported: {number} checkpoints for plain ESPnet"


def test_stock_espnet_decodes_packs_and_fine_tunes(exported, recipe, tmp_path):
    (tmp_path / "decoding.py").write_text(DECODING)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PLUGIN, str(tmp_path), json.dumps(TRAINING)],
        cwd=recipe,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT"))
    decoding = {}
    exec(DECODING, decoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(recipe)
        expected = decoding["decode"](EXP)
    actual = json.loads(line[len("RESULT") :])
    # Scores are sums that depend on the number of threads
    assert [scores.pop() for scores in actual] == pytest.approx(
        [scores.pop() for scores in expected], abs=1e-4
    )
    assert actual == expected and len(actual) == 8 and all(text for text, *_ in actual)
    assert (exported[0] / "packed.zip").is_file()
    assert (recipe / "exp/fine_tuned/1epoch.pth").is_file()


@pytest.mark.parametrize(
    "names, links",
    [
        (["valid.loss.ave.pth"], []),
        (["valid.loss.ave.pth", "valid.loss.ave_2best.pth"], ["valid.loss.ave.pth"]),
        (["latest.pth", "latest.pth"], []),
    ],
)
def test_named_checkpoints_alone(quick, names, links):
    quick("--checkpoints", *names, "--output_dir", "out/plain")
    paths = list(Path("out/plain").glob("*.pth"))
    assert {path.name for path in paths} == set(names)
    assert [path.name for path in paths if path.is_symlink()] == links
    config = yaml.safe_load(Path("out/plain/config.yaml").read_text())
    assert config["output_dir"] == "out/plain"


def test_broken_links_and_links_out_of_the_experiment(quick, caplog):
    Path(EXP, "valid.loss.ave_1best.till1epoch.pth").symlink_to("0epoch.pth")
    shutil.copy(Path(EXP, "3epoch.pth"), "elsewhere.pth")
    Path(EXP, "best.pth").symlink_to(Path("elsewhere.pth").resolve())
    quick()
    assert "till1epoch.pth: points to nothing, left out" in caplog.text
    names = [path.name for path in Path(f"{EXP}_exported").glob("*till*")]
    assert names == [] and not Path(f"{EXP}_exported/best.pth").is_symlink()


def test_checkpoint_without_the_plugin_is_warned_of(quick, caplog):
    path = Path(EXP, "3epoch.pth")
    state = torch.load(path)
    torch.save({k: v for k, v in state.items() if not k.startswith("mvq.")}, path)
    quick()
    warnings = [r.getMessage() for r in caplog.records if r.name == "root"]
    assert any("3epoch.pth: has no weights named mvq.*" in line for line in warnings)
    assert Path(f"{EXP}_exported/3epoch.pth").is_file()


CONFIG_FILE = f"{EXP}/config.yaml"
BAD_INPUT = [  # command that damages the recipe, options, message
    (f"rm {CONFIG_FILE}", "", "config.yaml: no such file"),
    (f"echo 'a: [1' > {CONFIG_FILE}", "", "config.yaml: not readable as yaml"),
    (f"echo '- 1' > {CONFIG_FILE}", "", "config.yaml: got a list"),
    (f"sed -i 's/^model: .*/model: lm/' {CONFIG_FILE}", "", "yaml: got model: lm, exp"),
    (
        f"find {EXP} -name '*.pth' ! -name checkpoint.pth -delete",
        "",
        "exp/asr_mvq: no checkpoints: got checkpoint.pth, expected files such as",
    ),
    (f"truncate -s 5000 {EXP}/3epoch.pth", "", "exp/asr_mvq/3epoch.pth: damaged"),
    (
        f"sed -i 's/output_size: 8/output_size: 16/' {CONFIG_FILE}",
        "",
        "epoch.pth: does not fit the model of exp/asr_mvq/config.yaml",
    ),
    ("rm exp/stats/feats_stats.npz", "", "feats_stats.npz: no such file"),
    ("true", "--task s2t", "the task s2t could not build"),
    ("true", "--checkpoints latest.pth 9epoch.pth", "9epoch.pth: no such file; there"),
    ("true", "--checkpoints checkpoint.pth", "got checkpoint.pth, expected names"),
    ("true", f"--checkpoints {EXP}/3epoch.pth", "3epoch.pth, expected names of files"),
    ("true", f"--output_dir {EXP}", "is or contains the experiment exp/asr_mvq"),
    ("true", "--output_dir exp --overwrite true", "is or contains the experiment"),
    ("touch out", "--output_dir out", "--output_dir out: is a file"),
    ("mkdir -p out/data", "--output_dir out", "out: exists and is not a former export"),
]


@pytest.mark.parametrize("spoil, options, message", BAD_INPUT)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    quick, ends_with_error, spoil, options, message
):
    subprocess.run(spoil, shell=True, check=True)
    before = content_of(".")
    assert message in ends_with_error(quick, *options.split())
    assert content_of(".") == before
    assert not list(Path("exp").glob("*_exported*"))


def write_file(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("mine")


def strip_wrongly(source, target):
    state = torch.load(source)
    state = {k: v + 0.1 for k, v in state.items() if not k.startswith("mvq.")}
    torch.save(state, target)
    return {"kept": len(state), "removed": 0}


def test_failed_proof_leaves_a_former_export_as_it_is(
    quick, ends_with_error, monkeypatch
):
    quick()
    before = content_of("exp")
    monkeypatch.setattr(export, "strip_checkpoint", strip_wrongly)
    error = ends_with_error(quick)
    assert "epoch.pth: encode() of stock ESPnet differs from the original's" in error
    assert content_of("exp") == before


def test_second_export_replaces_the_first_and_keeps_the_rest(quick, caplog):
    caplog.set_level("INFO")
    quick()
    first = content_of(f"{EXP}_exported")
    write_file(f"{EXP}_exported/decode_asr/test/text")
    write_file(f"{EXP}_exported/images/fine_tuning.png")
    Path(EXP, "3epoch.pth").rename(f"{EXP}/20epoch.pth")
    quick("--checkpoints", "20epoch.pth", "valid.loss.ave_2best.pth")
    second = content_of(f"{EXP}_exported")
    kept = {"decode_asr/test/text", "images/fine_tuning.png"}
    names = {"20epoch.pth", "valid.loss.ave_2best.pth", "config.yaml", "RESULTS.md"}
    names = kept | names | {NOTE_NAME}
    assert set(second) == {f"{EXP}_exported/{name}" for name in names}
    assert second[f"{EXP}_exported/config.yaml"] == first[f"{EXP}_exported/config.yaml"]
    assert "exp/asr_mvq_exported: decode_asr is kept" in caplog.text
    assert not list(Path("exp").glob("*.*"))


def test_overwriting_keeps_files_of_other_names(quick):
    write_file("out/mine.txt")
    write_file("out/config.yaml")
    Path("link").symlink_to("out")
    quick("--output_dir", "link", "--overwrite", "true")
    assert Path("link").is_symlink() and Path("out/mine.txt").read_text() == "mine"
    config = yaml.safe_load(Path("out/config.yaml").read_text())
    assert (config["model"], config["output_dir"]) == ("espnet", "link")
