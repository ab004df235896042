"""The MVQ loss in every task of ESPnet that has it."""

import importlib
import pickle

import pytest
import torch
import yaml
from builders import (
    MVQ_CONF,
    OWSM_CTC,
    STATS,
    TASKS,
    assert_same_as_stock,
    build_task,
    find_task,
    make_task_args,
    make_task_batch,
    step,
    without,
    write_indexes,
    write_wavs,
)

from espnet_mvq.frame_timing.encoders import first_tensor
from espnet_mvq.plugin import registration
from espnet_mvq.plugin.layer_hook import LayerHook

pytestmark = pytest.mark.usefixtures("rnnt_loss")


@pytest.mark.parametrize("name", TASKS)
def test_indexes_train_head_and_encoder(batch, name):
    model, batch = build_task(name), make_task_batch(name, batch)
    plain = step(model, without(batch)).gradients
    loss, stats, _, gradients = step(model, batch)
    assert loss.isfinite().all()
    assert all(stats[key].isfinite().all() for key in STATS)
    assert any(g.any() for n, g in gradients.items() if "head.weight" in n)
    encoder = [n for n in gradients if n.startswith("encoder.embed.")]
    assert any(not torch.equal(gradients[n], plain[n]) for n in encoder)


@pytest.mark.parametrize("name", TASKS)
def test_step_without_indexes_is_that_of_stock(batch, name):
    ours, stock = (build_task(name, mvq) for mvq in (True, False))
    assert isinstance(ours, type(stock)) and "MVQ" in type(ours).__name__
    assert "MVQ" not in type(stock).__name__
    batch = without(make_task_batch(name, batch))
    result = step(ours, batch)
    assert_same_as_stock(result, step(stock, batch))
    assert set(STATS) <= set(result.stats)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "asr_transducer"])
def test_init_draws_the_weights_of_stock(name):
    ours, stock = (
        build_task(name, mvq, init="xavier_uniform") for mvq in (True, False)
    )
    weights = ours.state_dict()
    for key, value in stock.state_dict().items():
        assert torch.equal(weights[key], value), key


@pytest.mark.parametrize("mvq", [True, False])
def test_task_that_refuses_init_goes_on_refusing(mvq):
    with pytest.raises(NotImplementedError):
        build_task("asr_transducer", mvq, init="xavier_uniform")


@pytest.mark.parametrize("mvq", [True, False])
@pytest.mark.parametrize("name", TASKS)
def test_inference_builds_the_model_that_was_trained(tmp_path, speech, name, mvq):
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    task, args = find_task(name), make_task_args(name, mvq)
    model = task.build_model(args).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(yaml_no_alias_safe_dump(vars(args)))
    files = tmp_path / "config.yaml", tmp_path / "model.pth"
    loaded, _ = task.build_model_from_file(*files)
    assert type(loaded) is type(model)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    if name != "s2t_ctc":  # whose encode() takes more
        pair = [m.eval().encode(*map(torch.clone, speech)) for m in (loaded, model)]
        assert all(torch.equal(a, b) for a, b in zip(*pair))


@pytest.mark.parametrize(
    "mvq, message",
    # ESPnet goes on to options of its own, which are missing
    [(True, "needs codebook indexes: got no data"), (False, "args doesn't have dist")],
)
@pytest.mark.parametrize("name", TASKS)
def test_training_completes_the_options_of_our_models_alone(name, mvq, message):
    args = make_task_args(name, mvq)
    args.train_data_path_and_name_and_type = []
    if mvq:
        args.model_conf["mvq_conf"] = {"layer": 1}
    with pytest.raises(ValueError, match=message):
        find_task(name).main_worker(args)


@pytest.mark.parametrize("name", TASKS)
def test_spawned_processes_find_what_was_registered(name):
    """ESPnet hands `Task.main_worker` to the processes of its GPUs, by its name."""
    ours = find_task(name).main_worker
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert ours.__func__.__code__.co_filename == registration.__file__


@pytest.mark.parametrize("name", ["asr_transducer", "st"])
def test_task_without_choice_keeps_its_own_model(name):
    module = importlib.import_module(f"espnet2.tasks.{name}")
    stock = type(build_task(name, mvq=False))
    with pytest.raises(ValueError, match="got 99, expected 1 to 2 or -1"):
        build_task(name, layer=99)
    assert getattr(module, stock.__name__) is stock
    assert type(build_task(name, mvq=False)) is stock


LINEAR = {"encoder_conf": {**OWSM_CTC, "input_layer": "linear"}}


@pytest.mark.parametrize("options, num_prefix", [({}, 2), (LINEAR, 0)])
def test_frames_of_prefix_tokens_are_left_out(batch, options, num_prefix):
    """OWSM-CTC's encoder puts language and task before the speech.

    With a linear input layer it drops them without a message.
    """
    model, outputs = build_task("s2t_ctc", **options).eval(), []
    batch = make_task_batch("s2t_ctc", batch)
    names = ("speech", "text_prev", "prefix")
    arguments = [batch[key] for n in names for key in (n, f"{n}_lengths")]
    block = model.encoder.encoders[0]
    block.register_forward_hook(lambda module, args, output: outputs.append(output))
    with LayerHook(model.encoder, 1).record() as recorded:
        _, encoder_lengths = model.encode(*arguments)
    assert torch.equal(recorded.frames.values, first_tensor(outputs[0])[:, num_prefix:])
    assert torch.equal(recorded.frames.lengths, encoder_lengths - num_prefix)


def measure_centre(name, batch, layer, teacher_frame, **options):
    """Return the centre of the samples from which a teacher frame is predicted."""
    sensitivity = torch.zeros(9600)
    for seed in range(4):  # random weights behind a ReLU may ignore a frame
        torch.manual_seed(seed)
        model = build_task(name, layer=layer, **options).eval()
        # The task's own loss is not to reach the speech; the layer's hook runs before.
        model.encoder.register_forward_hook(
            lambda module, args, output: (output[0].detach(), *output[1:])
        )
        inputs = make_task_batch(name, batch)
        inputs["speech"] = (0.1 * torch.randn(3, 9600)).requires_grad_()
        inputs["codebook_indexes"].fill_(-1)[0, teacher_frame] = 1
        model(**inputs)[0].backward()
        sensitivity += inputs["speech"].grad[0].abs()
    samples = sensitivity.nonzero()
    return float(samples[0] + samples[-1]) / 2


@pytest.mark.parametrize(
    "name, options, shift",
    [("asr_transducer", {}, 640), ("s2t_ctc", {}, 1280), ("s2t_ctc", LINEAR, 160)],
)
@pytest.mark.parametrize("teacher_frame", [12, 17])
def test_prediction_sees_speech_of_its_time(batch, name, options, shift, teacher_frame):
    centre = measure_centre(name, batch, "embed", teacher_frame, **options)
    assert abs(centre - (199.5 + 320 * teacher_frame)) <= shift / 2


@pytest.mark.parametrize(
    "name, level",
    # At level frame, asr takes the one or two last frames that ESPnet counts.
    [
        ("asr", "utterance"),
        ("asr_transducer", "utterance"),
        ("asr_transducer", "frame"),
    ],
)
@pytest.mark.parametrize("num_features", [40, 41, 42, 43])
def test_padding_teaches_nothing(name, level, num_features):
    """An utterance beside a longer one has the loss that it has alone."""
    conf = {"level": level, "delay_s": 0.1, "student_frame_shift_samples": 640}
    options = {"frontend": None, "input_size": 16, "mvq_conf": conf}
    model = build_task(name, layer="embed", **options).eval()
    num_indexes = torch.tensor([1 if level == "utterance" else num_features // 2, 0])
    batch = {
        "speech": torch.randn(2, 90, 16),
        "speech_lengths": torch.tensor([num_features, 90]),
        "text": torch.tensor([[2, 3], [3, 2]]),
        "text_lengths": torch.tensor([2, 2]),
        "codebook_indexes": torch.randint(0, 4, (2, 20, 2)),
        "codebook_indexes_lengths": num_indexes,
    }
    alone = {key: value[:1] for key, value in batch.items()}
    alone["speech"] = alone["speech"][:, :num_features]
    losses = [model(**b)[1]["loss_mvq"] * len(b["text"]) for b in (alone, batch)]
    torch.testing.assert_close(*losses)


@pytest.fixture
def data_options(tmp_path):
    """Return options of three utterances of speech, text and indexes."""
    utt_ids = ("u0", "u1", "u2")
    write_wavs(tmp_path, dict.fromkeys(utt_ids, 8000))
    write_indexes(tmp_path, dict.fromkeys(utt_ids, [[0, 0]] * 24))
    (tmp_path / "text").write_text("".join(f"{utt_id} 2 3\n" for utt_id in utt_ids))
    data = [("wav.scp", "speech", "sound"), ("text", "text", "text_int")]
    data.append(("codebook_indexes.scp", "codebook_indexes", "mvq_ark"))
    paths = [(f"{tmp_path}/{name}", *others) for name, *others in data]
    return {
        "train_data_path_and_name_and_type": paths,
        "valid_data_path_and_name_and_type": paths,
        "allow_variable_data_keys": True,
        "use_preprocessor": False,
        "batch_type": "unsorted",
        "train_shape_file": [str(tmp_path / "wav.scp")],
        "valid_shape_file": [str(tmp_path / "wav.scp")],
        "num_workers": 0,
        "collect_stats": True,
    }


@pytest.mark.parametrize("extract", [True, False])
@pytest.mark.parametrize("name", ["asr", "asr_transducer"])
def test_statistics(tmp_path, data_options, name, extract):
    """With extract_feats_in_collect_stats false ESPnet builds no model."""
    conf = {"extract_feats_in_collect_stats": extract, "mvq_conf": {"layer": 1}}
    args = make_task_args(name, output_dir=str(tmp_path / "stats"), **data_options)
    args.model_conf, args.distributed = conf, False
    find_task(name).main_worker(args)
    shapes = (tmp_path / "stats/train/codebook_indexes_shape").read_text()
    assert shapes == "u0 24,2\nu1 24,2\nu2 24,2\n"
    assert (tmp_path / "stats/train/feats_stats.npz").exists() == extract
    config = yaml.safe_load((tmp_path / "stats/config.yaml").read_text())
    filled = config["model_conf"]["mvq_conf"]
    assert filled["quantizer_id"] == MVQ_CONF["quantizer_id"] and filled["layer"] == 1
