"""The command that compares the layers of a teacher."""

import json

import pytest
from corpus_builders import end_with_error

from espnet_mvq.bin.advise import main, parse_layers


@pytest.fixture
def options(data_dir, teacher_dir, tmp_path):
    return [
        *("--data_dir", str(data_dir), "--teacher", f"transformers/{teacher_dir}"),
        *("--output_dir", str(tmp_path / "advice"), "--minutes", "0.05"),
        *("--num_codebooks", "2", "--codebook_size", "4"),
    ]


def test_all_layers_are_compared_and_printed(options, tmp_path, capsys):
    main(options)
    content = json.loads((tmp_path / "advice" / "advice.json").read_text())
    assert [score["layer"] for score in content["scores"]] == [1, 2]
    assert content["teacher"].startswith("transformers/tiny_hubert@")
    text = (tmp_path / "advice" / "advice.md").read_text()
    assert capsys.readouterr().out == text
    assert content["verdict"]["sentences"][0] in text


def test_blocks_above_the_layers_do_not_run(options, tmp_path):
    main([*options, "--layers", "1"])
    content = json.loads((tmp_path / "advice" / "advice.json").read_text())
    assert [score["layer"] for score in content["scores"]] == [1]


def test_words_of_layers():
    assert parse_layers(["all"]) is None
    assert parse_layers(["3", "-1"]) == [3, -1]


def test_missing_layer_is_named(options, caplog):
    line = end_with_error(caplog, main, [*options, "--layers", "1", "3"])
    assert "got layer 3, expected 1 to 2" in line
