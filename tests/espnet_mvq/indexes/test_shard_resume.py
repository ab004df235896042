"""Interrupted shards: whole utterances are kept, none is written twice."""

import errno
import fcntl
import io
import itertools
import os
import shutil
import sys
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from builders import index_metadata

from espnet_mvq.indexes import ShardWriter
from espnet_mvq.indexes import shard as module
from espnet_mvq.indexes.shard import finished_shard, shard_paths

UTTERANCES = {f"utt{n}": np.full((5 + n, 2), n, dtype=np.uint8) for n in range(6)}


def metadata(**changes):
    changes = {"quantizer_id": "q", **changes}
    return index_metadata(codebook_size=8, layer=3, **changes)


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
    loaded = kaldiio.load_scp(str(scp))
    assert list(loaded) == list(UTTERANCES)
    for utt_id, indexes in UTTERANCES.items():
        np.testing.assert_array_equal(loaded[utt_id], indexes)
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


OF_B = {utt_id: 7 - indexes for utt_id, indexes in UTTERANCES.items()}
BYTES = {"q": UTTERANCES, "b": OF_B}  # by quantizer


def write_until(outdir, number, quantizer_id):
    """Write a shard in a process that is killed before its n-th act on a file."""
    pid = os.fork()
    if pid == 0:
        acts = itertools.count(1)

        def hook(event, args):
            acts_on_file = event in ("open", "os.rename", "os.remove")
            if acts_on_file and str(outdir) in str(args[0]) and next(acts) == number:
                os._exit(9)

        try:
            sys.addaudithook(hook)
            write_all(outdir, BYTES[quantizer_id], quantizer_id=quantizer_id)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def assert_not_mixed(outdir, whole):
    """Check that a shard that counts as finished has its own quantizer's bytes."""
    loaded = finished_shard(outdir, 1)
    if loaded is not None:
        assert shard_paths(outdir, 1)[0].read_bytes() == whole[loaded.quantizer_id]


@pytest.mark.parametrize("start", ["nothing", "finished", "broken off"])
def test_killed_at_any_moment_settings_are_never_mixed(tmp_path, undisturbed, start):
    """First A, then B, killed at each act; A, killed too, or nothing; then either."""
    outdir, saved = tmp_path / "s", [tmp_path / "saved0", tmp_path / "saved1"]
    outdir.mkdir()
    write_all(tmp_path / "b", OF_B, quantizer_id="b")
    of_b = shard_paths(tmp_path / "b", 1)[0].read_bytes()
    whole = {"q": undisturbed, "b": of_b}
    if start == "finished":
        write_all(outdir)
    elif start == "broken off":
        break_off(outdir, 3)
    shutil.copytree(outdir, saved[0])

    def back_to(folder):
        shutil.rmtree(outdir)
        shutil.copytree(folder, outdir)

    for first in itertools.count(1):
        back_to(saved[0])
        status = write_until(outdir, first, "b")
        assert_not_mixed(outdir, whole)
        shutil.rmtree(saved[1], ignore_errors=True)
        shutil.copytree(outdir, saved[1])
        for second in (0, 1 + 5 * first % 13) if start == "finished" else (0,):
            for then in ("q", "b"):
                back_to(saved[1])
                if second:
                    write_until(outdir, second, "q")
                    assert_not_mixed(outdir, whole)
                write_all(outdir, BYTES[then], quantizer_id=then)
                ark, scp, json = shard_paths(outdir, 1)
                assert ark.read_bytes() == whole[then]
                assert sorted(outdir.iterdir()) == sorted([ark, scp, json])
                assert_not_mixed(outdir, whole)
        if status == 0:
            break
    assert first > 8


def test_killed_at_the_end_all_utterances_are_kept(tmp_path, undisturbed):
    """From the ark's renaming on, nothing is written again."""
    statuses, kept = [], []
    for number in itertools.count(1):
        outdir = tmp_path / str(number)
        statuses.append(write_until(outdir, number, "q"))
        if finished_shard(outdir, 1) is not None:
            break
        kept.append(len(write_all(outdir)))
        check(outdir, undisturbed)
    assert set(statuses) == {9}
    assert set(kept) == {0, 6} and kept == sorted(kept) and kept.count(6) >= 5


def test_ark_of_other_settings_is_not_taken_over(tmp_path):
    """A finished; of B only the settings are left."""
    write_all(tmp_path / "s")
    break_off(tmp_path / "s", 3, quantizer_id="b")
    ark = shard_paths(tmp_path / "s", 1)[0]
    ark.with_suffix(".ark.tmp").unlink()
    assert ark.is_file() and ark.with_name("codebook_indexes.1.tmp.json").is_file()
    assert write_all(tmp_path / "s", OF_B, quantizer_id="b") == []
    write_all(tmp_path / "b", OF_B, quantizer_id="b")
    assert ark.read_bytes() == shard_paths(tmp_path / "b", 1)[0].read_bytes()


def test_shard_that_another_writer_ends_meanwhile(tmp_path, undisturbed, monkeypatch):
    """The file that was opened is the finished ark by the time it is locked."""
    flock = fcntl.flock

    def late(file, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        write_all(tmp_path / "s")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    write_all(tmp_path / "s")
    check(tmp_path / "s", undisturbed)


def test_skipped_utterances_are_added_to_a_finished_shard(tmp_path, undisturbed):
    """Only to that of the same utterances."""
    with ShardWriter(tmp_path / "s", 1, metadata(), UTTERANCES) as shard:
        for utt_id in list(UTTERANCES)[:5]:
            shard.write(utt_id, UTTERANCES[utt_id])
        shard.metadata.skipped.append("utt5")
    shutil.copytree(tmp_path / "s", tmp_path / "other")
    assert write_all(tmp_path / "s") == list(UTTERANCES)[:5]
    check(tmp_path / "s", undisturbed)
    others = {f"utt{n}": UTTERANCES[f"utt{n}"] for n in (0, 1, 2, 5)}
    assert write_all(tmp_path / "other", others) == []


@pytest.mark.parametrize("change", [{"teacher": "other"}, {"encode": {"beam_size": 1}}])
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
        with pytest.raises(ValueError, match="another process is writing it"):
            write_all(tmp_path / "s")
        for utt_id in list(UTTERANCES)[1:]:
            shard.write(utt_id, UTTERANCES[utt_id])
    check(tmp_path / "s", undisturbed)


def without_locks(monkeypatch):
    """Make flock do nothing, as on Lustre that is mounted with localflock."""
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)


def test_two_writers_without_locks_are_noticed(tmp_path, undisturbed, monkeypatch):
    """Both end with an error that says why, and the next run starts anew."""
    without_locks(monkeypatch)
    writer = (tmp_path / "s", 1)
    with pytest.raises(ValueError, match="got other bytes .* end the other job"):
        with ShardWriter(*writer, metadata(), UTTERANCES) as first:
            first.write("utt0", UTTERANCES["utt0"])
            with ShardWriter(*writer, metadata(), UTTERANCES) as second:
                assert second.kept == ["utt0"]
                second.write("utt1", UTTERANCES["utt1"])
                with pytest.raises(ValueError, match="got other bytes than this job"):
                    first.write("utt1", UTTERANCES["utt1"])
            # The end of the second writer raises, and that error ends the first one.
    assert list((tmp_path / "s").iterdir()) == []
    assert write_all(tmp_path / "s") == []
    check(tmp_path / "s", undisturbed)


def test_bytes_of_another_writer_do_not_get_the_name_of_a_shard(tmp_path, monkeypatch):
    """Those that it overwrote too, as network file systems allow."""
    without_locks(monkeypatch)
    with pytest.raises(ValueError, match="got other bytes than this job wrote"):
        with ShardWriter(tmp_path / "s", 1, metadata(), UTTERANCES) as shard:
            for utt_id, indexes in UTTERANCES.items():
                shard.write(utt_id, indexes)
            with (
                shard_paths(tmp_path / "s", 1)[0]
                .with_suffix(".ark.tmp")
                .open("r+b") as file
            ):
                file.write(b"u")
                file.seek(-1, os.SEEK_END)
                file.write(b"\1")
    assert list((tmp_path / "s").iterdir()) == []


class FullAfterUtt2(io.BufferedRandom):
    """File on a disk that is full in the middle of a record."""

    def write(self, content):
        if b"utt3" in content:
            super().write(content[:20])
            self.flush()
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_full_disk_keeps_written_utterances(tmp_path, undisturbed, monkeypatch):
    open_locked = module.open_locked
    with monkeypatch.context() as patch:
        patch.setattr(
            module,
            "open_locked",
            lambda path: FullAfterUtt2(open_locked(path).detach()),
        )
        with pytest.raises(ValueError, match="No space left.*the 3 utterances .* safe"):
            write_all(tmp_path / "s")
    assert write_all(tmp_path / "s") == ["utt0", "utt1", "utt2"]
    check(tmp_path / "s", undisturbed)


@pytest.mark.parametrize("end", ["1.ark", "1.scp", "1.json"])
def test_full_disk_at_the_end_of_a_shard(tmp_path, undisturbed, monkeypatch, end):
    replace = Path.replace

    def full(path, target):
        if str(target).endswith(f".{end}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(
            ValueError, match=r"s/codebook_indexes.1.ark: .*No space.*utterances are k"
        ):
            write_all(tmp_path / "s")
    assert write_all(tmp_path / "s") == list(UTTERANCES)
    check(tmp_path / "s", undisturbed)


def test_pickled_content_is_not_loaded(tmp_path, undisturbed):
    """Utterances are kept up to the first record that is no numpy array."""
    break_off(tmp_path / "s", 1)
    ark = shard_paths(tmp_path / "s", 1)[0].with_suffix(".ark.tmp")
    with ark.open("ab") as file:
        file.write(b"utt1 PKLcos\nsystem\n(S'false'\ntR.")
    assert write_all(tmp_path / "s") == ["utt0"]
    check(tmp_path / "s", undisturbed)
