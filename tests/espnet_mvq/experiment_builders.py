"""Builders of finished trainings: logs, configurations, decoded sets."""

import yaml
from corpus_builders import change_json, write_shard, write_table

STARTED = "[vm] 2026-01-01 {time} (trainer:324) INFO: {n}/{total}epoch started\n"
BATCHES = (
    "[vm] 2026-01-01 {time} (trainer:811) INFO: {n}epoch:train:1-{batch}batch: "
    "iter_time=0.018, {train}, loss_scale=1.000, train_time=0.3\n"
)
EPOCH = (
    "[vm] 2026-01-01 {time} (trainer:394) INFO: {n}epoch results: [train] "
    "iter_time=0.018, {train}, loss_scale=1.000, optim0_lr0=2.000e-04, "
    "train_time={step_s}, time=58.68 seconds, total_count={steps}, [valid] {valid}, "
    "time=1.6 seconds, total_count=5, [att_plot] time=0 seconds, total_count=0\n"
)
ENDED = "# Ended (code 0) at Thu Jan  1 00:00:00 2026, elapsed time 209 seconds\n"


def stats_text(stats):
    """Write statistics as ESPnet does."""
    return ", ".join(f"{name}={value}" for name, value in stats.items())


def epoch_line(n, train, valid, step_s=0.3, time="00:00:00,000"):
    """Return the line of an epoch of 27 steps in ESPnet's log."""
    return EPOCH.format(
        n=n,
        train=stats_text(train),
        valid=stats_text({"cer_ctc": "nan", **valid}),
        step_s=step_s,
        steps=27 * n,
        time=time,
    )


def write_experiment(exp, epochs, data=(), texts=None, **config):
    """Write log, configuration and hypotheses of an experiment in exp/NAME.

    Args:
        exp: Experiment folder.
        epochs: Statistics of training and validation of each epoch.
        data: Additional training data, [path, name, type] each.
        texts: Hypotheses of decode_asr/test by utterance.
        config: Options of the training.
    """
    exp.mkdir(parents=True)
    lines = [epoch_line(n, *stats) for n, stats in enumerate(epochs, 1)]
    (exp / "train.log").write_text("".join(lines) + ENDED)
    text = [["dump/raw/dev/text", "text", "text"]]
    speech = [["dump/raw/train/wav.scp", "speech", "sound"], *data]
    paths = "{}_data_path_and_name_and_type".format
    content = {paths("train"): speech, paths("valid"): text, **config}
    (exp / "config.yaml").write_text(yaml.safe_dump(content))
    if texts:
        folder = exp / "decode_asr" / "test"
        parts = folder / "logdir" / "output.1" / "1best_recog"
        parts.mkdir(parents=True)
        for path in (folder, parts):
            write_table(path / "text", texts)
    return exp


def write_result(exp, name, **result):
    """Write a result.json of score.py below an experiment."""
    path = exp / "decode_asr" / name / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    change_json(path, {"num_tokens": 8, "num_sentences": 3, **result})


def write_indexes(recipe, quantizer, metadata, arrays):
    """Store a quantizer and codebook indexes as mvq.sh does; return the scp's path."""
    shards = recipe / "dump" / "mvq" / "own" / "train"
    data = recipe / "dump" / "raw" / "train"
    for folder in (shards, data):
        folder.mkdir(parents=True, exist_ok=True)
    quantizer.save(shards.with_name("quantizer.safetensors"))
    metadata.quantizer_id = quantizer.id
    _, scp, _ = write_shard(shards, arrays, metadata)
    (data / "codebook_indexes.scp").write_text(scp.read_text())
    metadata.num_utterances = len(arrays)
    metadata.num_frames = sum(map(len, arrays.values()))
    metadata.save(data / "codebook_indexes.json")
    return "dump/raw/train/codebook_indexes.scp"
