"""`mvq_ark` in ESPnet's data sets, and its batches."""

import numpy as np
import pytest
from builders import build_model, write_indexes

import espnet_mvq

ORDER = ["u3", "u1", "u0", "u2"]  # of the arks; u2 has no indexes, u9 no speech


@pytest.fixture
def data(tmp_path):
    """Return the data sets' list of paths, and the indexes by utterance."""
    espnet_mvq.register()
    texts = [f"u{n} " + " ".join("12"[: n % 2 + 1]) for n in range(4)]
    (tmp_path / "text").write_text("\n".join(texts) + "\n")
    indexes = {u: np.random.randint(0, 4, (5 + n, 2)) for n, u in enumerate(ORDER)}
    indexes["u9"] = indexes.pop("u2")
    paths = [
        (str(tmp_path / "text"), "text", "text_int"),
        (str(write_indexes(tmp_path, indexes)), "codebook_indexes", "mvq_ark"),
    ]
    return paths, indexes


def check(utt_id, item, indexes):
    expected = indexes.get(utt_id, np.zeros((0, 2)))
    assert item["codebook_indexes"].dtype == np.int64
    np.testing.assert_array_equal(item["codebook_indexes"], expected)


def test_data_set_for_training(data):
    from espnet2.train.dataset import ESPnetDataset

    paths, indexes = data
    dataset = ESPnetDataset(paths)
    for utt_id in ("u2", "u0", "u3", "u1"):
        name, item = dataset[utt_id]
        assert name == utt_id
        check(utt_id, item, indexes)


def test_iterable_data_set_for_statistics(data):
    """It reads the other files line by line, in their own order."""
    from espnet2.train.iterable_dataset import IterableESPnetDataset

    paths, indexes = data
    items = list(IterableESPnetDataset(paths))
    assert [utt_id for utt_id, _ in items] == ["u0", "u1", "u2", "u3"]
    for utt_id, item in items:
        check(utt_id, item, indexes)


@pytest.mark.parametrize("utt_ids", [["u0", "u2", "u3"], ["u2"]])
def test_batches_pad_with_what_the_model_ignores(data, utt_ids):
    from espnet2.train.collate_fn import CommonCollateFn
    from espnet2.train.dataset import ESPnetDataset

    paths, indexes = data
    dataset = ESPnetDataset(paths)
    collate = CommonCollateFn(float_pad_value=0.0, int_pad_value=-1)
    _, batch = collate([dataset[utt_id] for utt_id in utt_ids])
    lengths = [len(indexes.get(utt_id, [])) for utt_id in utt_ids]
    assert batch["codebook_indexes_lengths"].tolist() == lengths
    assert batch["codebook_indexes"].shape == (len(utt_ids), max(lengths), 2)
    for row, length in zip(batch["codebook_indexes"], lengths):
        assert (row[:length] >= 0).all() and (row[length:] == -1).all()


def test_statistics_run_over_batches_with_indexes(data, batch):
    feats = build_model().collect_feats(**batch)
    assert set(feats) == {"feats", "feats_lengths"}
