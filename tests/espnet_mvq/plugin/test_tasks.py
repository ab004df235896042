"""The MVQ loss in every task of ESPnet that has it."""

import copy
import importlib
import pickle
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
import yaml

import espnet_mvq
from espnet_mvq.frame_timing.encoders import first_tensor
from espnet_mvq.indexes import IndexMetadata, ShardWriter
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME
from espnet_mvq.indexes.shard import shard_paths
from espnet_mvq.plugin import registration
from espnet_mvq.plugin.layer_hook import LayerHook

STATS = ["loss_mvq", "acc_mvq", "mvq_nats_below_chance", "mvq_frames"]
TOKENS = ["<blank>", "<unk>", "a", "b", "<sos>", "<eos>", "<sop>", "<na>", "<sos/eos>"]
MVQ_CONF = {
    "num_codebooks": 2,
    "codebook_size": 4,
    "sample_rate": 16_000,
    "frame_shift_samples": 320,
    "frame_offset_samples": 199.5,
    "quantizer_id": "0123456789abcdef",
}
SIZES = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 2}
COMMON = {
    "token_list": TOKENS,
    "token_type": "char",
    "specaug": None,
    "normalize": None,
    "frontend_conf": {"n_fft": 128, "hop_length": 160, "n_mels": 16},
    "encoder": "transformer",
    "encoder_conf": SIZES,
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 8, "num_blocks": 1},
    "model_conf": {"ctc_weight": 0.5},
}
TRANSDUCER = {"decoder": "transducer", "decoder_conf": {"hidden_size": 8}}
TRANSDUCER["joint_net_conf"] = {"joint_space_size": 8}
PROMPT = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 1}
BRANCHES = {"cgmlp_linear_units": 8, "cgmlp_conv_kernel": 3, "merge_conv_kernel": 3}
BLOCK = {"block_type": "conformer", "hidden_size": 8, "linear_size": 8, "heads": 2}
# Module of the task, its class, our model, ESPnet's; None where there is no --model.
# What differs from the options above
TASKS = {
    "asr": ("asr", "ASRTask", "mvq", "espnet", {}),
    "asr with transducer": ("asr", "ASRTask", "mvq", "espnet", TRANSDUCER),
    "maskctc": ("asr", "ASRTask", "mvq_maskctc", "maskctc", {"decoder": "mlm"}),
    "slu": ("slu", "SLUTask", "mvq", "espnet", {}),
    "s2t": ("s2t", "S2TTask", "mvq", "espnet", {}),
    "s2t_ctc": (
        "s2t_ctc",
        "S2TTask",
        "mvq",
        "espnet_ctc",
        {
            "encoder": "e_branchformer_ctc",
            "encoder_conf": {**SIZES, **BRANCHES, "input_layer": "conv2d8"},
            "promptencoder_conf": PROMPT,
            "model_conf": {},
        },
    ),
    "asr_transducer": (
        "asr_transducer",
        "ASRTransducerTask",
        None,
        None,
        {
            "encoder_conf": {
                "body_conf": [{**BLOCK, "conv_mod_kernel_size": 3, "num_blocks": 2}]
            },
            "decoder": "stateless",
            "decoder_conf": {"embed_size": 8},
            "joint_network_conf": {"joint_space_size": 8},
            "model_conf": {},
        },
    ),
    "st": ("st", "STTask", None, None, {"src_token_list": TOKENS, "model_conf": {}}),
}


class StandInRNNTLoss:
    """Stands in for a loss that must be compiled: any function of the same input."""

    def __init__(self, **options):
        pass

    def __call__(self, joint_out, target, frames, labels):
        return -joint_out.log_softmax(3)[..., 0].mean()


@pytest.fixture(autouse=True)
def rnnt_loss(monkeypatch):
    module = types.ModuleType("warprnnt_pytorch")
    module.RNNTLoss = StandInRNNTLoss
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", module)


def find_task(name):
    espnet_mvq.register()
    module, task, *_ = TASKS[name]
    return getattr(importlib.import_module(f"espnet2.tasks.{module}"), task)


def make_args(name, mvq=True, layer=1, mvq_conf={}, **others):
    """Return the task's own options, for a tiny model."""
    _, _, ours, stock, options = TASKS[name]
    args = find_task(name).get_parser().parse_args(["--output_dir", "unused"])
    for option, value in {**COMMON, **options, **others}.items():
        setattr(args, option, copy.deepcopy(value))
    if ours:
        args.model = ours if mvq else stock
    if mvq:
        args.model_conf["mvq_conf"] = {**MVQ_CONF, "layer": layer, **mvq_conf}
    return args


def build(name, mvq=True, **others):
    args = make_args(name, mvq, **others)
    torch.manual_seed(1)
    return find_task(name).build_model(args)


@pytest.fixture
def make_batch(batch):
    """Return a function that makes a task's batch, with or without indexes."""

    def make(name, indexes=True):
        found = {k: v.clone() for k, v in batch.items()}
        for key in ("text_prev", "text_ctc"):
            if name.startswith("s2t"):
                found[key] = found["text"].clone()
                found[f"{key}_lengths"] = found["text_lengths"].clone()
        if name == "s2t_ctc":
            found["prefix"] = torch.tensor([[2, 3]] * 3)
            found["prefix_lengths"] = torch.tensor([2] * 3)
        if not indexes:
            del found["codebook_indexes"], found["codebook_indexes_lengths"]
        return found

    return make


def step(model, batch):
    """Run forward and backward; return loss, statistics and gradients."""
    torch.manual_seed(5)  # dropout
    np.random.seed(5)  # what Mask-CTC masks
    model.zero_grad()
    loss, stats, _ = model(**batch)
    loss.backward()
    return loss.detach(), stats, {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", TASKS)
def test_indexes_teach_head_and_encoder(make_batch, name):
    model = build(name)
    plain = step(model, make_batch(name, indexes=False))[2]
    loss, stats, gradients = step(model, make_batch(name))
    assert loss.isfinite().all() and set(STATS) <= set(stats)
    assert all(stats[key].isfinite().all() for key in STATS)
    assert any(g.any() for n, g in gradients.items() if "head.weight" in n)
    encoder = [n for n in gradients if n.startswith("encoder.embed.")]
    assert any(not torch.equal(gradients[n], plain[n]) for n in encoder)


@pytest.mark.parametrize("name", TASKS)
def test_without_indexes_all_is_as_in_stock(make_batch, name):
    ours, stock = (build(name, mvq) for mvq in (True, False))
    assert isinstance(ours, type(stock)) and "MVQ" in type(ours).__name__
    assert "MVQ" not in type(stock).__name__
    batch = make_batch(name, indexes=False)
    loss, stats, gradients = step(ours, batch)
    expected = step(stock, make_batch(name, indexes=False))
    assert torch.equal(loss, expected[0])
    for key, value in expected[1].items():
        same = value is None and stats[key] is None
        assert same or torch.equal(stats[key], value), key
    for key, gradient in expected[2].items():
        assert gradient is None or torch.equal(gradients[key], gradient), key
    assert set(STATS) <= set(stats)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "asr_transducer"])
def test_init_draws_the_weights_of_stock(name):
    ours, stock = (build(name, mvq, init="xavier_uniform") for mvq in (True, False))
    weights = ours.state_dict()
    for key, value in stock.state_dict().items():
        assert torch.equal(weights[key], value), key


@pytest.mark.parametrize("mvq", [True, False])
def test_task_that_refuses_init_goes_on_refusing(mvq):
    with pytest.raises(NotImplementedError):
        build("asr_transducer", mvq, init="xavier_uniform")


@pytest.mark.parametrize("mvq", [True, False])
@pytest.mark.parametrize("name", TASKS)
def test_inference_builds_the_model_that_was_trained(tmp_path, speech, name, mvq):
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    task, args = find_task(name), make_args(name, mvq)
    model = task.build_model(args).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(yaml_no_alias_safe_dump(vars(args)))
    files = tmp_path / "config.yaml", tmp_path / "model.pth"
    found, _ = task.build_model_from_file(*files)
    assert type(found) is type(model)
    for key, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    if name != "s2t_ctc":  # whose encode() takes more
        pair = [m.eval().encode(*map(torch.clone, speech)) for m in (found, model)]
        assert all(torch.equal(a, b) for a, b in zip(*pair))


@pytest.mark.parametrize(
    "mvq, message",
    # ESPnet goes on with options of its own that are not there
    [(True, "needs codebook indexes: got no data"), (False, "args doesn't have dist")],
)
@pytest.mark.parametrize("name", TASKS)
def test_training_completes_the_options_of_our_models_alone(name, mvq, message):
    args = make_args(name, mvq)
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
    stock = type(build(name, mvq=False))
    with pytest.raises(ValueError, match="got 99, expected 1 to 2 or -1"):
        build(name, layer=99)
    assert getattr(module, stock.__name__) is stock
    assert type(build(name, mvq=False)) is stock


OWSM_CTC = TASKS["s2t_ctc"][4]["encoder_conf"]
LINEAR = {"encoder_conf": {**OWSM_CTC, "input_layer": "linear"}}


@pytest.mark.parametrize("options, num_prefix", [({}, 2), (LINEAR, 0)])
def test_frames_of_prefix_tokens_are_left_out(make_batch, options, num_prefix):
    """OWSM-CTC's encoder puts language and task before the speech.

    With a linear input layer it drops them without a word.
    """
    model, heard = build("s2t_ctc", **options).eval(), []
    batch = make_batch("s2t_ctc")
    names = ("speech", "text_prev", "prefix")
    arguments = [batch[key] for n in names for key in (n, f"{n}_lengths")]
    block = model.encoder.encoders[0]
    block.register_forward_hook(lambda module, args, output: heard.append(output))
    with LayerHook(model.encoder, 1).record() as recorded:
        _, encoder_lengths = model.encode(*arguments)
    assert torch.equal(recorded.frames.values, first_tensor(heard[0])[:, num_prefix:])
    assert torch.equal(recorded.frames.lengths, encoder_lengths - num_prefix)


def measure_centre(name, make_batch, layer, teacher_frame, **options):
    """Return the centre of the samples from which a teacher frame is predicted."""
    heard = torch.zeros(9600)
    for seed in range(4):  # random weights behind a ReLU may be deaf to a frame
        torch.manual_seed(seed)
        model = build(name, layer=layer, **options).eval()
        # The task's own loss is not to reach the speech; the tap is on before.
        model.encoder.register_forward_hook(
            lambda module, args, output: (output[0].detach(), *output[1:])
        )
        batch = make_batch(name)
        batch["speech"] = (0.1 * torch.randn(3, 9600)).requires_grad_()
        batch["codebook_indexes"].fill_(-1)[0, teacher_frame] = 1
        model(**batch)[0].backward()
        heard += batch["speech"].grad[0].abs()
    touched = heard.nonzero()
    return float(touched[0] + touched[-1]) / 2


@pytest.mark.parametrize(
    "name, options, shift",
    [("asr_transducer", {}, 640), ("s2t_ctc", {}, 1280), ("s2t_ctc", LINEAR, 160)],
)
@pytest.mark.parametrize("teacher_frame", [12, 17])
def test_indexes_are_predicted_where_they_were_heard(
    make_batch, name, options, shift, teacher_frame
):
    centre = measure_centre(name, make_batch, "embed", teacher_frame, **options)
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
    model = build(name, layer="embed", **options).eval()
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
    metadata = IndexMetadata(teacher="teacher", layer=1, **MVQ_CONF)
    with ShardWriter(tmp_path, 1, metadata) as shard:
        for n in range(3):
            soundfile.write(tmp_path / f"u{n}.wav", 0.1 * np.ones(8000), 16_000)
            shard.write(f"u{n}", np.zeros((24, 2), np.uint8))
    _, scp, json_path = shard_paths(tmp_path, 1)
    scp.rename(tmp_path / SCP_NAME)
    json_path.rename(tmp_path / METADATA_NAME)
    wavs = [f"u{n} {tmp_path}/u{n}.wav\n" for n in range(3)]
    (tmp_path / "wav.scp").write_text("".join(wavs))
    (tmp_path / "text").write_text("".join(f"u{n} 2 3\n" for n in range(3)))
    data = [("wav.scp", "speech", "sound"), ("text", "text", "text_int")]
    data.append((SCP_NAME, "codebook_indexes", "mvq_ark"))
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
    args = make_args(name, output_dir=str(tmp_path / "stats"), **data_options)
    args.model_conf, args.distributed = conf, False
    find_task(name).main_worker(args)
    shapes = (tmp_path / "stats/train/codebook_indexes_shape").read_text()
    assert shapes == "u0 24,2\nu1 24,2\nu2 24,2\n"
    assert (tmp_path / "stats/train/feats_stats.npz").exists() == extract
    config = yaml.safe_load((tmp_path / "stats/config.yaml").read_text())
    filled = {**MVQ_CONF, "layer": 1, "level": "frame"}
    assert config["model_conf"]["mvq_conf"] == filled
