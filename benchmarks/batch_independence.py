#!/usr/bin/env python3
"""How many codebook indexes change when utterances share a batch.

Real utterances of mixed lengths are embedded alone and in one batch, by Whisper's
encoder and by models of the shapes of HuBERT base and WavLM large with random weights,
the latter two through s3prl; a quantizer of each teacher turns both into indexes.

Example:
    python3 benchmarks/batch_independence.py --corpus .../LibriSpeech/dev-clean \
        --whisper transformers/openai/whisper-tiny.en
"""

import argparse
import logging
import tempfile
from typing import Dict, Iterator, Tuple

import torch
from embeddings import find_audio

from espnet_mvq.bin.options import add_logging_options, setup_logging
from espnet_mvq.extraction.selection import shuffle_over_speakers
from espnet_mvq.quantization import QuantizerTrainer
from espnet_mvq.teachers import Teacher, build_teacher
from espnet_mvq.teachers.audio import read_audio


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the script's options."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--corpus", required=True, help="folder with SPEAKER/CHAPTER/*.flac|opus|wav"
    )
    parser.add_argument("--whisper", help="transformers/NAME_OR_DIR of a Whisper")
    parser.add_argument("--utterances", type=int, default=16, help="in the batch")
    parser.add_argument("--num_codebooks", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--seed", type=int, default=0)
    add_logging_options(parser)
    return parser


def teachers(args: argparse.Namespace, folder: str) -> Iterator[Tuple[str, Teacher]]:
    """Yield name and teacher, one at a time: they are big."""
    if args.whisper:
        for window_s in (30, 0):
            name = f"{args.whisper}, window_s={window_s}"
            yield name, build_teacher(args.whisper, window_s=window_s)
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    hubert = f"{folder}/hubert-base-shaped"
    HubertModel(HubertConfig()).save_pretrained(hubert)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(hubert)
    yield "HuBERT base shape, s3prl", build_teacher(
        f"s3prl/hf_hubert_custom:{hubert}", 9
    )
    yield "WavLM large shape, s3prl", build_teacher(
        f"s3prl/wavlm_local:{save_wavlm_large(folder)}", 18
    )
    from transformers import WavLMConfig, WavLMModel

    config = WavLMConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    wavlm = f"{folder}/wavlm-large-shaped"
    WavLMModel(config).save_pretrained(wavlm)
    yield "WavLM large shape, transformers", build_teacher(f"transformers/{wavlm}", 18)


def save_wavlm_large(folder: str) -> str:
    """Save a WavLM of the large shape with random weights in its own format."""
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    settings = {
        "extractor_mode": "layer_norm",
        "encoder_layers": 24,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "layer_norm_first": True,
        "relative_position_embedding": True,
        "num_buckets": 320,
        "max_distance": 800,
        "gru_rel_pos": True,
        "normalize": True,
    }
    path = f"{folder}/wavlm_large.pt"
    model = WavLM(WavLMConfig(settings))
    torch.save({"cfg": vars(model.cfg), "model": model.state_dict()}, path)
    return path


def compare(
    teacher: Teacher, speech: Dict[str, torch.Tensor], args: argparse.Namespace
) -> Iterator[Tuple[int, int, float, float]]:
    """Yield for each N: batches, frames, equal indexes in %, greatest difference."""
    alone = torch.cat([teacher.embed_batch([w])[0] for w in speech.values()])
    sizes, forward = [], teacher._forward

    def counting(batch, lengths):
        sizes.append(len(batch))
        return forward(batch, lengths)

    teacher._forward = counting
    teacher.batch_samples = args.utterances * max(map(len, speech.values()))
    together = torch.cat(teacher.embed_batch(list(speech.values())))
    difference = float((together - alone).abs().max() / alone.std())
    for num_codebooks in args.num_codebooks:
        trainer = QuantizerTrainer(teacher.dim, num_codebooks, num_iterations=2)
        quantizer = trainer.fit(alone)
        equal = quantizer.encode(alone) == quantizer.encode(together)
        percent = 100 * float(equal.double().mean())
        yield num_codebooks, max(sizes), percent, difference


def main(cmd=None) -> None:
    """Run the script."""
    args = get_parser().parse_args(cmd)
    setup_logging(args)
    torch.manual_seed(args.seed)
    audio = find_audio(args.corpus)
    chosen = shuffle_over_speakers(list(audio), None, args.seed)[: args.utterances - 1]
    speech = {u: read_audio(u, audio[u], 16_000) for u in chosen}
    # One of a length that is there already, for models that batch by equal length
    length = len(speech[chosen[0]])
    longer = max(speech.values(), key=len)
    speech["cut"] = longer[:length]
    logging.info(
        f"{len(speech)} utterances of {len(set(map(len, speech.values())))} lengths"
    )
    print(
        "|teacher|bytes|largest batch|equal indexes, %|difference, std. dev.|\n"
        + "|---" * 5
        + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, teacher in teachers(args, folder):
            for n, size, percent, difference in compare(teacher, speech, args):
                print(f"|{name}|{n}|{size}|{percent:.3f}|{difference:.1e}|", flush=True)


if __name__ == "__main__":
    main()
