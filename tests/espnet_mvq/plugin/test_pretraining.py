"""Masked prediction of indexes in ESPnet's task ssl."""

import pytest
import torch
import yaml
from builders import (
    FRAMES,
    MASK,
    MVQ_CONF,
    PRETRAINING,
    SAMPLE_RATE,
    STATS,
    build_model,
    find_task,
    step,
    train_on_two_ranks,
    without,
)

from espnet_mvq import run
from espnet_mvq.distillation import IGNORE, FrameAligner, FrameGrid, codebook_loss


@pytest.fixture
def task():
    """The task, registered with the plugin."""
    import espnet_mvq

    espnet_mvq.register()
    from espnet2.tasks.ssl import SSLTask

    return SSLTask


@pytest.fixture
def build(task):
    """Return a function that builds a tiny model of the task."""

    def build(mask=MASK, mvq_conf={}, **options):
        args = task.get_parser().parse_args(["--output_dir", "unused"])
        for name, value in {**PRETRAINING, **options}.items():
            setattr(args, name, value)
        args.model_conf = {"mvq_conf": {**MVQ_CONF, "mask": mask, **mvq_conf}}
        torch.manual_seed(1)
        return task.build_model(args)

    return build


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([16000, 12000, 8000])
    frames = lengths // FRAMES["frame_shift_samples"]
    return {
        "speech": torch.randn(3, SAMPLE_RATE, generator=generator),
        "speech_lengths": lengths,
        "codebook_indexes": torch.randint(4, (3, int(frames.max()), 2)),
        "codebook_indexes_lengths": frames,
    }


@pytest.mark.parametrize("alpha", [0.5, 1.0, 0.0, 0.8])
def test_loss_is_that_of_the_masked_features(build, batch, alpha):
    """Against the stock encoder, run on features masked by hand."""
    model = build({**MASK, "alpha": alpha})
    seen = []
    handle = model.encoder.embed.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach())
    )
    loss, stats, _, gradients = step(model, batch)
    handle.remove()
    features, lengths = model._extract_feats(batch["speech"], batch["speech_lengths"])
    vector = model.mvq.mask_vector.detach()
    # A masked frame is the vector, but for masked channels, which are 0.
    kept = seen[0] == features
    replaced = (seen[0] == vector) & ~kept
    zero = (seen[0] == 0) & ~kept & ~replaced
    assert (kept | replaced | zero).all()
    masked = replaced.any(2)
    assert 0.2 < masked.float().mean() < 0.7 and zero.any()
    output, lengths, _ = model.encoder(seen[0], lengths)
    grid = FrameGrid(640, 480)  # conv2d: 4 frames of 160 samples, the first on frame 3
    teacher = FrameGrid(320, 199.5)
    aligner = FrameAligner(grid, teacher)
    values, known = aligner.gather(
        batch["codebook_indexes"],
        batch["codebook_indexes_lengths"],
        lengths,
        output.shape[1],
    )
    targets = values.masked_fill(~known.unsqueeze(3), IGNORE).flatten(2)
    at_centre = masked[:, 3::4][:, : output.shape[1]]
    weights = torch.where(at_centre, 2 * alpha, 2 * (1 - alpha))
    expected = codebook_loss(
        model.mvq.codebook_indexes.head, output, targets, frame_weights=weights
    )
    torch.testing.assert_close(loss[0], expected.loss.detach() / (2 * 2 * 3))
    counted = known.any(2) & (weights > 0)
    assert stats["mvq_frames"] == counted.sum()
    assert gradients["mvq.mask_vector"].any()


def test_without_mask_the_encoder_reads_the_features(build, batch):
    model = build(mask=None)
    assert model.mvq.mask_vector is None
    first, second = step(model, batch), step(model, batch)
    assert torch.equal(first.loss, second.loss) and set(STATS) <= set(first.stats)
    assert not step(model, without(batch)).loss.any()


@pytest.mark.parametrize(
    "options", [{"model": "espnet"}, {"loss": [{"name": "hubert"}]}]
)
def test_model_and_loss_need_each_other(build, options):
    with pytest.raises(ValueError, match="expected model: mvq together with loss"):
        build(**options)


def test_several_teachers_and_losses(build, batch):
    conf = {
        "targets": {
            "codebook_indexes": {"layer": 1, "weight": 2.0},
            "embeddings": {"loss": "l2", "dim": 6, "weight": 0.5},
        }
    }
    model = build(mvq_conf=conf)
    batch["embeddings"] = torch.randn(3, 50, 6)
    batch["embeddings_lengths"] = batch["codebook_indexes_lengths"]
    stats = step(model, batch).stats
    first, second = (
        stats["loss_mvq_codebook_indexes"],
        stats["loss_embedding_embeddings"],
    )
    assert first > 0 and second > 0
    torch.testing.assert_close(stats["loss"], 2 * first + 0.5 * second)


def test_two_ranks_one_without_indexes(build, batch, tmp_path):
    model = build()
    before = model.mvq.mask_vector.detach().clone()
    state, _ = train_on_two_ranks(tmp_path, model, [batch, without(batch)])
    assert not torch.equal(state["mvq.mask_vector"], before)


def test_mixed_precision(build, batch):
    model = build({**MASK, "channel_prob": 0.0})
    exact = step(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = step(model, batch)
    assert rounded.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.02, atol=0)
    assert all(g.isfinite().all() for g in rounded.gradients.values())


def test_mask_is_refused_beside_another_loss():
    with pytest.raises(ValueError, match="mask: got one in MVQASRModel, expected the"):
        build_model({"mask": MASK})


def test_encoder_without_features_is_refused(build):
    with pytest.raises(ValueError, match="mvq_conf mask: .* without a front end"):
        build(frontend=None, input_size=8)


def test_cropped_speech_is_refused(task):
    args = task.get_parser().parse_args(["--output_dir", "unused"])
    args.model, args.collate_fn_conf = "mvq", {"crop_audio": True}
    with pytest.raises(ValueError, match="collate_fn_conf: got crop_audio, which"):
        task.build_collate_fn(args, True)


def test_missing_indexes_are_refused(task):
    args = task.get_parser().parse_args(["--output_dir", "unused"])
    args.model, args.model_conf = "mvq", {"mvq_conf": {"mask": MASK}}
    args.train_data_path_and_name_and_type = [["wav.scp", "speech", "sound"]]
    with pytest.raises(ValueError, match="needs codebook indexes: got no data named"):
        task.main_worker(args)


def test_pretrained_encoder_starts_an_asr_training(
    write_pretraining, write_training, tmp_path, monkeypatch
):
    """ESPnet's own commands, through the launcher: no text, then text."""
    ssl = write_pretraining(output_dir=str(tmp_path / "ssl"))
    # Statistics of the features first, as the recipes do, also of speech alone
    stats = ["--collect_stats", "true", "--output_dir", str(tmp_path / "stats")]
    for options in (stats, []):
        command = ["-m", "espnet2.bin.ssl_train", "--config", str(ssl), *options]
        monkeypatch.setattr("sys.argv", ["run.py"])
        run.main(command)
    assert (tmp_path / "stats" / "train" / "feats_stats.npz").is_file()
    pretrained = torch.load(tmp_path / "ssl" / "2epoch.pth", weights_only=True)

    path = write_training()
    asr = yaml.safe_load(path.read_text())
    asr.update({k: PRETRAINING[k] for k in ("encoder", "encoder_conf")}, max_epoch=0)
    source = f"{tmp_path / 'ssl' / '2epoch.pth'}"
    asr["init_param"] = [f"{source}:encoder:encoder"]
    path.write_text(yaml.safe_dump(asr))
    args = find_task("asr").get_parser().parse_args(["--config", str(path)])
    from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

    args.model_conf["mvq_conf"] = {**MVQ_CONF, "layer": -1}
    model = find_task("asr").build_model(args)
    for init_param in args.init_param:
        load_pretrained_model(init_param, model, ignore_init_mismatch=False)
    state = model.state_dict()
    encoder = [key for key in state if key.startswith("encoder.")]
    assert encoder and all(torch.equal(state[k], pretrained[k]) for k in encoder)
    load_pretrained_model(
        f"{source}:mvq.codebook_indexes:mvq.codebook_indexes", model, False
    )
    head = "mvq.codebook_indexes.head.weight"
    assert torch.equal(model.state_dict()[head], pretrained[head])
