"""Quantizer and extraction by the commands."""

import shutil
from functools import partial

import pytest
from corpus_builders import QUANTIZER_SIZES, end_with_error, write_speech


@pytest.fixture(scope="session")
def trained_quantizer(teacher_dir, tmp_path_factory):
    """Train a quantizer of 2 codebooks with 4 entries by the command."""
    from espnet_mvq.bin.train_quantizer import main

    folder = tmp_path_factory.mktemp("trained")
    # The audio of data_dir
    data = write_speech(folder / "data", {f"utt{n}": 6400 + 1600 * n for n in range(6)})
    path = folder / "q" / "quantizer.safetensors"
    teacher = ["--teacher", f"transformers/{teacher_dir}", "--layer", "1"]
    words = ["--wav_scp", f"{data}/wav.scp", "--quantizer", str(path)]
    main([*words, *QUANTIZER_SIZES, *teacher])
    return path


@pytest.fixture
def quantizer(trained_quantizer, data_dir, tmp_path):
    """Copy the folder of the trained quantizer; it is that of data_dir."""
    shutil.copytree(trained_quantizer.parent, tmp_path / "q")
    return tmp_path / "q" / trained_quantizer.name


@pytest.fixture
def extract(quantizer, data_dir, teacher_options, tmp_path):
    """Return a function that runs the extraction as one job, and its options."""
    from espnet_mvq.bin.extract import main

    def run(*options, wav_scp=data_dir / "wav.scp", quantizer=quantizer, job=1):
        paths = ["--wav_scp", str(wav_scp), "--quantizer", str(quantizer)]
        paths += ["--outdir", str(tmp_path / "shards"), "--job", str(job)]
        main([*paths, *teacher_options, *options])

    return run


@pytest.fixture
def ends_with_error(caplog):
    """Return `end_with_error` with the log of the test."""
    return partial(end_with_error, caplog)
