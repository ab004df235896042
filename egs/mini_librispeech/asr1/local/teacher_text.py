#!/usr/bin/env python3
"""Transcribe a test set with a Whisper teacher: the error that students aim at.

Hypotheses and references are normalised in the same way, by Whisper's normaliser for
English: numbers, contractions and punctuation have one form. Speech longer than
Whisper's window of 30 s is cut into equal parts.
"""

import argparse
import logging
import math
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from espnet_mvq.files.scp import read_scp
from espnet_mvq.files.whole_file import write_text
from espnet_mvq.teachers.audio import read_audio
from espnet_mvq.teachers.transformers import load_model, read_model_config
from espnet_mvq.teachers.transformers_task_loss import load_tokenizer
from espnet_mvq.teachers.whisper import load_whisper_features
from espnet_mvq.teachers.whisper_task_loss import find_prefix


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        description="Write OUTDIR/ref and OUTDIR/text, normalised. Greedy search.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--teacher", required=True, help="transformers/NAME_OR_DIR")
    parser.add_argument(
        "--language", help="Language of the speech, as en; for multilingual models"
    )
    parser.add_argument("--data_dir", required=True, help="Folder of wav.scp and text")
    parser.add_argument("--outdir", required=True, help="Folder to write")
    parser.add_argument("--ngpu", type=int, default=0, help="1: run on the GPU")
    return parser


@torch.inference_mode()
def transcribe(args: argparse.Namespace) -> None:
    """Write hypotheses and references.

    Raises:
        OSError: If a file is missing or cannot be written.
        ValueError: If the teacher is no Whisper or audio cannot be read.
    """
    from transformers import GenerationMixin, WhisperForConditionalGeneration
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spec, device = args.teacher, "cuda" if args.ngpu else "cpu"
    name, config = read_model_config(spec, spec.partition("/")[2])
    model = load_model(spec, WhisperForConditionalGeneration, name).to(device)
    extractor = load_whisper_features(spec, name, config)
    tokenizer = load_tokenizer(spec, name)
    prefix = find_prefix(spec, model, tokenizer, args.language or None)
    normalize = EnglishTextNormalizer({})
    rate = extractor.sampling_rate
    # The encoder halves the frames of the spectrogram.
    window_samples = 2 * extractor.hop_length * config.max_source_positions
    hypotheses = []
    for utt_id, place in tqdm(read_scp(Path(args.data_dir) / "wav.scp").items()):
        waveform = read_audio(utt_id, place, rate)
        texts = []
        for part in waveform.tensor_split(math.ceil(len(waveform) / window_samples)):
            features = extractor(
                part.numpy(),
                sampling_rate=rate,
                padding="max_length",
                max_length=window_samples,
                return_tensors="pt",
            ).input_features
            # Not Whisper's own generate, which needs more than the model's weights.
            tokens = GenerationMixin.generate(
                model,
                features.to(device),
                decoder_input_ids=torch.tensor([prefix], device=device),
                num_beams=1,
                do_sample=False,
                max_length=config.max_target_positions,
            )
            texts.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
        hypotheses.append(f"{utt_id} {normalize(' '.join(texts))}\n")
    references = [
        f"{utt_id} {normalize(text)}\n"
        for utt_id, text in read_scp(Path(args.data_dir) / "text").items()
    ]
    outdir = Path(args.outdir)
    outdir.mkdir(parents=True, exist_ok=True)
    write_text(outdir / "ref", "".join(references))
    write_text(outdir / "text", "".join(hypotheses))


def main(cmd=None) -> None:
    """Run the command."""
    args = get_parser().parse_args(cmd)
    try:
        transcribe(args)
    except (OSError, ValueError) as error:
        logging.error(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
