"""The command that checks shards and puts them into the data folder."""

import importlib

import numpy as np
import pytest
from builders import ROOT, run_python
from corpus_builders import change_json, write_shard

from espnet_mvq.bin.combine_indexes import main
from espnet_mvq.files.whole_file import file_sha256
from espnet_mvq.indexes import FrameReader, IndexMetadata
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME
from espnet_mvq.indexes.shard import shard_paths

COMMANDS = sorted(
    path.stem
    for path in (ROOT / "espnet_mvq" / "bin").glob("*.py")
    if "def get_parser(" in path.read_text(encoding="utf-8") and path.stem != "run_jobs"
)


@pytest.fixture
def shards(extract, data_dir, tmp_path):
    """Extract in two jobs whose utterances are not in wav.scp's order."""
    lines = (data_dir / "wav.scp").read_text().splitlines(True)
    for job in (1, 2):
        part = tmp_path / f"wav.{job}.scp"
        part.write_text("".join(reversed(lines[2 - job :: 2])))
        extract(wav_scp=part, job=job)
    return tmp_path / "shards"


@pytest.fixture
def options(data_dir, shards):
    return ["--data_dir", str(data_dir), "--shards", str(shards), "--nj", "2"]


def test_whole_path(options, data_dir):
    main(options)
    lines = (data_dir / SCP_NAME).read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"utt{n}" for n in range(6)]
    reader = FrameReader(data_dir / SCP_NAME)
    lengths = [len(reader[utt_id]) for utt_id in reader]
    assert lengths == [(6400 + 1600 * n - 400) // 320 + 1 for n in range(6)]
    assert reader.metadata.num_frames == sum(lengths)
    assert reader.metadata.num_utterances == 6
    assert list(reader.metadata.shards) == [
        "codebook_indexes.1.ark",
        "codebook_indexes.2.ark",
    ]


def test_utterance_without_indexes_stops_or_is_accepted(
    options, data_dir, tmp_path, ends_with_error, caplog
):
    """Accepted are those that the extraction skipped, not those of lost shards."""
    (data_dir / "wav.scp").write_text(
        "new x.wav\n" + (data_dir / "wav.scp").read_text()
    )
    error = ends_with_error(main, options)
    assert "1 of 7 utterances" in error and "first new" in error
    assert "1 of 7 utterances" in ends_with_error(
        main, [*options, "--on_error", "skip"]
    )
    assert not (data_dir / SCP_NAME).exists()
    change_json(shard_paths(tmp_path / "shards", 1)[2], {"skipped": ["new"]})
    main([*options, "--on_error", "skip"])
    assert "first new" in caplog.text
    assert len(FrameReader(data_dir / SCP_NAME)) == 6


def test_shards_of_a_folder_that_was_moved(options, data_dir, tmp_path):
    """The arrays are those of this folder, not those that lie where it was."""
    main(options)
    before = {**FrameReader(data_dir / SCP_NAME)}
    (tmp_path / "shards").rename(tmp_path / "moved")
    main([*options, "--shards", str(tmp_path / "moved")])
    reader = FrameReader(data_dir / SCP_NAME)
    for utt_id, indexes in before.items():
        np.testing.assert_array_equal(reader[utt_id], indexes)


def test_utterances_left_out_of_wav_scp_are_left_out_and_not_counted(options, data_dir):
    lines = (data_dir / "wav.scp").read_text().splitlines(True)
    (data_dir / "wav.scp").write_text("".join(lines[:2]))
    main(options)
    reader = FrameReader(data_dir / SCP_NAME)
    assert list(reader) == ["utt0", "utt1"]
    assert reader.metadata.num_utterances == 2
    assert reader.metadata.num_frames == sum(len(reader[u]) for u in reader)


def test_damaged_ark_is_noticed(options, shards, data_dir, ends_with_error):
    ark = shard_paths(shards, 2)[0]
    content = bytearray(ark.read_bytes())
    content[-1] ^= 1
    ark.write_bytes(content)
    error = ends_with_error(main, options)
    assert f"{ark}: its bytes are not those that were written" in error
    assert not (data_dir / METADATA_NAME).exists()


@pytest.mark.parametrize("missing", range(3))
def test_missing_shard_is_named(options, shards, ends_with_error, missing):
    shard_paths(shards, 2)[missing].unlink()
    assert "shard 2 of 2 in" in ends_with_error(main, options)


def test_shards_of_different_settings_are_refused(options, shards, ends_with_error):
    change_json(shard_paths(shards, 2)[2], {"quantizer_id": "ffff"})
    error = ends_with_error(main, options)
    assert "not made like shard 1: quantizer_id" in error and "'ffff'" in error


def test_other_audio_than_was_extracted_is_noticed(options, data_dir, ends_with_error):
    path = data_dir / "utt2num_samples"
    path.write_text(path.read_text().replace("utt1 8000", "utt1 16000"))
    error = ends_with_error(main, options)
    assert "1 utterances have another number" in error
    assert "utt1 has 24, expected 50.0" in error


def test_lengths_are_not_checked_without_utt2num_samples(options, data_dir, caplog):
    (data_dir / "utt2num_samples").unlink()
    main(options)
    assert "lengths are not checked" in caplog.text
    assert (data_dir / METADATA_NAME).is_file()


def test_report(options, capsys, ends_with_error, data_dir):
    main(options)
    report = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in report] == [
        *("shards", "made", "utterances", "values", "frames", "size")
    ]
    assert all(line.startswith("ok") for line in report)
    assert "quantizer_id" in report[1] and "all 6 of" in report[2]
    assert report[3].endswith("0 to 3") and "bytes, " in report[5]
    # All that is wrong is said at once
    path = data_dir / "utt2num_samples"
    path.write_text(path.read_text().replace("utt1 8000", "utt1 16000"))
    with (data_dir / "wav.scp").open("a") as scp:
        scp.write("new x.wav\n")
    error = ends_with_error(main, options)
    assert "1 of 7 utterances" in error and "another number of frames" in error
    report = capsys.readouterr().out
    assert "WRONG   utterances" in report and "WRONG   frames" in report


def test_one_row_of_each_utterance_at_that_level(
    options, shards, data_dir, capsys, ends_with_error
):
    """Two rows are refused where the metadata say one, whatever the audio's length."""
    main(options)
    for job in (1, 2):
        change_json(shard_paths(shards, job)[2], {"level": "utterance"})
    error = ends_with_error(main, options)
    assert "6 utterances do not contain valid" in error and "expected 1" in error
    metadata = IndexMetadata.load(shard_paths(shards, 1)[2])
    for job, numbers in ((1, (1, 3, 5)), (2, (0, 2, 4))):
        row = np.full((1, 2), job, np.uint8)
        write_shard(shards, {f"utt{n}": row for n in numbers}, metadata, job)
    capsys.readouterr()
    main(options)
    report = capsys.readouterr().out
    assert "6, one of each utterance" in report and "for each utterance" in report
    reader = FrameReader(data_dir / SCP_NAME)
    assert reader.metadata.num_frames == 6 and reader["utt3"].tolist() == [[1, 1]]


def test_utterances_swapped_in_a_shard_are_noticed(
    options, shards, data_dir, ends_with_error
):
    """Of equal length, so that nothing else tells."""
    for name in ("wav.scp", "utt2num_samples"):
        path = data_dir / name
        path.write_text("".join(path.read_text().splitlines(True)[:2]))
    metadata = IndexMetadata.load(shard_paths(shards, 1)[2])
    indexes = dict.fromkeys(["utt0", "utt1"], np.zeros((22, 2), np.uint8))
    _, scp, _ = write_shard(shards, indexes, metadata)
    swapped = scp.read_text().replace("utt0 ", "x ").replace("utt1 ", "utt0 ")
    scp.write_text(swapped.replace("x ", "utt1 "))
    error = ends_with_error(main, [*options[:-1], "1"])
    assert "2 utterances do not contain valid" in error
    assert "expected utterance utt0 there, got utterance utt1" in error


def test_utterances_without_a_number_of_samples(
    options, data_dir, capsys, ends_with_error
):
    path = data_dir / "utt2num_samples"
    lines = path.read_text().splitlines(True)
    path.write_text("".join(lines[2:]))
    main(options)
    text = f"2 of 6 utterances are not in {path}, first utt0, utt1: their lengths"
    assert f"warning frames       {text}" in capsys.readouterr().out
    path.write_text("other 16000\n")
    error = ends_with_error(main, options)
    assert f"{path} has none of the 6 utterances, first utt0; make it again" in error
    path.write_text("".join(lines).replace("8000", "8000.0"))
    error = ends_with_error(main, options)
    assert f"{path}: utterance utt1: got '8000.0', expected a whole number" in error


def test_text_of_other_utterances(options, data_dir, capsys, ends_with_error):
    path = data_dir / "text"
    path.write_text("".join(f"utt{n} A B\n" for n in range(6)))
    main(options)
    assert f"ok      text         all 6 utterances of {path}" in capsys.readouterr().out
    path.write_text("utt7\nutt8 A\nutt3 A B\n")
    main(options)
    report = capsys.readouterr().out
    assert f"warning text         2 of 3 utterances in {path} have no audio" in report
    assert "first utt7, utt8" in report
    path.write_text("UTT0 A\nUTT1 B\n")
    error = ends_with_error(main, options)
    assert "no utterance in common: the first is UTT0 in text, utt0 in wav.scp" in error


def test_index_out_of_range_is_named(options, shards, ends_with_error):
    """An ark that was made so, its checksum right."""
    ark, _, json_path = shard_paths(shards, 1)
    content = bytearray(ark.read_bytes())
    content[-1] = 9
    ark.write_bytes(content)
    change_json(json_path, {"shards": {ark.name: file_sha256(ark)}})
    error = ends_with_error(main, options)
    assert "1 utterances do not contain valid codebook indexes: utt" in error
    assert "got index 9, expected 0 to 3" in error


def test_utterance_in_two_shards_is_named(options, shards, ends_with_error):
    scps = [shard_paths(shards, job)[1] for job in (1, 2)]
    scps[1].write_text(scps[1].read_text() + scps[0].read_text().splitlines(True)[0])
    assert "1 utterances are in two shards, first utt" in ends_with_error(main, options)


def test_files_of_another_name(options, data_dir):
    main([*options, "--name", "codebook_indexes_layer6"])
    reader = FrameReader(data_dir / "codebook_indexes_layer6.scp")
    assert len(reader) == 6 and not (data_dir / SCP_NAME).exists()


def test_combining_again_replaces_the_files(options, data_dir):
    main(options)
    before = (data_dir / SCP_NAME).read_bytes(), (data_dir / METADATA_NAME).read_bytes()
    main(options)
    assert before == (
        (data_dir / SCP_NAME).read_bytes(),
        (data_dir / METADATA_NAME).read_bytes(),
    )
    assert not list(data_dir.glob("*.tmp*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_wrong_options_of_every_command(command, capsys):
    module = importlib.import_module(f"espnet_mvq.bin.{command}")
    for words, code in ((["--help"], 0), (["--no_such_option"], 2), ([], 2)):
        with pytest.raises(SystemExit) as ended:
            module.main(words)
        assert ended.value.code == code
        output = capsys.readouterr()
        assert "usage:" in (output.err if code else output.out)


def test_command_ends_in_one_line_without_a_traceback(tmp_path):
    words = "--data_dir none --shards none --nj 1".split()
    script = ROOT / "espnet_mvq" / "bin" / "combine_indexes.py"
    done = run_python(script, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "ERROR: none/wav.scp: no such file" in done.stderr
