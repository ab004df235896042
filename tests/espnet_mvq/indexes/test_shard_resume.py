"""Shards that break off: what is whole stays, and nothing is there twice."""

import errno
import io

import kaldiio
import numpy as np
import pytest

from espnet_mvq.indexes import IndexMetadata, ShardWriter
from espnet_mvq.indexes import shard as module
from espnet_mvq.indexes.shard import ShardError, finished_shard, shard_paths

UTTERANCES = {f"utt{n}": np.full((5 + n, 2), n, dtype=np.uint8) for n in range(6)}


def metadata(**changes):
    values = dict(
        teacher="t@1",
        layer=3,
        quantizer_id="q",
        num_codebooks=2,
        codebook_size=8,
        sample_rate=16000,
        frame_shift_samples=320,
        frame_offset_samples=199.5,
    )
    return IndexMetadata(**{**values, **changes})


def write_all(outdir, utterances=UTTERANCES, **changes):
    """Write a shard to its end; return which utterances were there already."""
    with ShardWriter(outdir, 1, metadata(**changes), utterances) as shard:
        for utt_id, indexes in utterances.items():
            if utt_id not in shard.kept:
                shard.write(utt_id, indexes)
    return shard.kept


def break_off(outdir, after, **changes):
    with pytest.raises(KeyboardInterrupt):
        with ShardWriter(outdir, 1, metadata(**changes), UTTERANCES) as shard:
            for utt_id in list(UTTERANCES)[:after]:
                if utt_id not in shard.kept:
                    shard.write(utt_id, UTTERANCES[utt_id])
            raise KeyboardInterrupt


@pytest.fixture
def undisturbed(tmp_path):
    write_all(tmp_path / "undisturbed")
    return shard_paths(tmp_path / "undisturbed", 1)[0].read_bytes()


def check(outdir, undisturbed):
    """Check that a shard is whole, and only its files are there."""
    ark, scp, json = shard_paths(outdir, 1)
    assert ark.read_bytes() == undisturbed
    assert sorted(outdir.iterdir()) == sorted([ark, scp, json])
    found = kaldiio.load_scp(str(scp))
    assert list(found) == list(UTTERANCES)
    for utt_id, indexes in UTTERANCES.items():
        np.testing.assert_array_equal(found[utt_id], indexes)
    assert finished_shard(outdir, 1).num_utterances == 6
    assert finished_shard(outdir, 1).num_frames == sum(map(len, UTTERANCES.values()))


@pytest.mark.parametrize("after", [1, 3, 6])
def test_whole_utterances_are_kept(tmp_path, undisturbed, after):
    break_off(tmp_path / "s", after)
    assert finished_shard(tmp_path / "s", 1) is None
    assert write_all(tmp_path / "s") == list(UTTERANCES)[:after]
    check(tmp_path / "s", undisturbed)


def test_every_half_written_byte_is_written_again(tmp_path, undisturbed):
    """Wherever the file ends, the next run gives the same bytes."""
    break_off(tmp_path / "s", 2)
    ark = shard_paths(tmp_path / "s", 1)[0].with_suffix(".ark.tmp")
    json = ark.with_name("codebook_indexes.1.tmp.json")
    content, settings = ark.read_bytes(), json.read_text()
    first = content.index(b"utt1 ")  # bytes of the first utterance
    for length in range(len(content)):
        ark.write_bytes(content[:length])
        json.write_text(settings)
        kept = write_all(tmp_path / "s")
        assert kept == (["utt0"] if length >= first else [])
        check(tmp_path / "s", undisturbed)


def test_killed_between_the_renamings(tmp_path, undisturbed):
    break_off(tmp_path / "s", 6)
    ark, _, _ = shard_paths(tmp_path / "s", 1)
    ark.with_suffix(".ark.tmp").replace(ark)
    assert write_all(tmp_path / "s") == list(UTTERANCES)
    check(tmp_path / "s", undisturbed)


@pytest.mark.parametrize("change", [{"layer": 4}, {"encode": {"beam_size": 1}}])
def test_other_settings_start_anew(tmp_path, change):
    break_off(tmp_path / "s", 3)
    assert write_all(tmp_path / "s", **change) == []
    assert finished_shard(tmp_path / "s", 1).num_utterances == 6


def test_other_utterances_are_not_kept(tmp_path):
    break_off(tmp_path / "s", 3)
    utterances = {u: UTTERANCES[u] for u in ("utt0", "utt2", "utt3")}
    assert write_all(tmp_path / "s", utterances) == ["utt0"]
    assert finished_shard(tmp_path / "s", 1).num_utterances == 3


def test_broken_settings_start_anew(tmp_path, undisturbed):
    break_off(tmp_path / "s", 3)
    (tmp_path / "s" / "codebook_indexes.1.tmp.json").write_text("{")
    assert write_all(tmp_path / "s") == []
    check(tmp_path / "s", undisturbed)


def test_nothing_is_left_without_resuming(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with ShardWriter(tmp_path / "s", 1, metadata()) as shard:
            shard.write("utt0", UTTERANCES["utt0"])
            raise KeyboardInterrupt
    assert list((tmp_path / "s").iterdir()) == []


def test_second_writer_is_refused(tmp_path, undisturbed):
    with ShardWriter(tmp_path / "s", 1, metadata(), UTTERANCES) as shard:
        shard.write("utt0", UTTERANCES["utt0"])
        with pytest.raises(ShardError, match="another process is writing this shard"):
            write_all(tmp_path / "s")
        for utt_id in list(UTTERANCES)[1:]:
            shard.write(utt_id, UTTERANCES[utt_id])
    check(tmp_path / "s", undisturbed)


def test_full_disk_says_what_is_safe(tmp_path, undisturbed, monkeypatch):
    original = kaldiio.save_ark

    def save_ark(file, arrays, **options):
        if "utt3" in arrays:
            buffer = io.BytesIO()
            original(buffer, arrays, **options)
            file.write(buffer.getvalue()[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(file, arrays, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module.kaldiio, "save_ark", save_ark)
        with pytest.raises(ShardError, match="No space left.*the 3 utterances .* safe"):
            write_all(tmp_path / "s")
    assert write_all(tmp_path / "s") == ["utt0", "utt1", "utt2"]
    check(tmp_path / "s", undisturbed)


def test_pickled_content_is_not_loaded(tmp_path, undisturbed):
    """A record that is not a numpy array ends what is kept, unread."""
    break_off(tmp_path / "s", 1)
    ark = shard_paths(tmp_path / "s", 1)[0].with_suffix(".ark.tmp")
    with ark.open("ab") as file:
        file.write(b"utt1 PKLcos\nsystem\n(S'false'\ntR.")
    assert write_all(tmp_path / "s") == ["utt0"]
    check(tmp_path / "s", undisturbed)
