"""Small trainings through ESPnet's own commands, from files to checkpoints."""

import math

import numpy as np
import pytest
import torch
import yaml
from builders import FRAMES, TINY_MODEL
from corpus_builders import posterior_metadata

from espnet_mvq.distillation import sparse_posteriors
from espnet_mvq.indexes import EmbeddingMetadata, ShardWriter
from espnet_mvq.indexes.shard import shard_paths

WITH_TEXT = {
    "use_preprocessor": True,
    "token_type": "char",
    "valid_max_cache_size": 0,
}


@pytest.fixture
def train(write_training, tmp_path):
    """Return a function that trains; it returns config.yaml and what was reported."""
    from espnet2.tasks.asr import ASRTask

    import espnet_mvq

    espnet_mvq.register()

    def run(texts={}, more_data=(), mvq_conf={}, command=(), change=None, **options):
        path = write_training(**{**WITH_TEXT, **options})
        config = yaml.safe_load(path.read_text())
        config["model_conf"]["mvq_conf"] = mvq_conf
        config["train_data_path_and_name_and_type"] += [list(d) for d in more_data]
        for kind in ("train", "valid"):
            config[f"{kind}_data_path_and_name_and_type"][1][2] = "text"
        lines = [f"u{n} {texts.get(n, 'ab')}".strip() for n in range(8)]
        (tmp_path / "text").write_text("\n".join(lines) + "\n")
        if change is not None:
            change(config)
        path.write_text(yaml.safe_dump(config))
        ASRTask.main(cmd=["--config", str(path), *command])
        if command:
            return None
        written = yaml.safe_load((tmp_path / "exp" / "config.yaml").read_text())
        checkpoint = torch.load(tmp_path / "exp" / "checkpoint.pth", weights_only=False)
        epochs = checkpoint["reporter"]["stats"]
        return written, epochs[max(epochs)]["train"], checkpoint["model"]

    return run


def test_adakd_with_utterances_without_text(train, tmp_path):
    losses = {n: 0.5 + 0.1 * n for n in range(7)}
    lines = "".join(f"u{n} {loss}\n" for n, loss in losses.items())
    (tmp_path / "teacher_loss").write_text(lines)
    (tmp_path / "unlabelled").write_text("u7\n")
    written, stats, state = train(
        texts={7: ""},
        more_data=[
            (str(tmp_path / "teacher_loss"), "teacher_loss", "mvq_loss"),
            (str(tmp_path / "unlabelled"), "unlabelled", "mvq_list"),
        ],
        mvq_conf={"layer": 1, "weighting": {"type": "adakd"}},
    )
    weighting = written["model_conf"]["mvq_conf"]["weighting"]
    assert weighting["threshold"] == pytest.approx(np.mean(list(losses.values())))
    assert weighting["scale"] == pytest.approx(np.std(list(losses.values())))
    assert 0 < stats["mvq_alpha"] < 1 and math.isfinite(stats["loss"])
    assert all(value.isfinite().all() for value in state.values())


def test_list_of_utterances_without_text(train, tmp_path):
    (tmp_path / "unlabelled").write_text("u2\nu5\n")
    (tmp_path / "teacher_loss").write_text("".join(f"u{n} {n}\n" for n in (0, 1, 3)))
    data = [
        (str(tmp_path / "unlabelled"), "unlabelled", "mvq_list"),
        (str(tmp_path / "teacher_loss"), "teacher_loss", "mvq_loss"),
    ]
    conf = {"weighting": {"type": "adakd"}}
    with pytest.raises(ValueError, match="utterance u4 and 2 more of the training set"):
        train(texts={2: "-", 5: "-"}, more_data=data, mvq_conf=conf)


def test_statistics_of_utterances_without_text(train, tmp_path):
    """Stage 10 of asr.sh goes over the same data."""
    (tmp_path / "unlabelled").write_text("u2\n")
    stats = tmp_path / "stats"
    train(
        texts={2: "-"},
        more_data=[(str(tmp_path / "unlabelled"), "unlabelled", "mvq_list")],
        command=["--collect_stats", "true", "--output_dir", str(stats)],
    )
    assert "u2 1\n" in (stats / "train" / "text_shape").read_text()


def test_stored_embeddings(train, tmp_path):
    metadata = EmbeddingMetadata(teacher="t", layer=1, dim=3, **FRAMES)
    with ShardWriter(tmp_path / "arks", 1, metadata) as shard:
        for n in range(6):  # two utterances have none
            shard.write(f"u{n}", np.random.randn(24, 3).astype(np.float16))
    _, scp, _ = shard_paths(tmp_path / "arks", 1, metadata.STEM)
    written, stats, _ = train(
        more_data=[(str(scp), "embeddings", "mvq_ark")],
        mvq_conf={
            "targets": {"embeddings": {"loss": "cosine"}, "codebook_indexes": {}}
        },
    )
    assert written["model_conf"]["mvq_conf"]["targets"]["embeddings"]["dim"] == 3
    assert stats["embedding_error_embeddings"] > 0
    assert stats["acc_mvq_codebook_indexes"] >= 0


def test_stored_posteriors_under_adakd(train, tmp_path):
    metadata = posterior_metadata(2, TINY_MODEL["token_list"])
    with ShardWriter(tmp_path / "arks", 1, metadata) as shard:
        for n in range(6):  # two utterances have none
            stored = sparse_posteriors(torch.randn(24, 5), 2)
            shard.write(f"u{n}", stored.numpy().astype(np.uint16))
    _, scp, _ = shard_paths(tmp_path / "arks", 1, metadata.STEM)
    (tmp_path / "teacher_loss").write_text("".join(f"u{n} {n}\n" for n in range(8)))
    written, stats, state = train(
        more_data=[
            (str(scp), "posteriors", "mvq_ark"),
            (str(tmp_path / "teacher_loss"), "teacher_loss", "mvq_loss"),
        ],
        mvq_conf={
            "targets": {"posteriors": {"loss": "posteriors"}, "codebook_indexes": {}},
            "weighting": {"type": "adakd"},
        },
    )
    conf = written["model_conf"]["mvq_conf"]["targets"]["posteriors"]
    assert conf["token_list"] == TINY_MODEL["token_list"]
    assert stats["posterior_divergence_posteriors"] > 0
    assert stats["acc_mvq_codebook_indexes"] >= 0 and 0 < stats["mvq_alpha"] < 1
    assert not [name for name in state if name.startswith("mvq.posteriors")]


def test_resumed_training_continues_the_schedule(train, tmp_path):
    """The schedule of the weight goes by updates that are counted in the checkpoint."""
    conf = {"layer": 1, "schedule": {"warmup_updates": 4}}
    _, _, first = train(mvq_conf=conf, max_epoch=1)
    assert float(first["mvq.num_updates"]) == 2
    _, _, resumed = train(mvq_conf=conf, max_epoch=2, resume=True)
    assert float(resumed["mvq.num_updates"]) == 4
    assert not torch.equal(
        first["mvq.codebook_indexes.head.weight"],
        resumed["mvq.codebook_indexes.head.weight"],
    )


def test_corpus_in_pieces(train, tmp_path):
    """`--num_splits_asr` of asr.sh: each epoch goes over the pieces."""

    def split(config):
        # Beside the ark too, as the extraction leaves it
        (tmp_path / "codebook_indexes.1.json").symlink_to("codebook_indexes.json")
        names = ("wav.scp", "text", "codebook_indexes.scp", "speech_shape")
        for name in names:
            lines = (tmp_path / name).read_text().splitlines(True)
            folder = tmp_path / "splits" / name
            folder.mkdir(parents=True)
            for n in (0, 1):
                (folder / f"split.{n}").write_text("".join(lines[n::2]))
            (folder / "num_splits").write_text("2")
        data = config["train_data_path_and_name_and_type"]
        config["train_data_path_and_name_and_type"] = [
            [str(tmp_path / "splits" / name), *others]
            for name, (_, *others) in zip(names, data)
        ]
        config["train_shape_file"] = [str(tmp_path / "splits" / "speech_shape")]

    written, stats, state = train(change=split, multiple_iterator=True)
    assert written["model_conf"]["mvq_conf"]["quantizer_id"] == "0123456789abcdef"
    assert stats["mvq_frames"] > 0 and float(state["mvq.num_updates"]) == 4


def test_best_checkpoints_are_averaged(train, tmp_path):
    train(keep_nbest_models=2)
    files = [tmp_path / "exp" / f"{n}epoch.pth" for n in (1, 2)]
    states = [torch.load(path, weights_only=True) for path in files]
    average = torch.load(tmp_path / "exp/valid.loss.ave_2best.pth", weights_only=True)
    assert set(average) == set(states[0])
    for name in average:
        expected = (states[0][name] + states[1][name]) / 2
        if average[name].is_floating_point():
            torch.testing.assert_close(average[name], expected)
