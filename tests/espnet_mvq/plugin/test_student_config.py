"""Configurations of students: the baseline's yaml and the MVQ loss."""

import pytest
import torch
import yaml
from builders import MVQ_CONF, write_indexes

import espnet_mvq
from espnet_mvq.bin.make_config import main

ENCODER = """
encoder_conf:       # small
    output_size: 8
    attention_heads: 2
    linear_units: 8
    num_blocks: {num_blocks}
    input_layer: conv2d
"""
CONFORMER = (
    "# a baseline\naccum_grad: 1\nencoder: conformer"
    + ENCODER.format(num_blocks=3)
    + """
decoder: transformer
decoder_conf: {attention_heads: 2, linear_units: 8, num_blocks: 1}
model_conf:
    ctc_weight: 0.3     # of the sum
optim_conf: {lr: 1e-3}
"""
)
CTC = "encoder: transformer" + ENCODER.format(num_blocks=2) + "decoder: none\n"
CTC += (
    "model_conf: {ctc_weight: 1.0}\nbest_model_criterion:\n-   - valid\n    - cer_ctc\n"
)
CTC += "    - min\n"
TRANSDUCER = "encoder: conformer" + ENCODER.format(num_blocks=6) + """
decoder: transducer
decoder_conf: {rnn_type: lstm, num_layers: 1, hidden_size: 4}
joint_net_conf: {joint_space_size: 4}
best_model_criterion:
-   - valid
    - acc
    - max
"""
STREAMING = CONFORMER.replace("conformer", "contextual_block_conformer").replace(
    "input_layer", "block_size: 16\n    hop_size: 8\n    look_ahead: 4\n    input_layer"
)
RNN = (
    "encoder: vgg_rnn\nencoder_conf: {num_layers: 1, hidden_size: 4, output_size: 4}\n"
)
RNN += "decoder: rnn\ndecoder_conf: {num_layers: 1, hidden_size: 4}\n"
# yaml, layer, statistic of the checkpoint, whether it streams
BASELINES = {
    "conformer": (CONFORMER, 2, "acc", False),
    "CTC": (CTC, 1, "cer_ctc", False),
    "transducer": (TRANSDUCER, 4, "loss", False),
    "streaming": (STREAMING, -1, "acc", True),
    "rnn": (RNN, -1, "acc", False),
    "no value": (f"{RNN}model_conf:\n", -1, "acc", False),
}
OURS = ("model", "allow_variable_data_keys", "train_data_path_and_name_and_type")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Work in a recipe whose training set has indexes; return the yaml's path."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "dump" / "raw" / "train_sp"
    write_indexes(data, {"u0": torch.zeros(3, 2).byte().numpy()})
    return tmp_path / "train.yaml"


@pytest.mark.parametrize("name", BASELINES)
def test_student_is_the_baseline_and_learns_from_indexes(
    recipe, rnnt_loss, capsys, name
):
    text, layer, criterion, is_streaming = BASELINES[name]
    recipe.write_text(text)
    main(["--asr_config", str(recipe), "--weight", "0.5"])
    output = recipe.with_name("train_mvq.yaml")
    student, baseline = (yaml.safe_load(t) for t in (output.read_text(), text))
    conf = student["model_conf"].pop("mvq_conf")
    assert conf == {"weight": 0.5, "layer": layer}
    ((scp, *kind),) = student["train_data_path_and_name_and_type"]
    assert scp == "dump/raw/train_sp/codebook_indexes.scp"
    assert kind == ["codebook_indexes", "mvq_ark"]
    baseline["model_conf"] = baseline.get("model_conf") or {}
    if criterion == "loss":
        baseline["best_model_criterion"] = [["valid", "loss", "min"]]
    assert {k: v for k, v in student.items() if k not in OURS} == baseline
    comments = [line for line in text.splitlines() if "#" in line]
    assert [line for line in output.read_text().splitlines() if "#" in line] == comments

    command = capsys.readouterr().out
    assert f"--inference_asr_model valid.{criterion}.ave.pth" in command
    assert ("--use_streaming true" in command) == is_streaming
    stats = loss_statistics(output)
    assert stats["loss_mvq"] > 0 and stats["mvq_frames"] > 0


def loss_statistics(path):
    """Build the model of a configuration as ESPnet does, and run a batch."""
    from espnet2.tasks.asr import ASRTask

    espnet_mvq.register()
    args = ASRTask.get_parser().parse_args(["--config", str(path)])
    args.token_list = ["<blank>", "<unk>", "a", "<sos/eos>"]
    args.model_conf["mvq_conf"].update(MVQ_CONF)
    model = ASRTask.build_model(args).eval()
    indexes = torch.randint(
        MVQ_CONF["codebook_size"], (1, 50, MVQ_CONF["num_codebooks"])
    )
    with torch.no_grad():
        _, stats, _ = model(
            speech=0.1 * torch.randn(1, 16_000),
            speech_lengths=torch.tensor([16_000]),
            text=torch.tensor([[2, 2]]),
            text_lengths=torch.tensor([2]),
            codebook_indexes=indexes,
            codebook_indexes_lengths=torch.tensor([50]),
        )
    return stats
