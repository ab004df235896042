"""Quantizer and extraction by the commands."""

import pytest


@pytest.fixture
def quantizer(data_dir, teacher_options, tmp_path):
    """Train a quantizer of 2 codebooks with 4 entries by the command."""
    from espnet_mvq.bin.train_quantizer import main

    path = tmp_path / "q" / "quantizer.safetensors"
    sizes = ["--num_codebooks", "2", "--codebook_size", "4", "--num_iterations", "2"]
    scp = ["--wav_scp", f"{data_dir}/wav.scp", "--quantizer", str(path)]
    main([*scp, *sizes, *teacher_options])
    return path


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
