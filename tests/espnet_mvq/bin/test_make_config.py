"""The command that turns a training configuration into that of an MVQ student."""

import pytest
import torch
import yaml
from builders import MVQ_CONF

import espnet_mvq
from espnet_mvq.bin.make_config import main

BASELINE = """\
# A baseline
encoder: conformer
encoder_conf:
    output_size: 8   # small
    attention_heads: 2
    linear_units: 8
    num_blocks: 3
decoder: transformer
decoder_conf: {num_blocks: 1, attention_heads: 2, linear_units: 8}
model_conf:
    ctc_weight: 0.3  # weight of CTC
optim_conf:
    lr: 1.0e-3
"""
TRANSDUCER = """\
encoder_conf:
    main_conf: {}
    input_conf: {block_type: conv2d, conv_size: 8, subsampling_factor: 4}
    body_conf:
    -   {block_type: conformer, linear_size: 8, hidden_size: 8, heads: 2,
        conv_mod_kernel_size: 3}
joint_network_conf: {joint_space_size: 8}
"""
STREAMING = BASELINE.replace("conformer", "contextual_block_conformer", 1)
STREAMING = STREAMING.replace(
    "num_blocks: 3",
    "num_blocks: 3\n    block_size: 8\n    hop_size: 4\n    look_ahead: 2",
)


@pytest.fixture
def made(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command; it gives the options and the output."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev"):
        (tmp_path / "dump" / "raw" / name).mkdir(parents=True)
    (tmp_path / "dump" / "raw" / "train" / "codebook_indexes.scp").touch()

    def run(text, *options):
        (tmp_path / "own.yaml").write_text(text)
        main(["--asr_config", "own.yaml", *options])
        made = (tmp_path / "own_mvq.yaml").read_text()
        return yaml.safe_load(made), made, capsys.readouterr().out

    return run


def build(path, task="asr"):
    """Build the model of a configuration as the training does."""
    from importlib import import_module

    espnet_mvq.register()
    module = import_module(f"espnet2.tasks.{task}")
    Task = module.ASRTask if task == "asr" else module.ASRTransducerTask
    args = Task.get_parser().parse_args(["--config", path])
    args.token_list = ["<blank>", "<unk>", "a", "<sos/eos>"]
    args.model_conf["mvq_conf"].update(MVQ_CONF)
    return Task.build_model(args)


def test_comments_and_other_options_stay(made):
    options, text, out = made(BASELINE)
    assert options["model"] == "mvq" and options["allow_variable_data_keys"] is True
    assert options["model_conf"]["mvq_conf"] == {"weight": 1.0, "layer": 2}
    assert "# A baseline" in text and "# small" in text and "# weight of CTC" in text
    scp = "dump/raw/train/codebook_indexes.scp"
    assert options["train_data_path_and_name_and_type"] == [
        [scp, "codebook_indexes", "mvq_ark"]
    ]
    baseline = yaml.safe_load(BASELINE)
    assert {k: options[k] for k in baseline if k != "model_conf"} == {
        k: v for k, v in baseline.items() if k != "model_conf"
    }
    assert "--asr_config own_mvq.yaml --inference_asr_model valid.acc.ave.pth" in out


@pytest.mark.parametrize(
    "text, layer, command",
    [
        (BASELINE, 2, "valid.acc.ave.pth\n"),
        (STREAMING, -1, "valid.acc.ave.pth --use_streaming true\n"),
    ],
    ids=["conformer", "streaming"],
)
def test_the_model_is_built(made, text, layer, command):
    options, _, out = made(text)
    assert options["model_conf"]["mvq_conf"]["layer"] == layer
    assert out.endswith(command)
    model = build("own_mvq.yaml")
    assert type(model).__name__ == "MVQASRModel"
    speech = torch.randn(1, 16_000), torch.tensor([16_000])
    indexes = torch.zeros(1, 50, MVQ_CONF["num_codebooks"], dtype=torch.long)
    batch = {
        "codebook_indexes": indexes,
        "codebook_indexes_lengths": torch.tensor([50]),
    }
    text = {"text": torch.tensor([[2]]), "text_lengths": torch.tensor([1])}
    assert model(*speech, **text, **batch)[1]["loss_mvq"] > 0


def test_asr_transducer(made):
    from espnet2.tasks.asr_transducer import ASRTransducerTask

    options, _, out = made(TRANSDUCER, "--task", "asr_transducer")
    assert options["model_conf"]["mvq_conf"]["layer"] == 1 and "model" not in options
    assert "--asr_task asr_transducer" in out and "valid.loss.ave.pth" in out
    args = ASRTransducerTask.get_parser().parse_args(["--config", "own_mvq.yaml"])
    assert args.model_conf["mvq_conf"]["layer"] == 1


@pytest.mark.parametrize(
    "changed, criterion",
    [("decoder: transducer", "loss"), ("ctc_weight: 1.0", "cer_ctc")],
)
def test_a_model_without_accuracy_gets_another_criterion(made, changed, criterion):
    text = BASELINE + "best_model_criterion:\n-   - valid\n    - acc\n    - max\n"
    name = changed.split(":")[0]
    start = text.index(name)
    text = text.replace(text[start : text.index("\n", start)], changed)
    options, _, out = made(text)
    assert options["best_model_criterion"] == [["valid", criterion, "min"]]
    assert f"valid.{criterion}.ave.pth" in out


def test_embeddings(made, tmp_path):
    (tmp_path / "dump/raw/train/embeddings.scp").touch()
    options, *_ = made(BASELINE, "--loss", "l2", "--weight", "5")
    conf = options["model_conf"]["mvq_conf"]
    assert conf == {"weight": 5.0, "layer": 2, "loss": "l2"}
    assert options["train_data_path_and_name_and_type"][0][1:] == [
        "embeddings",
        "mvq_ark",
    ]


def test_posteriors_are_of_the_encoder_output(made, tmp_path):
    (tmp_path / "dump/raw/train/posteriors.scp").touch()
    options, *_ = made(BASELINE, "--loss", "posteriors")
    conf = options["model_conf"]["mvq_conf"]
    assert conf == {"weight": 1.0, "layer": -1, "loss": "posteriors"}
    assert options["train_data_path_and_name_and_type"][0][1] == "posteriors"


@pytest.mark.parametrize(
    "text, options, message",
    [
        (BASELINE, ["--asr_config", "no.yaml"], "no.yaml: no such file"),
        ("lm: transformer\n", [], "own.yaml: got no encoder"),
        (BASELINE, ["--layer", "4"], "got 4, expected 1 to 3"),
        (STREAMING, ["--layer", "1"], "use layer: -1"),
        (BASELINE + "model: mvq\n", [], "the MVQ loss already"),
        (BASELINE, ["--set", "dump/raw/dev"], "dev/codebook_indexes.scp: no such file"),
        (BASELINE, ["--loss", "l2"], "dump/raw/*/embeddings.scp: no such file"),
        (BASELINE + "colour: red\n", [], "colour"),
        (BASELINE + "decoder: rnn\n", [], "each option once"),
        ("a: [\n", [], "no readable yaml"),
    ],
)
def test_bad_input_ends_in_one_line(made, caplog, tmp_path, text, options, message):
    with pytest.raises(SystemExit):
        made(text, *options)
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert message in record.message and "\n" not in record.message
    assert not (tmp_path / "own_mvq.yaml").exists()


def test_existing_output_and_several_sets_are_refused(made, caplog, tmp_path):
    output = tmp_path / "own_mvq.yaml"
    output.write_text("mine")
    with pytest.raises(SystemExit):
        made(BASELINE)
    assert "own_mvq.yaml: got an existing file" in caplog.text
    assert output.read_text() == "mine"
    output.unlink()
    (tmp_path / "dump/raw/dev/codebook_indexes.scp").touch()
    with pytest.raises(SystemExit):
        made(BASELINE)
    assert "expected one of: dump/raw/dev, dump/raw/train" in caplog.text
