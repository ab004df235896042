"""An MVQ student trains in ESPnet3, whose trainer is Lightning's."""

import csv

import numpy as np
import pytest
from builders import STATS, TINY_MODEL, index_metadata

import espnet_mvq
from espnet_mvq.indexes.metadata import METADATA_NAME

pytest.importorskip("espnet3")  # in ESPnet 202611
pytest.importorskip("lightning")

# A data set of an ESPnet3 recipe
DATASET = """
import numpy as np
from espnet3.components.data.base_dataset import BaseDataset
from espnet3.contract import Field

class Dataset(BaseDataset):
    fields = (Field("speech", "audio"),)

    def __init__(self, recipe_dir=None, **kwargs):
        draw = np.random.default_rng(0)
        self.items = []
        for number in range(6):
            num_frames = 20 + number
            self.items.append({
                "speech": draw.normal(size=320 * num_frames + 80).astype(np.float32),
                "text": np.array([2, 3]),
                "codebook_indexes": draw.integers(0, 4, (num_frames, 2)),
            })

    def __getitem__(self, number):
        return self.items[int(number)]

    def __len__(self):
        return len(self.items)
"""


def test_trainer_of_espnet3(tmp_path, monkeypatch):
    from espnet3.systems.base.training import train
    from omegaconf import OmegaConf

    (tmp_path / "recipe_data.py").write_text(DATASET)
    monkeypatch.syspath_prepend(tmp_path)
    index_metadata().save(tmp_path / METADATA_NAME)
    espnet_mvq.register()
    mvq_conf = espnet_mvq.mvq_conf(tmp_path, layer=1)
    loader = {"batch_size": 3, "num_workers": 0, "iter_factory": None}
    data = [{"data_src": "recipe_data"}]
    config = {
        # ESPnet3 has tasks of its own; the plugin is in those of ESPnet2.
        "task": "espnet2.tasks.asr.ASRTask",
        "exp_dir": str(tmp_path / "exp"),
        "num_device": 1,
        "model": {
            **TINY_MODEL,
            "model": "mvq",
            "model_conf": {**TINY_MODEL["model_conf"], "mvq_conf": mvq_conf},
        },
        "dataset": {
            "_target_": "espnet3.components.data.data_organizer.DataOrganizer",
            "train": data,
            "valid": data,
        },
        "dataloader": {
            "train": loader,
            "valid": loader,
            "collate_fn": {
                "_target_": "espnet2.train.collate_fn.CommonCollateFn",
                "int_pad_value": -1,
            },
        },
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 9},
        "scheduler_interval": "step",
        "best_model_criterion": [["valid/loss", 1, "min"]],
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "logger": {
                "_target_": "lightning.pytorch.loggers.CSVLogger",
                "save_dir": str(tmp_path / "exp"),
            },
        },
    }
    train(OmegaConf.create(config))
    (path,) = (tmp_path / "exp").rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for name in STATS:
        for part in ("train", "valid"):
            keys = [f"{part}/{name}", f"{part}/{name}_step", f"{part}/{name}_epoch"]
            values = [float(row[key]) for row in rows for key in keys if row.get(key)]
            assert len(values) >= 2 and np.isfinite(values).all(), (part, name)
