"""Configurations merged from a baseline and the options of a loss."""

import pytest
import yaml
from corpus_builders import load_script


@pytest.fixture
def merge(tmp_path):
    """Return a function that merges two files and returns the third."""
    module = load_script("egs/TEMPLATE/asr1/pyscripts/merge_yaml.py")

    def run(base, added, **values):
        paths = {n: tmp_path / f"{n}.yaml" for n in ("base", "added")}
        paths["base"].write_text(base)
        paths["added"].write_text(added)
        out = tmp_path / "new" / "out.yaml"
        pairs = [f"{name}={value}" for name, value in values.items()]
        module.main(
            ["--base", str(paths["base"]), "--added", str(paths["added"])]
            + ["--out", str(out), "--set", *pairs]
        )
        return yaml.safe_load(out.read_text())

    return run


def test_mappings_are_merged_and_values_replaced(merge):
    base = "seed: 0\nmodel_conf: {ctc_weight: 1.0, a: {b: 1}}\noptim_conf: {lr: 1}\n"
    added = "seed: 1\nmodel_conf: {mvq_conf: {layer: 3}, a: {c: 2}}\nmodel: mvq\n"
    assert merge(base, added) == {
        "seed": 1,
        "model_conf": {
            "ctc_weight": 1.0,
            "a": {"b": 1, "c": 2},
            "mvq_conf": {"layer": 3},
        },
        "optim_conf": {"lr": 1},
        "model": "mvq",
    }


def test_names_are_replaced(merge):
    merged = merge("a: 1", "b: ${path}/x\nc: ${conf}\n", path="d=e", conf="{f: 0}")
    assert merged == {"a": 1, "b": "d=e/x", "c": {"f": 0}}


def test_name_without_a_value_is_refused(merge):
    with pytest.raises(SystemExit, match=r"got \$\{path\} without a value"):
        merge("a: 1", "b: ${path}")
