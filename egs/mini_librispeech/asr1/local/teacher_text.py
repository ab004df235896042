#!/usr/bin/env python3
"""Transcribe a test set with a Whisper teacher: the error that students aim at.

Hypotheses and references are normalised in the same way, by Whisper's normaliser for
English: numbers, contractions and punctuation have one form.
"""

import argparse
import logging
from pathlib import Path

import torch
from tqdm import tqdm

from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.teachers.audio import read_audio

SAMPLE_RATE = 16_000
MULTILINGUAL_SIZE = 51_865  # tokens of Whisper's smallest multilingual vocabulary


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Write OUTDIR/ref and OUTDIR/text, normalised. Greedy search.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--teacher", required=True, help="transformers/NAME_OR_DIR")
    parser.add_argument("--data_dir", required=True, help="Folder of wav.scp and text")
    parser.add_argument("--outdir", required=True, help="Folder to write")
    parser.add_argument("--ngpu", type=int, default=0, help="1: run on the GPU")
    return parser


@torch.inference_mode()
def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    from transformers import (
        AutoFeatureExtractor,
        AutoTokenizer,
        GenerationMixin,
        WhisperForConditionalGeneration,
    )
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    name = args.teacher.partition("/")[2]
    device = "cuda" if args.ngpu else "cpu"
    model = (
        WhisperForConditionalGeneration.from_pretrained(name).float().to(device).eval()
    )
    extractor = AutoFeatureExtractor.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    normalize = EnglishTextNormalizer({})
    # As for the task losses: a multilingual model is told language and task.
    language = {}
    if model.config.vocab_size >= MULTILINGUAL_SIZE:
        language = {"language": "english", "task": "transcribe"}
    tokenizer.set_prefix_tokens(predict_timestamps=False, **language)
    prefix = torch.tensor([tokenizer.prefix_tokens], device=device)
    hypotheses = []
    for utt_id, place in tqdm(read_scp(Path(args.data_dir) / "wav.scp").items()):
        waveform = read_audio(utt_id, place, SAMPLE_RATE).numpy()
        features = extractor(
            waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt"
        ).input_features
        # Not Whisper's own generate, which needs more than the model's weights.
        tokens = GenerationMixin.generate(
            model,
            features.to(device),
            decoder_input_ids=prefix,
            num_beams=1,
            do_sample=False,
            max_length=model.config.max_target_positions,
        )
        text = tokenizer.decode(tokens[0], skip_special_tokens=True)
        hypotheses.append(f"{utt_id} {normalize(text)}\n")
    references = [
        f"{utt_id} {normalize(text)}\n"
        for utt_id, text in read_scp(Path(args.data_dir) / "text").items()
    ]
    outdir = Path(args.outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    write_text(outdir / "ref", "".join(references))
    write_text(outdir / "text", "".join(hypotheses))
    logging.info(f"{outdir}/text: {len(hypotheses)} utterances")


if __name__ == "__main__":
    main()
