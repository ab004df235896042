"""The command that takes over codebook indexes of other programs."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from corpus_builders import write_features, write_table

from espnet_mvq.bin.import_indexes import main
from espnet_mvq.exchange.lhotse import make_cut, write_manifest
from espnet_mvq.exchange.stored_arrays import StoredIndexes, write_hdf5
from espnet_mvq.indexes import FrameReader
from espnet_mvq.indexes.metadata import METADATA_NAME, SCP_NAME
from espnet_mvq.quantization import Quantizer

LENGTHS = {"utt0": 5, "utt1": 7, "sp0.9-utt0": 6}
NAMES = ["utt1", "utt0_sp0.9", "utt0"]  # lhotse's, in an order of its own


def cut_of(name, hdf5, shape, frame_shift_s=0.02):
    """Describe indexes as icefall's joined manifests do: cut id, supervision id."""
    stored = StoredIndexes(
        "numpy_hdf5", str(hdf5), f"{name}-7", "-", shape, frame_shift_s
    )
    cut = make_cut(f"{name}-7", stored)
    cut["supervisions"] = [{"id": name, "recording_id": name, "start": 0}]
    return cut


@pytest.fixture
def corpus(tmp_path):
    """A data folder, arrays in HDF5, a manifest, and a function to change them."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    write_table(data_dir / "wav.scp", {utt_id: f"{utt_id}.wav" for utt_id in LENGTHS})
    num_samples = {utt_id: 320 * length + 80 for utt_id, length in LENGTHS.items()}
    write_table(data_dir / "utt2num_samples", num_samples)
    names = dict(zip(["utt1", "sp0.9-utt0", "utt0"], NAMES))
    arrays = {
        names[u]: np.random.randint(0, 4, (LENGTHS[u], 2)).astype(np.uint8)
        for u in names
    }
    corpus = SimpleNamespace(
        data_dir=data_dir,
        manifest=tmp_path / "cuts.jsonl.gz",
        hdf5=tmp_path / "clean-100.h5",
        scp=data_dir / SCP_NAME,
    )

    def write(arrays=arrays, shapes=None, frame_shift_s=0.02):
        write_hdf5(corpus.hdf5, [(f"{n}-7", a) for n, a in arrays.items()])
        shapes = shapes or {name: array.shape for name, array in arrays.items()}
        cuts = [cut_of(n, corpus.hdf5, s, frame_shift_s) for n, s in shapes.items()]
        write_manifest(corpus.manifest, cuts)

    corpus.arrays, corpus.write = arrays, write
    write()
    return corpus


@pytest.fixture
def options(corpus):
    return [
        *["--data_dir", str(corpus.data_dir), "--manifests", str(corpus.manifest)],
        *["--quantizer_id", "abcd", "--teacher", "hubert_xl@1", "--layer", "36"],
        *["--codebook_size", "4"],
    ]


def test_manifest_becomes_our_files(corpus, options):
    main(options)
    reader = FrameReader(corpus.scp)
    assert list(reader) == list(LENGTHS)
    for utt_id, name in zip(LENGTHS, ["utt0", "utt1", "utt0_sp0.9"]):
        np.testing.assert_array_equal(reader[utt_id], corpus.arrays[name])
    metadata = reader.metadata
    assert (metadata.teacher, metadata.layer) == ("hubert_xl@1", 36)
    assert (metadata.num_codebooks, metadata.codebook_size) == (2, 4)
    assert (metadata.sample_rate, metadata.frame_shift_samples) == (16000, 320)
    assert metadata.frame_offset_samples == 199.5
    assert metadata.quantizer_id == "abcd" and metadata.encode == {}
    assert (metadata.num_utterances, metadata.num_frames) == (3, 18)
    assert list(metadata.shards) == ["codebook_indexes.1.ark"]
    ark = corpus.data_dir / "codebook_indexes" / "codebook_indexes.1.ark"
    assert ark.is_file()


def test_importing_again_replaces_the_files(corpus, options):
    main(options)
    before = corpus.scp.read_bytes(), (corpus.data_dir / METADATA_NAME).read_bytes()
    main(options)
    assert before == (
        corpus.scp.read_bytes(),
        (corpus.data_dir / METADATA_NAME).read_bytes(),
    )


@pytest.mark.parametrize("form", ["hdf5", "npy"])
def test_arrays_without_a_manifest(corpus, options, form, tmp_path):
    name = {"hdf5": "plain", "npy": "npy"}[form]
    arrays = write_features(tmp_path, corpus.arrays, form, name)
    options[2:4] = ["--arrays", str(arrays), "--frame_shift_samples", "320"]
    main(options)
    reader = FrameReader(corpus.scp)
    np.testing.assert_array_equal(reader["utt1"], corpus.arrays["utt1"])


def test_quantizer_describes_the_indexes(corpus, options, tmp_path):
    path = tmp_path / "quantizer.safetensors"
    origin = {"teacher": "own", "layer": 3}
    quantizer = Quantizer(torch.randn(2, 4, 8), provenance=origin)
    quantizer.save(path)
    main([*options[:4], "--quantizer", str(path)])
    metadata = FrameReader(corpus.scp).metadata
    assert (metadata.teacher, metadata.layer) == ("own", 3)
    assert metadata.quantizer_id == quantizer.id and metadata.codebook_size == 4


def test_quantizer_of_multi_quantization(corpus, options, tmp_path, ends_with_error):
    path = tmp_path / "quantizer.pt"
    Quantizer(torch.randn(2, 4, 8)).to_multi_quantization(path)
    options = [*options[:4], "--quantizer", str(path)]
    error = ends_with_error(main, options)
    assert "quantizer.pt have values for --teacher, --layer" in error
    main([*options, "--teacher", "hubert", "--layer", "36"])
    expected = Quantizer.from_multi_quantization(path).id
    assert FrameReader(corpus.scp).metadata.quantizer_id == expected
    error = ends_with_error(main, [*options, "--codebook_size", "256"])
    assert "--codebook_size: got 256, but" in error and "quantizer.pt has 4" in error


def test_missing_on_either_side_stops_or_is_accepted(
    corpus, options, ends_with_error, caplog
):
    wav_scp = corpus.data_dir / "wav.scp"
    wav_scp.write_text(wav_scp.read_text().replace("utt1", "new"))
    error = ends_with_error(main, options)
    assert "1 of 3 utterances in" in error and "first new;" in error
    assert "1 of 3 indexes in" in error and "wav.scp, first utt1;" in error
    assert not corpus.scp.exists()
    main([*options, "--on_missing", "skip"])
    assert "first new" in caplog.text
    assert list(FrameReader(corpus.scp)) == ["utt0", "sp0.9-utt0"]


def test_no_common_utterance(options, ends_with_error):
    error = ends_with_error(main, [*options, "--utt_id", "cut", "--on_missing", "skip"])
    assert "(first utt0, utt1, sp0.9-utt0)" in error
    assert "got utt1-7, utt0_sp0.9-7, utt0-7" in error and "now cut" in error


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: np.hstack([a, a[:, :1]]), "got shape (5, 3), expected integers"),
        (lambda a: a + 252, "expected integers (T, 2) in 0 .. 3"),
        (lambda a: a.astype(np.float32), "got float32 of shape (5, 2)"),
    ],
)
def test_other_arrays_are_refused_and_old_files_kept(
    corpus, options, ends_with_error, change, message
):
    main(options)
    before = (corpus.data_dir / METADATA_NAME).read_bytes()
    corpus.write({**corpus.arrays, "utt0": change(corpus.arrays["utt0"])})
    error = ends_with_error(main, [*options, "--num_codebooks", "2"])
    assert "utterance utt0 (" in error and "cuts.jsonl.gz:3: cut utt0-7" in error
    assert message in error
    assert (corpus.data_dir / METADATA_NAME).read_bytes() == before
    assert len(FrameReader(corpus.scp)["utt1"]) == 7


@pytest.mark.parametrize(
    "option, value, expected",
    [
        ("frame_offset_samples", "nan", "a finite number"),
        ("codebook_size", "0", "a whole number from 1 to 256"),
        ("layer", "-2", "a whole number >= -1"),
    ],
)
def test_impossible_numbers_are_refused(
    corpus, options, ends_with_error, option, value, expected
):
    error = ends_with_error(main, [*options, f"--{option}", value])
    assert error == f"--{option}: got {value}, expected {expected}"
    assert not corpus.scp.exists()


def test_utterance_without_a_number_of_samples(corpus, options, caplog):
    path = corpus.data_dir / "utt2num_samples"
    path.write_text(path.read_text().replace("utt1 ", "x "))
    main(options)
    assert f"1 of 3 utterances are not in {path}, first utt1: their" in caplog.text


def test_lengths_that_do_not_fit_the_speech(corpus, options, ends_with_error):
    path = corpus.data_dir / "utt2num_samples"
    path.write_text(path.read_text().replace("utt1 2320", "utt1 4640"))
    error = ends_with_error(main, options)
    assert "utt1 has 7, expected 14.5" in error and not corpus.scp.exists()


def test_damaged_sources_are_named(corpus, options, ends_with_error):
    corpus.hdf5.unlink()
    error = ends_with_error(main, options)
    assert f"cut utt0-7: {corpus.hdf5}: no such file" in error
    corpus.manifest.write_bytes(corpus.manifest.read_bytes()[:-20])
    error = ends_with_error(main, options)
    assert f"manifest {corpus.manifest}: not readable" in error
    assert not corpus.scp.exists()


def test_storage_dir_is_the_root_of_relative_paths(corpus, options):
    shapes = {name: array.shape for name, array in corpus.arrays.items()}
    cuts = [cut_of(name, corpus.hdf5.name, shape) for name, shape in shapes.items()]
    write_manifest(corpus.manifest, cuts)
    main([*options, "--storage_dir", str(corpus.hdf5.parent)])
    assert len(FrameReader(corpus.scp)) == 3


def test_frame_shifts_must_be_one_and_whole(corpus, options, ends_with_error):
    error = ends_with_error(main, [*options, "--frame_shift_samples", "160"])
    assert "got 160 samples from options" in error and "but 320 from the" in error
    error = ends_with_error(main, [*options, "--sample_rate", "22051"])
    assert "is 441.02 samples, expected a whole number" in error
    with gzip.open(corpus.manifest, "rt") as file:
        cuts = [json.loads(line) for line in file]
    cuts[1]["custom"]["codebook_indexes"]["frame_shift"] = 0.04
    write_manifest(corpus.manifest, cuts)
    error = ends_with_error(main, options)
    assert "frame shift of 0.04 s" in error and "of 0.02 s; expected one" in error
    options[2:4] = ["--arrays", str(corpus.hdf5)]
    wav_scp = (corpus.data_dir / "wav.scp").read_text().replace(" ", "-7 ")
    (corpus.data_dir / "wav.scp").write_text(wav_scp)
    error = ends_with_error(main, [*options, "--on_missing", "skip"])
    assert "--frame_shift_samples; give these options" in error
