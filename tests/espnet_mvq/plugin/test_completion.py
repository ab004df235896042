"""`espnet_mvq.mvq_conf`: complete options of a student from metadata, in Python."""

import pytest
from builders import MVQ_CONF, index_metadata
from corpus_builders import embedding_metadata

import espnet_mvq
from espnet_mvq.plugin.config import parse_targets

COMPLETE = {**MVQ_CONF, "level": "frame", "teacher_id": "teacher, layer 1"}


@pytest.fixture
def folder(tmp_path):
    """A data folder with metadata of indexes of two teachers, and of embeddings."""
    index_metadata().save(tmp_path / "codebook_indexes.json")
    index_metadata(num_codebooks=8).save(tmp_path / "codebook_indexes_wavlm.json")
    embedding_metadata(dim=24).save(tmp_path / "embeddings.json")
    (tmp_path / "text").touch()
    return tmp_path


@pytest.mark.parametrize(
    "name", ["codebook_indexes.json", "codebook_indexes.scp", "", None]
)
def test_json_scp_and_folder_give_the_same(folder, name):
    source = str(folder) if name is None else folder / name
    conf = espnet_mvq.mvq_conf(source, layer=6, weight=0.5)
    assert conf == {"layer": 6, "weight": 0.5, **COMPLETE}
    assert list(parse_targets(conf)) == ["codebook_indexes"]


def test_other_names_are_targets_that_can_be_joined(folder):
    conf = espnet_mvq.mvq_conf(folder / "codebook_indexes_wavlm.scp", layer=2)
    other = espnet_mvq.mvq_conf(folder / "embeddings.json", loss="l2")
    assert conf["targets"]["codebook_indexes_wavlm"]["num_codebooks"] == 8
    assert other["targets"]["embeddings"]["dim"] == 24
    targets = parse_targets({"targets": {**conf["targets"], **other["targets"]}})
    assert targets["codebook_indexes_wavlm"].layer == 2
    assert targets["embeddings"].loss == "l2"


def test_weighting_is_of_the_whole(folder):
    weighting = {"type": "fixed", "alpha": 0.3}
    source = folder / "codebook_indexes_wavlm.json"
    conf = espnet_mvq.mvq_conf(source, weighting=weighting)
    assert conf["weighting"] == weighting and list(conf) == ["targets", "weighting"]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("none", {}, "none: no such file or folder; expected codebook_indexes.json"),
        ("codebook_indexes_x.json", {}, "codebook_indexes_x.json: no such file"),
        ("text", {}, "text: got another file, expected codebook_indexes.json"),
        ("codes.json", {}, "got the name 'codes', expected 'codebook_indexes'"),
        ("embeddings.json", {}, "loss: got codebooks for embeddings, expected one of"),
        ("", {"wieght": 1}, "unknown option: wieght; expected some of loss, weight"),
        ("", {"layer": 0}, "layer: got 0, expected a student block, counted from 1"),
        ("", {"layer": 2.5}, "layer: got 2.5, expected a whole number"),
        ("", {"codebook_size": 256}, "codebook_size: got 256, but .* has 4"),
        ("", {"weighting": {"type": "x"}}, "weighting.*'x'"),
        ("", {"teacher": "s3prl/hubert"}, "got teacher s3prl/hubert"),
    ],
)
def test_bad_input_is_named_in_one_line(folder, name, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        espnet_mvq.mvq_conf(folder / name, **options)
    assert "\n" not in str(caught.value)


def test_embeddings_in_the_place_of_indexes_are_refused(folder):
    (folder / "embeddings.json").rename(folder / "codebook_indexes.json")
    message = "codebook_indexes.json: not readable: got format 'espnet_mvq.embeddings'"
    with pytest.raises(ValueError, match=message):
        espnet_mvq.mvq_conf(folder)
