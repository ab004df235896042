"""An MVQ student trains in ESPnet-EZ, on a data set of Python objects."""

import importlib.util

import numpy as np
import pytest
import soundfile
from builders import STATS, TINY_MODEL, index_metadata
from corpus_builders import write_shard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import espnet_mvq
from espnet_mvq.indexes import FrameReader
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("espnetez") is None, reason="ESPnet 202511 has it"
)


@pytest.fixture
def data_set(data_dir):
    """A data set whose items are read from a data folder with random indexes."""
    from espnetez.dataset import ESPnetEZDataset

    lines = (data_dir / "wav.scp").read_text().splitlines()
    places = dict(line.split() for line in lines)
    arrays = {
        utt_id: np.random.randint(0, 4, (count, 2)).astype(np.uint8)
        for count, utt_id in enumerate(places, 20)
    }
    metadata = index_metadata()
    _, scp, _ = write_shard(data_dir / "shards", arrays, metadata)
    (data_dir / SCP_NAME).write_text(scp.read_text())
    metadata.save(data_dir / METADATA_NAME)
    indexes = FrameReader(data_dir / SCP_NAME)
    readers = {
        "speech": lambda utt_id: soundfile.read(places[utt_id], dtype="float32")[0],
        "text": lambda utt_id: np.array([2, 3]),
        "codebook_indexes": lambda utt_id: indexes[utt_id],
    }
    return ESPnetEZDataset(list(places), readers)


def test_trainer_of_espnet_ez(data_set, data_dir, tmp_path, caplog):
    import espnetez
    from espnet2.tasks.asr import ASRTask

    espnet_mvq.register()
    mvq_conf = espnet_mvq.mvq_conf(data_dir, layer=1)
    config = {
        **ASRTask.get_default_config(),
        **TINY_MODEL,
        "model": "mvq",
        "model_conf": {**TINY_MODEL["model_conf"], "mvq_conf": mvq_conf},
        "allow_variable_data_keys": True,
        "batch_type": "unsorted",
        "batch_size": 3,
        "max_epoch": 2,
        "optim": "adam",
        "optim_conf": {"lr": 0.01},
        "num_workers": 0,
        "ngpu": 0,
        "num_att_plot": 0,
        "best_model_criterion": [["valid", "loss", "min"]],
    }
    trainer = espnetez.Trainer(
        task="asr",
        train_config=config,
        train_dataset=data_set,
        valid_dataset=data_set,
        output_dir=str(tmp_path / "exp"),
        stats_dir=str(tmp_path / "stats"),
    )
    trainer.collect_stats()
    trainer.train()
    assert "trains without this loss" not in caplog.text
    scalars = {
        part: EventAccumulator(str(tmp_path / "exp" / "tensorboard" / part))
        for part in ("train", "valid")
    }
    for part, extra in (("train", ()), ("valid", ("acc_mvq_cb1", "acc_mvq_cb2"))):
        events = scalars[part].Reload()
        tags = [tag for tag in events.Tags()["scalars"] if "mvq" in tag]
        assert sorted(tags) == sorted((*STATS, *extra))
        for tag in tags:
            values = [event.value for event in events.Scalars(tag)]
            assert len(values) >= 2 and np.isfinite(values).all()
