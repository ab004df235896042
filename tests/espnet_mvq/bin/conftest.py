"""Quantizer and extraction by the commands."""

import shutil

import pytest
from builders import write_speech
from corpus_builders import QUANTIZER_SIZES


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
    """Return a function that expects exit code 1 and one ERROR line; returns it."""

    def check(call, *args, **kwargs):
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            call(*args, **kwargs)
        assert ended.value.code == 1
        errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        assert len(errors) == 1 and "\n" not in errors[0]
        return errors[0]

    return check
