"""Frames are drawn over the whole corpus, and from all speakers alike."""

from collections import Counter

import pytest
import torch

from espnet_mvq.extraction.embedding_stream import embed_utterances
from espnet_mvq.extraction.frame_sampling import (
    draw_frames,
    sample_frames,
    sample_training_frames,
)
from espnet_mvq.extraction.selection import read_speakers, shuffle_over_speakers
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
    actual = list(embed_utterances(teacher, list(places), places, on_error="skip"))
    assert [utt_id for utt_id, _ in actual] == [u for u in places if u != "utt2"]
    assert "skipped: utterance utt2" in caplog.text
    frames = sample_frames(teacher, places, 10_000, on_error="skip")
    assert len(frames) == sum(len(embeddings) for _, embeddings in actual)


def test_utterances_are_either_trained_on_or_held_out(data_dir, teacher_dir):
    teacher = build_teacher(f"transformers/{teacher_dir}", 1)
    places = {f"utt{n}": f"{data_dir}/{n}.wav" for n in range(6)}
    speakers = {utt_id: f"spk{n % 2}" for n, utt_id in enumerate(places)}
    frames, held_out = sample_training_frames(
        teacher, places, 1000, 0, speakers=speakers
    )
    total = sum((6400 + 1600 * n - 400) // 320 + 1 for n in range(6))
    assert len(frames) + len(held_out) == total and len(held_out) >= 19
    assert torch.cdist(frames, held_out).min() > 0
    few, _ = sample_training_frames(teacher, places, 30, 0)
    assert few.shape == (30, 16)


def test_sample_knows_the_utterances():
    frames = torch.randn(240, 8)
    utterances = [(f"utt{n}", part) for n, part in enumerate(frames.split(40))]
    utterances += [("utt5", frames[:3])]  # a second piece
    sample = draw_frames(iter(utterances), 30)
    assert sample.frames.shape == (30, 8)
    assert (sample.num_seen, sample.num_utterances) == (243, 6)
    for frame, utt_id in zip(sample.frames, sample.utt_ids):
        own = torch.cat([part for name, part in utterances if name == utt_id])
        assert (own == frame).all(1).any()
    sample = draw_frames(iter(utterances), 30, stop_after=60)
    assert sample.num_seen == 80 and set(sample.utt_ids) == {"utt0", "utt1"}


def test_speakers_are_read_from_beside_wav_scp(tmp_path, caplog):
    caplog.set_level("INFO")
    assert read_speakers(None, str(tmp_path / "wav.scp")) is None
    assert "drawn without regard to it" in caplog.text
    (tmp_path / "utt2spk").write_text("a spk1\nb spk2\n")
    actual = read_speakers(None, str(tmp_path / "wav.scp"))
    assert actual == {"a": "spk1", "b": "spk2"}
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        read_speakers(str(tmp_path / "none"), str(tmp_path / "wav.scp"))
