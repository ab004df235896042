"""ESPnet's training by Lightning, which does not begin in `main_worker`."""

import sys
import types

import pytest
import torch
import yaml
from builders import run_python

import espnet_mvq
from espnet_mvq.plugin import registration


@pytest.fixture
def options(write_training):
    """Return the options of a training by Lightning."""
    from espnet2.tasks.asr import ASRTask

    espnet_mvq.register()
    args = ASRTask.get_parser().parse_args(["--config", str(write_training())])
    args.lightning_conf = {}
    return args


def build(args):
    from espnet2.tasks.asr import ASRTask

    return ASRTask.build_model(args)


@pytest.fixture
def in_lightning(monkeypatch):
    """Make it look as if this were a process of `espnet2.bin.lightning_train`."""
    name = registration._LIGHTNING_MODULE
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def test_metadata_complete_the_options(options, in_lightning):
    model = build(options)
    assert options.model_conf["mvq_conf"]["num_codebooks"] == 2
    assert model.mvq.codebook_indexes.config.quantizer_id == "0123456789abcdef"


def test_metadata_that_disagree_stop_it(options, in_lightning):
    options.model_conf["mvq_conf"]["num_codebooks"] = 8
    with pytest.raises(ValueError, match="num_codebooks: got 8, but"):
        build(options)


def test_inference_needs_no_index_files(options, tmp_path, in_lightning, monkeypatch):
    build(options)
    monkeypatch.delitem(sys.modules, registration._LIGHTNING_MODULE)
    (tmp_path / "codebook_indexes.json").unlink()
    assert build(options).mvq


def test_models_of_espnet_are_left_alone(options, in_lightning):
    options.model, options.model_conf = "espnet", {}
    build(options)
    assert options.model_conf == {}


def test_it_trains(write_training, tmp_path):
    pytest.importorskip("lightning")
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 2}
    config = write_training(
        # Without these ESPnet's module does not start.
        scheduler="warmuplr",
        use_tensorboard=True,
        lightning_conf={**trainer, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
    )
    (tmp_path / "exp").mkdir()
    command = ["-m", "espnet_mvq.run", "-m", "espnet2.bin.lightning_train"]
    done = run_python(*command, "--task", "asr", "--config", config)
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
    assert saved["model_conf"]["mvq_conf"]["codebook_size"] == 4
    assert "train/loss_mvq" in done.stdout
    # weights_only would refuse the options that Lightning saves beside the weights
    state = torch.load(tmp_path / "exp" / "last.ckpt", weights_only=False)["state_dict"]
    assert state["model.mvq.num_updates"] == 4
