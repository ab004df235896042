#!/usr/bin/env python3
"""Train the small HuBERT-shaped teacher of the demo recipe from scratch.

The recipe ships the result, so this script is needed only to change it. It has two
stages that suit one CPU core. First the convolutions learn to tell the log-mel
spectrum from the waveform, which connectionist temporal classification (CTC) alone
learns slowly. Then their outputs are computed once, and the transformer learns CTC on
characters from them. The CTC head stays in the working directory.
"""

import argparse
import logging
import random
from pathlib import Path
from typing import List, Optional, Tuple

import numpy as np
import soundfile
import torch
import torchaudio
from safetensors.torch import load_file, save_file
from torch.nn.functional import ctc_loss, mse_loss
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import OneCycleLR
from torchaudio.functional import edit_distance, resample
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

RATE = 16000
# Index 0 is the CTC blank.
CHARACTERS = "_ 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CONFIG = Path(__file__).resolve().parent.parent / "teacher" / "config.json"
NUMBERS = (
    ("front_steps", 700, "Steps of the first stage"),
    ("num_steps", 9000, "Steps of the second stage"),
    ("plain_steps", 5500, "Steps before it uses dropout and augmentation"),
    ("dropout", 0.1, "Dropout of the transformer"),
    ("batch_size", 5, "Utterances of a batch of the second stage"),
    ("lr", 1.2e-3, "Learning rate of the second stage"),
    ("warmup_steps", 300, "Warm-up of the second stage"),
    ("seed", 0, "Seed of weights and batches"),
)
Utterance = Tuple[Path, str]


def read_set(set_dir: Path) -> List[Utterance]:
    """Return audio path and text of all utterances in LibriSpeech layout."""
    utts = []
    for trans in sorted(set_dir.rglob("*.trans.txt")):
        audio = {p.stem: p for p in trans.parent.iterdir() if p.suffix != ".txt"}
        for line in trans.read_text(encoding="utf-8").splitlines():
            utt, text = line.split(maxsplit=1)
            utts.append((audio[utt], text))
    if not utts:
        raise SystemExit(f"{set_dir} has no *.trans.txt, expected some: make it")
    return utts


def load_audio(path: Path, percent: int = 100) -> torch.Tensor:
    """Return samples (num_samples,) of zero mean and unit variance, sped up."""
    audio, rate = soundfile.read(path, dtype="float32")
    if rate != RATE:
        raise ValueError(f"{path} has {rate} Hz, expected {RATE} Hz: resample it")
    wave = resample(torch.from_numpy(audio), percent, 100)
    # As Wav2Vec2FeatureExtractor does with do_normalize.
    return (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt()


def build_model(args: argparse.Namespace) -> HubertModel:
    """Return a model with random weights as a config.json describes it."""
    config = HubertConfig.from_json_file(args.config)
    config.hidden_dropout = config.attention_dropout = args.dropout
    # Fused attention trains several times slower than this on CPUs without AVX-512.
    config._attn_implementation = "eager"
    return HubertModel(config)


def train_front_end(model: HubertModel, utts: List[Utterance], args) -> None:
    """Let the convolutions learn to give the log-mel spectrum.

    The receptive field of a frame is 25 ms; its target is two mel spectra of 15 ms,
    10 ms apart, which together cover just that.
    """
    conv = model.feature_extractor
    mel = torchaudio.transforms.MelSpectrogram(
        RATE, n_fft=240, hop_length=160, n_mels=40, f_min=60, center=False
    )
    readout = torch.nn.Linear(model.config.conv_dim[-1], 80)
    params = [*conv.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(params)
    schedule = OneCycleLR(optimizer, 3e-3, args.front_steps, pct_start=0.15)
    for step in range(args.front_steps):
        starts = [(path, random.randrange(8000)) for path, _ in random.sample(utts, 12)]
        # (batch, num_samples)
        wave = torch.stack([load_audio(path)[i : i + RATE] for path, i in starts])
        logmel = (mel(wave) + 1e-2).log().transpose(1, 2)  # (batch, 2 * frames, 40)
        target = logmel[:, : logmel.size(1) // 2 * 2].reshape(len(wave), -1, 80)
        target = (target - target.mean((0, 1))) / target.std((0, 1))
        guess = readout(conv(wave).transpose(1, 2))  # (batch, frames, 80)
        loss = mse_loss(guess, target[:, : guess.size(1)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            logging.info(f"front end: step {step}, relative error {loss.item():.3f}")


@torch.no_grad()
def compute_features(model: HubertModel, utts: List[Utterance], speeds=(100,)):
    """Return the convolutions' output (frames, conv_dim), float16, per utterance.

    One of ``speeds`` (percent) is drawn for each; it shifts pitch and formants, too.
    """
    waves = (load_audio(path, random.choice(speeds))[None] for path, _ in utts)
    return [model.feature_extractor(wave)[0].T.half().contiguous() for wave in waves]


def batches_by_length(lengths: List[int], size: int) -> List[List[int]]:
    """Return shuffled batches of indexes; lengths within a batch are alike."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i] + random.random() * 8)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    random.shuffle(batches)
    return batches


def encode(model: HubertModel, feats: List[torch.Tensor], augment: bool = False):
    """Run the transformer over cached features of several utterances.

    Args:
        model: Teacher.
        feats: (frames, conv_dim) of each utterance.
        augment: Add noise to the features and hide stretches of them.

    Returns:
        Hidden states: the input of each layer and the normalized output, all
        (batch, frames, hidden_size). And the lengths (batch,).
    """
    lengths = torch.tensor([len(feat) for feat in feats])
    padded = pad_sequence([feat.float() for feat in feats], batch_first=True)
    mask = torch.arange(padded.size(1)) < lengths[:, None]
    if augment:
        padded = padded + 0.2 * padded.std() * torch.randn_like(padded)
    hidden = model.feature_projection(padded)
    for i, feat in enumerate(2 * feats if augment else []):
        start = random.randrange(len(feat))
        hidden[i % len(feats), start : start + random.randint(0, 8)] = 0.0
    states: List[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        for layer in model.encoder.layers
    ]
    states.append(model.encoder(hidden, attention_mask=mask).last_hidden_state)
    for hook in hooks:
        hook.remove()
    return states, lengths


def character_loss(logits: torch.Tensor, lengths: torch.Tensor, texts: List[str]):
    """Return the CTC loss per character of logits (batch, frames, characters)."""
    labels = [torch.tensor([CHARACTERS.index(c) for c in text]) for text in texts]
    sizes = torch.tensor([len(label) for label in labels])
    scores = logits.log_softmax(-1).transpose(0, 1)
    return ctc_loss(scores, torch.cat(labels), lengths, sizes, zero_infinity=True)


def train_encoder(model: HubertModel, head, utts, feats, args) -> None:
    """Train transformer and CTC head on cached features.

    Args:
        model: Teacher.
        head: CTC head.
        utts: Utterances and again the utterances.
        feats: Their features (frames, conv_dim): plain ones, then perturbed ones.
        args: Options.
    """
    parts = torch.nn.ModuleList([model.feature_projection, model.encoder, head])
    optimizer = torch.optim.AdamW(parts.parameters(), lr=args.lr, betas=(0.9, 0.98))
    todo, losses = [], []
    for step in range(args.num_steps):
        regular = step >= args.plain_steps
        parts.train(regular)
        if not todo:
            usable = feats if regular else feats[: len(feats) // 2]
            todo = batches_by_length([len(f) for f in usable], args.batch_size)
        batch = todo.pop()
        warmth = min((step + 1) / args.warmup_steps, 1.0)
        optimizer.param_groups[0]["lr"] = args.lr * warmth * (1 - step / args.num_steps)
        states, lengths = encode(model, [feats[i] for i in batch], regular)
        loss = character_loss(head(states[-1]), lengths, [utts[i][1] for i in batch])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            logging.info(f"step {step + 1}, loss {np.mean(losses[-100:]):.3f}")


@torch.no_grad()
def error_rates(model: HubertModel, heads: dict, utts, feats) -> dict:
    """Return layer: (word, character) error rates in % of greedy decoding."""
    counts = {layer: np.zeros(4) for layer in heads}
    for (_, text), feat in zip(utts, feats):
        states, _ = encode(model, [feat])
        for layer, head in heads.items():
            path = head(states[layer])[0].argmax(-1).unique_consecutive()
            guess = "".join(CHARACTERS[i] for i in path if i)
            words = (guess.split(), text.split())
            wrong = edit_distance(*words), edit_distance(list(guess), list(text))
            counts[layer] += [wrong[0], len(words[1]), wrong[1], len(text)]
    return {k: (100 * v[0] / v[1], 100 * v[2] / v[3]) for k, v in counts.items()}


def probe_layers(model: HubertModel, corpus: Path) -> None:
    """Log how well a linear CTC probe on the demo train set does for each layer."""
    sets = {name: read_set(corpus / name) for name in ("train", "test")}
    feats = {name: compute_features(model, utts) for name, utts in sets.items()}
    size, layers = model.config.hidden_size, range(model.config.num_hidden_layers + 1)
    heads = {layer: torch.nn.Linear(size, len(CHARACTERS)) for layer in layers}
    params = [p for head in heads.values() for p in head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=5e-3)
    for _ in range(6):
        for batch in batches_by_length([len(f) for f in feats["train"]], 16):
            with torch.no_grad():
                states, lengths = encode(model, [feats["train"][i] for i in batch])
            texts = [sets["train"][i][1] for i in batch]
            optimizer.zero_grad()
            for layer, head in heads.items():
                character_loss(head(states[layer]), lengths, texts).backward()
            optimizer.step()
    for layer, rate in error_rates(model, heads, sets["test"], feats["test"]).items():
        logging.info(f"layer {layer}: WER %.2f %%, CER %.2f %%" % rate)


def export(model: HubertModel, outdir: Path) -> None:
    """Write the model in float16; config.json has it loaded as float32."""
    model.config.hidden_dropout = model.config.attention_dropout = 0.0
    model.save_pretrained(outdir)
    path = outdir / "model.safetensors"
    weights = {name: weight.half() for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)
    Wav2Vec2FeatureExtractor(
        sampling_rate=RATE, do_normalize=True, return_attention_mask=True
    ).save_pretrained(outdir)


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Train the teacher of the demo recipe",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--train_set", type=str, required=True, help="Set made by make_corpus.py")
    add("--demo_corpus", type=str, required=True, help="Corpus of the recipe")
    add("--workdir", type=str, required=True, help="First stage; reused if there")
    add("--outdir", type=str, required=True, help="Where the teacher goes")
    add("--config", type=str, default=str(CONFIG), help="Shape of the model")
    for name, value, text in NUMBERS:
        add(f"--{name}", type=type(value), default=value, help=text)
    return parser


def main(cmd: Optional[List[str]] = None) -> None:
    """Train, measure and export the teacher."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # So small a model gains little from more threads, and loses on a busy machine.
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    workdir, corpus = Path(args.workdir), Path(args.demo_corpus)
    workdir.mkdir(parents=True, exist_ok=True)
    utts = read_set(Path(args.train_set))
    model, front = build_model(args), workdir / "front_end.pt"
    if not front.exists():
        train_front_end(model, utts, args)
        weights = model.feature_extractor.state_dict()
        both = [compute_features(model, utts, s) for s in ([100], range(84, 118, 2))]
        torch.save({"weights": weights, "feats": both[0] + both[1]}, front)
    saved = torch.load(front)
    model.feature_extractor.load_state_dict(saved["weights"])
    head = torch.nn.Linear(model.config.hidden_size, len(CHARACTERS))
    train_encoder(model, head, 2 * utts, saved["feats"], args)
    export(model.eval(), Path(args.outdir))
    torch.save(head.state_dict(), workdir / "head.pt")
    for name in ("dev", "test"):
        some = read_set(corpus / name)
        rates = error_rates(model, {-1: head}, some, compute_features(model, some))
        logging.info(f"{name}: WER %.2f %%, CER %.2f %%" % rates[-1])
    probe_layers(model, corpus)


if __name__ == "__main__":
    main()
