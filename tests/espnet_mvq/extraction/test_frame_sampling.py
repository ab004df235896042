"""Frames are drawn over the whole corpus, and from all speakers alike."""

from collections import Counter

import pytest
import torch

from espnet_mvq.bin.train_quantizer import collect_frames
from espnet_mvq.extraction.frame_sampling import (
    embed_utterances,
    read_speakers,
    sample_frames,
    shuffle_over_speakers,
)
from espnet_mvq.teachers import build_teacher
from espnet_mvq.teachers.audio import AudioError

# Speaker 0 has 90 utterances, speakers 1 to 9 have one each
SPEAKERS = {f"utt{n:02d}": f"spk{max(0, n - 89)}" for n in range(99)}


def test_first_utterances_cover_all_speakers():
    order = shuffle_over_speakers(list(SPEAKERS), SPEAKERS, seed=0)
    assert sorted(order) == sorted(SPEAKERS)
    assert len({SPEAKERS[utt_id] for utt_id in order[:10]}) == 10


def test_seed_decides_not_the_order_of_the_file():
    order = shuffle_over_speakers(list(SPEAKERS), SPEAKERS, seed=0)
    assert order == shuffle_over_speakers(sorted(SPEAKERS)[::-1], SPEAKERS, seed=0)
    assert order != shuffle_over_speakers(list(SPEAKERS), SPEAKERS, seed=1)


@pytest.mark.parametrize("speakers", [None, {}, {"utt00": "spk"}])
def test_utterances_without_a_speaker_are_just_shuffled(speakers):
    order = shuffle_over_speakers(list(SPEAKERS), speakers, seed=0)
    assert sorted(order) == sorted(SPEAKERS) and order != sorted(SPEAKERS)


def test_turns_go_round_all_speakers():
    speakers = {f"utt{n}": f"spk{n % 4}" for n in range(40)}
    order = shuffle_over_speakers(list(speakers), speakers, seed=3)
    for turn in range(10):
        turn_of = [speakers[utt_id] for utt_id in order[4 * turn : 4 * turn + 4]]
        assert Counter(turn_of) == Counter(f"spk{n}" for n in range(4))


def test_more_oversampling_takes_frames_from_more_utterances(
    data_dir, teacher_dir, caplog
):
    caplog.set_level("INFO")
    teacher = build_teacher(f"transformers/{teacher_dir}", 1)
    places = {f"utt{n}": f"{data_dir}/{n}.wav" for n in range(6)}
    few = sample_frames(teacher, places, 20, oversampling=1)
    many = sample_frames(teacher, places, 20, oversampling=4)
    assert few.shape == many.shape == (20, teacher.dim)
    used = [int(r.getMessage().split(" in ")[1].split()[0]) for r in caplog.records]
    assert used[0] < used[1]


def test_unusable_audio_stops_or_is_skipped(data_dir, teacher_dir, caplog):
    teacher = build_teacher(f"transformers/{teacher_dir}", 1)
    places = {f"utt{n}": f"{data_dir}/{n}.wav" for n in range(6)}
    places["utt2"] = f"{data_dir}/gone.wav"
    with pytest.raises(AudioError, match="utterance utt2: could not read"):
        sample_frames(teacher, places, 10_000)
    found = list(embed_utterances(teacher, list(places), places, on_error="skip"))
    assert [utt_id for utt_id, _ in found] == [u for u in places if u != "utt2"]
    assert "skipped: utterance utt2" in caplog.text
    frames = sample_frames(teacher, places, 10_000, on_error="skip")
    assert len(frames) == sum(len(embeddings) for _, embeddings in found)


def test_held_out_frames_are_of_other_utterances(data_dir, teacher_dir):
    teacher = build_teacher(f"transformers/{teacher_dir}", 1)
    places = {f"utt{n}": f"{data_dir}/{n}.wav" for n in range(6)}
    speakers = {utt_id: f"spk{n % 2}" for n, utt_id in enumerate(places)}
    frames, held_out = collect_frames(teacher, places, 1000, 0, speakers)
    assert torch.cdist(frames, held_out).min() > 0


def test_speakers_are_read_from_beside_wav_scp(tmp_path, caplog):
    caplog.set_level("INFO")
    assert read_speakers(None, str(tmp_path / "wav.scp")) is None
    assert "drawn without regard to it" in caplog.text
    (tmp_path / "utt2spk").write_text("a spk1\nb spk2\n")
    found = read_speakers(None, str(tmp_path / "wav.scp"))
    assert found == {"a": "spk1", "b": "spk2"}
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        read_speakers(str(tmp_path / "none"), str(tmp_path / "wav.scp"))
