"""`python3 -m espnet_mvq` lists the commands; recipes ask it for the path of mvq.sh."""

import pytest
from builders import run_python

from espnet_mvq import __version__
from espnet_mvq.__main__ import MVQ_SH, main


def test_overview_names_version_script_and_commands(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"espnet_mvq {__version__}"
    assert str(MVQ_SH) in lines
    commands = [line.rpartition(".")[2] for line in lines if ".bin." in line]
    expected = {"extract", "train_quantizer", "export", "inspect_quantizer"}
    assert expected <= set(commands)
    for command in commands:
        assert (MVQ_SH.parents[1] / "bin" / f"{command}.py").is_file()
    assert "options" not in commands


def test_path_of_mvq_sh():
    done = run_python("-m", "espnet_mvq", "--mvq_sh")
    assert done.stdout.strip() == str(MVQ_SH) and MVQ_SH.is_file()


def test_unknown_argument_is_refused():
    with pytest.raises(SystemExit) as ended:
        main(["--mvqsh"])
    assert ended.value.code == 2
