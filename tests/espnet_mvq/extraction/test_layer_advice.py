"""Advice on a teacher of which one layer is known to spell the text."""

import json
import random

import numpy as np
import pytest
import soundfile
import torch
from builders import FRAMES
from corpus_builders import write_table

from espnet_mvq.extraction.layer_advice import advise, can_be_read
from espnet_mvq.teachers import Teacher

LETTERS = "abcd "
WORDS = ["abba", "dad", "cab", "bad", "add", "dab"]
OPTIONS = {"num_codebooks": 2, "codebook_size": 4}


class ToneTeacher(Teacher):
    """Layer 0 is noise, layer 1 hears the tones that spell the text, layer 2 noise."""

    spec, id, layer, dim = "tones/test", "tones/test@1", 2, 256
    device = torch.device("cpu")
    layers = [0, 1, 2]

    def __init__(self):
        vars(self).update(FRAMES)
        self._generator = torch.Generator().manual_seed(0)

    def _forward(self, speech, speech_lengths):
        embeddings, lengths = self._forward_layers(speech, speech_lengths)
        return embeddings[:, :, -1], lengths

    def _forward_layers(self, speech, speech_lengths):
        windows = speech.unfold(1, 320, 320)
        spectra = torch.fft.rfft(windows).abs()[..., 8:72:8]  # 400, 800 ... Hz
        silence = torch.full_like(spectra, 10.0)  # larger than all else in a pause
        spectra = torch.cat([spectra, silence], dim=2).repeat(1, 1, 16)
        noise = torch.randn(2, *spectra.shape, generator=self._generator)
        states = torch.stack([noise[0], spectra, noise[1]], dim=2)
        return states, speech_lengths // 320


def write_tones(folder, num_speakers=6, num_each=4):
    """Write utterances of three words, a tone of 80 ms and a pause for each letter."""
    chooser, texts, speakers, places = random.Random(0), {}, {}, {}
    folder.mkdir()
    for n in range(num_speakers * num_each):
        utt_id, text = f"u{n:02}", " ".join(chooser.choices(WORDS, k=3))
        tones = []
        for letter in text:
            frequency = 400 * (1 + LETTERS.index(letter))
            tones += [np.sin(2 * np.pi * frequency * np.arange(1280) / 16000)]
            tones += [np.zeros(640)]
        samples = 0.5 * np.concatenate(tones)
        samples += 0.005 * np.random.default_rng(n).standard_normal(len(samples))
        places[utt_id] = folder / f"{utt_id}.wav"
        soundfile.write(places[utt_id], samples, 16000)
        texts[utt_id], speakers[utt_id] = text, f"s{n % num_speakers}"
    write_table(folder / "wav.scp", places)
    write_table(folder / "text", texts)
    write_table(folder / "utt2spk", speakers)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tones(tmp_path_factory.mktemp("tones") / "data")


def run(data, folder, **options):
    """Run it; return the content of advice.json."""
    asked = []

    def load(layer):
        asked.append(layer)
        return ToneTeacher()

    text = advise(load, data, folder, minutes=0.5, **{**OPTIONS, **options})
    assert (folder / "advice.md").read_text() == text
    assert (folder / "advice.png").read_bytes().startswith(b"\x89PNG")
    return {**json.loads((folder / "advice.json").read_text()), "asked": asked}


def test_the_layer_that_spells_the_text_is_found(data, tmp_path):
    content = run(data, tmp_path / "new" / "folder")
    first, second = content["scores"]
    assert content["asked"] == [-1] and content["format"] == "espnet_mvq.layer_advice"
    assert (first["layer"], second["layer"]) == (1, 2)
    assert first["error_rate"] < 0.05 and second["error_rate"] > 0.5
    assert first["log_mel_nats"] > second["log_mel_nats"] + 0.3
    assert first["quantizer_error"] < second["quantizer_error"]
    assert 0.8 < second["reversal_ratio"] < 1.2
    assert content["verdict"]["layers"] == [1]
    assert "23 utterances of 6 speakers" in content["speech"]
    assert "of other speakers held out" in content["speech"]


def test_same_seed_same_advice(data, tmp_path):
    contents = [run(data, tmp_path / n, layers=[1], seed=3) for n in ("a", "b")]
    assert contents[0] == contents[1] and contents[0]["asked"] == [1]


def test_layers_are_chosen_and_counted_as_elsewhere(data, tmp_path):
    content = run(data, tmp_path, layers=[-1, 0])
    assert content["asked"] == [-1]
    assert [score["layer"] for score in content["scores"]] == [0, 2]
    with pytest.raises(ValueError, match="got layer -2, expected some of 0, 1, 2"):
        run(data, tmp_path, layers=[2, -2])


def test_without_a_text(data, tmp_path):
    (tmp_path / "wav.scp").write_bytes((data / "wav.scp").read_bytes())
    content = run(tmp_path, tmp_path / "advice")
    assert content["log_mel_error_rate"] is None
    assert content["scores"][0]["error_rate"] is None
    assert "CER" not in (tmp_path / "advice" / "advice.md").read_text()
    assert "of unknown speakers held out" in content["speech"]
    assert content["verdict"]["teacher"] == "refuse"


def test_text_of_other_utterances_is_refused(data, tmp_path):
    (tmp_path / "wav.scp").write_bytes((data / "wav.scp").read_bytes())
    write_table(tmp_path / "text", {"x1": "a", "x2": "b"})
    with pytest.raises(ValueError, match="no utterance in common"):
        run(tmp_path, tmp_path / "advice")


def test_utterances_with_a_text_are_used_if_there_are_any(data, tmp_path):
    (tmp_path / "wav.scp").write_bytes((data / "wav.scp").read_bytes())
    lines = (data / "text").read_text().splitlines()
    texts = [line if n % 3 else line.split()[0] for n, line in enumerate(lines)]
    (tmp_path / "text").write_text("\n".join(texts) + "\n")
    content = run(tmp_path, tmp_path / "advice")
    assert " 16 utterances" in content["speech"]
    assert content["scores"][0]["error_rate"] is not None


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["ab" * 20], True),
        (["ab" * 20 + "c" * 10], True),  # 80 %
        (["ab" * 20 + "c" * 11], False),
        (["".join(map(chr, range(0x4E00, 0x4E80)))] * 19, False),
        ([], False),
    ],
)
def test_characters_have_to_occur_often(texts, expected, caplog):
    assert can_be_read(texts) == expected
    assert ("compared without the text" in caplog.text) != expected
