"""Builders of tiny models, teachers, data and metadata, and one training step."""

import copy
import importlib
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import soundfile
import torch

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_RATE = 16_000
# Teacher of 50 frames per second; its windows have 400 samples.
FRAMES = {
    "sample_rate": SAMPLE_RATE,
    "frame_shift_samples": 320,
    "frame_offset_samples": 199.5,
}
MVQ_CONF = {
    "num_codebooks": 2,
    "codebook_size": 4,
    **FRAMES,
    "quantizer_id": "0123456789abcdef",
}
STATS = ("loss_mvq", "acc_mvq", "mvq_nats_below_chance", "mvq_frames")

ATTENTION = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
SIZES = {**ATTENTION, "output_size": 8, "num_blocks": 2}
TINY_MODEL = {
    "token_list": ["<blank>", "<unk>", "a", "b", "<sos/eos>"],
    "token_type": "char",
    "specaug": None,
    "normalize": None,
    "frontend_conf": {"n_fft": 128, "hop_length": 160, "n_mels": 8},
    "encoder": "transformer",
    "encoder_conf": {
        **SIZES,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    },
    "decoder": "transformer",
    "decoder_conf": ATTENTION,
    "model_conf": {"ctc_weight": 0.5},
}
# Masked prediction in ESPnet's task ssl, of the same encoder
MASK = {"prob": 0.5, "length": 4, "channel_length": 2}
PRETRAINING = {
    **{k: TINY_MODEL[k] for k in ("specaug", "normalize", "frontend_conf")},
    "frontend": "default",
    "preencoder": None,
    "encoder": "conformer",
    "encoder_conf": {
        **TINY_MODEL["encoder_conf"],
        "input_layer": "conv2d",
        "cnn_module_kernel": 3,
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
        "rel_pos_type": "latest",
    },
    "token_list": ["<unused>"],
    "use_preprocessor": False,
    "loss": [{"name": "mvq"}],
    "util": [],
    "model": "mvq",
}
# None removes an option of `TINY_MODEL`.
RECURRENT = {
    **dict.fromkeys(TINY_MODEL["encoder_conf"]),
    "hidden_size": 8,
    "output_size": 8,
    "num_layers": 2,
}
INTERCTC = {"interctc_layer_idx": [1], "interctc_use_conditioning": True}

TASK_TOKENS = ["<blank>", "<unk>", "a", "b", "<sos>", "<eos>", "<sop>", "<na>"]
TASK_TOKENS.append("<sos/eos>")
TASK_OPTIONS = {
    **TINY_MODEL,
    "token_list": TASK_TOKENS,
    "frontend_conf": {"n_fft": 128, "hop_length": 160, "n_mels": 16},
    "encoder_conf": SIZES,
}
TRANSDUCER = {
    "decoder": "transducer",
    "decoder_conf": {"hidden_size": 8},
    "joint_net_conf": {"joint_space_size": 8},
}
OWSM_CTC = {**SIZES, "cgmlp_linear_units": 8, "cgmlp_conv_kernel": 3}
OWSM_CTC.update(merge_conv_kernel=3, input_layer="conv2d8")
S2T_CTC = {
    "encoder": "e_branchformer_ctc",
    "encoder_conf": OWSM_CTC,
    "promptencoder_conf": {**SIZES, "num_blocks": 1},
    "model_conf": {},
}
BLOCK = {"block_type": "conformer", "hidden_size": 8, "linear_size": 8, "heads": 2}
BLOCK["conv_mod_kernel_size"] = 3
STATELESS_TRANSDUCER = {
    "encoder_conf": {"body_conf": [{**BLOCK, "num_blocks": 2}]},
    "decoder": "stateless",
    "decoder_conf": {"embed_size": 8},
    "joint_network_conf": {"joint_space_size": 8},
    "model_conf": {},
}
TRANSLATION = {"src_token_list": TASK_TOKENS, "model_conf": {}}
# Module and class of the task, our model, stock model, options beside `TASK_OPTIONS`.
# The models are None where the task has no option --model.
Task = namedtuple("Task", "module name ours stock options")
TASKS = {
    "asr": Task("asr", "ASRTask", "mvq", "espnet", {}),
    "asr with transducer": Task("asr", "ASRTask", "mvq", "espnet", TRANSDUCER),
    "maskctc": Task("asr", "ASRTask", "mvq_maskctc", "maskctc", {"decoder": "mlm"}),
    "slu": Task("slu", "SLUTask", "mvq", "espnet", {}),
    "s2t": Task("s2t", "S2TTask", "mvq", "espnet", {}),
    "s2t_ctc": Task("s2t_ctc", "S2TTask", "mvq", "espnet_ctc", S2T_CTC),
    "asr_transducer": Task(
        "asr_transducer", "ASRTransducerTask", None, None, STATELESS_TRANSDUCER
    ),
    "st": Task("st", "STTask", None, None, TRANSLATION),
}

HUBERT_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def build_model(mvq_conf=None, model="mvq", **options):
    """Build a model of `TINY_MODEL`; `*_conf` options are added to its own."""
    from espnet2.tasks.asr import ASRTask

    import espnet_mvq

    espnet_mvq.register()
    args = ASRTask.get_parser().parse_args(["--output_dir", "unused"])
    for name, value in {**TINY_MODEL, **options}.items():
        if name.endswith("_conf"):
            value = {**TINY_MODEL.get(name, {}), **value}
            value = {k: v for k, v in value.items() if v is not None}
        setattr(args, name, value)
    args.model = model
    if model == "mvq":
        conf = {**MVQ_CONF, **(mvq_conf or {})}
        args.model_conf = {**args.model_conf, "mvq_conf": conf}
    torch.manual_seed(1)
    return ASRTask.build_model(args)


def find_task(name):
    """Return the class of a row of `TASKS`, with the plugin registered."""
    import espnet_mvq

    espnet_mvq.register()
    module = importlib.import_module(f"espnet2.tasks.{TASKS[name].module}")
    return getattr(module, TASKS[name].name)


def make_task_args(name, mvq=True, layer=1, mvq_conf=None, model_conf=None, **options):
    """Return the options of a tiny model of a row of `TASKS`."""
    task = TASKS[name]
    args = find_task(name).get_parser().parse_args(["--output_dir", "unused"])
    for option, value in {**TASK_OPTIONS, **task.options, **options}.items():
        setattr(args, option, copy.deepcopy(value))
    if task.ours:
        args.model = task.ours if mvq else task.stock
    args.model_conf.update(model_conf or {})
    if mvq:
        args.model_conf["mvq_conf"] = {**MVQ_CONF, "layer": layer, **(mvq_conf or {})}
    return args


def build_task(name, mvq=True, **options):
    """Build a tiny model of a row of `TASKS`, ours or the stock one."""
    args = make_task_args(name, mvq, **options)
    torch.manual_seed(1)
    return find_task(name).build_model(args)


def make_task_batch(name, batch):
    """Copy a batch and add the data that a task of `TASKS` needs."""
    batch = {key: value.clone() for key, value in batch.items()}
    others = ["text_prev", "text_ctc"] if name.startswith("s2t") else []
    for key in others + ["src_text"] * (name == "st"):
        batch[key] = batch["text"].clone()
        batch[f"{key}_lengths"] = batch["text_lengths"].clone()
    if name == "s2t_ctc":
        batch["prefix"] = torch.tensor([[2, 3]] * 3)
        batch["prefix_lengths"] = torch.tensor([2] * 3)
    return batch


def without(batch, prefix="codebook_indexes"):
    """Return a batch without the data whose names begin with a prefix."""
    return {key: value for key, value in batch.items() if not key.startswith(prefix)}


Step = namedtuple("Step", "loss stats weight gradients")


def step(model, batch, seed=5):
    """Run forward and backward with the random numbers of a seed."""
    torch.manual_seed(seed)  # dropout
    np.random.seed(seed)  # masks of Mask-CTC
    model.zero_grad()
    batch = {key: value.clone() for key, value in batch.items()}
    loss, stats, weight = model(**batch)
    loss.sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return Step(loss.detach(), stats, weight, gradients)


def train(model, batch, num_updates=20):
    """Train on one batch; return the statistics of each update."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.02)
    updates = []
    for _ in range(num_updates):
        loss, stats, _ = model(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates.append(stats)
    return updates


def assert_same_as_stock(ours, stock):
    """Check that a step of a stock model is part of ours bit for bit.

    The parameters of the plugin have gradients, as DDP requires, and these are 0.
    """
    assert torch.equal(ours.loss, stock.loss) and torch.equal(ours.weight, stock.weight)
    for part in ("stats", "gradients"):
        values = getattr(ours, part)
        for name, expected in getattr(stock, part).items():
            same = expected is None and values[name] is None
            assert same or torch.equal(values[name], expected), name
    for name in ours.gradients.keys() - stock.gradients.keys():
        assert name.startswith("mvq.") and not ours.gradients[name].any(), name


def _train_rank(rank, folder, model, inputs):
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    # As in ESPnet: unused parameters are an error.
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss, stats, _ = parallel(**inputs[rank])
        loss.backward()
        optimizer.step()
    torch.save((model.state_dict(), sorted(stats)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def train_on_two_ranks(folder, model, inputs):
    """Train two steps under DDP with gloo, and check that the ranks agree.

    Args:
        folder: Empty folder for the files of the processes.
        model: Model that takes the inputs and returns ESPnet's loss, stats and weight.
        inputs: Keyword arguments of each rank.

    Returns:
        Weights after training, and names of the statistics.
    """
    # A fork copies locks that other threads of the tests hold at that moment, as that
    # of a progress bar; a rank then waits for ever. So there are three attempts, each
    # with more time, as a busy machine needs it.
    for attempt, limit_s in enumerate((20, 60, 180)):
        files = folder / f"ranks{attempt}"
        files.mkdir()
        context = torch.multiprocessing.start_processes(
            _train_rank,
            (str(files), model, inputs),
            nprocs=2,
            join=False,
            start_method="fork",
        )
        # Returns as soon as one of the ranks has ended.
        deadline = time.monotonic() + limit_s
        while not (ended := context.join(timeout=2)) and time.monotonic() < deadline:
            pass
        if ended:
            break
        for process in context.processes:
            process.kill()
    assert ended, "the ranks wait for each other"
    first, second = (torch.load(files / f"{rank}.pt") for rank in range(2))
    assert first[1] == second[1]
    assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())
    return first


def index_metadata(**changes):
    """Return the metadata of indexes that fit `MVQ_CONF`."""
    from espnet_mvq.indexes import IndexMetadata

    return IndexMetadata(**{"teacher": "teacher", "layer": 1, **MVQ_CONF, **changes})


def write_indexes(folder, indexes, **metadata):
    """Write codebook indexes (T, N) by utterance as the files of a data directory."""
    from espnet_mvq.indexes import ShardWriter
    from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME
    from espnet_mvq.indexes.shard import shard_paths

    with ShardWriter(folder, 1, index_metadata(**metadata)) as shard:
        for utt_id, value in indexes.items():
            shard.write(utt_id, np.asarray(value, np.uint8))
    _, scp, json_path = shard_paths(folder, 1)
    scp.rename(folder / SCP_NAME)
    json_path.rename(folder / METADATA_NAME)
    return folder / SCP_NAME


def write_wavs(folder, num_samples):
    """Write noise of a number of samples by utterance and `wav.scp`."""
    noise, lines = np.random.default_rng(0), []
    for number, (utt_id, length) in enumerate(num_samples.items()):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * noise.standard_normal(length), SAMPLE_RATE)
        lines.append(f"{utt_id} {path}\n")
    (folder / "wav.scp").write_text("".join(lines))


def save_quantizer(folder, dim, codebook_size=4, **provenance):
    """Save a random quantizer of 2 codebooks; return it and its path as a string."""
    from espnet_mvq.quantization import Quantizer

    codebooks = torch.randn(2, codebook_size, dim)
    quantizer = Quantizer(codebooks, provenance=provenance)
    path = str(folder / "quantizer.safetensors")
    quantizer.save(path)
    return quantizer, path


def save_hubert(folder, **sizes):
    """Save a HuBERT with random weights; return the name of the teacher."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(7)
    HubertModel(HubertConfig(**{**HUBERT_SIZES, **sizes})).save_pretrained(folder)
    return f"transformers/{folder}"


def python_environment(*folders):
    """Return the environment of a Python process that finds the package first."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, folders), str(ROOT)]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }


def run_python(*arguments, folders=(), **options):
    """Run a Python process and return it with its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=python_environment(*folders),
        capture_output=True,
        text=True,
        **options,
    )
