"""The notebooks run from the first cell to the last, with tiny settings."""

import re

import nbformat
import pytest
from builders import ROOT
from nbclient import NotebookClient

SETTINGS = """
from pathlib import Path
repository = Path({repository!r})
work = Path({work!r})
num_utterances, num_epochs, num_blocks = 16, 2, 2
quantizer_options = ["--num_codebooks", "2", "--codebook_size", "16"]
quantizer_options += ["--max_frames", "800", "--num_iterations", "2"]
"""


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(ROOT / "docs" / "notebooks" / "distil.ipynb", as_version=4)


@pytest.fixture
def outputs(notebook, tmp_path, monkeypatch):
    """Run the notebook in an empty folder; return the text that it prints."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    work = tmp_path / "work"
    (settings,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    settings.source = SETTINGS.format(repository=str(ROOT), work=str(work))
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=folder).execute()
    return "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stdout"
    )


def test_settings_of_the_test_are_those_of_the_notebook(notebook):
    """A setting that the test does not replace would make it slow, or useless."""
    source = next(c.source for c in notebook.cells if c.cell_type == "code")
    names = re.findall(r"^(\w+) = ", source, re.M)
    assert names and all(re.search(rf"\b{name}\b", SETTINGS) for name in names)


@pytest.mark.timeout(900)
def test_distil(outputs):
    assert "16 utterances; the first has (frames, codebooks) = (" in outputs
    table = re.findall(r"^ +(\d+)((?: +-?\d+\.\d+){5})$", outputs, re.M)
    assert [int(epoch) for epoch, _ in table] == [1, 2]
    losses, nats = zip(*((row.split()[2], row.split()[4]) for _, row in table))
    assert float(losses[1]) < float(losses[0]) and float(nats[0]) < float(nats[1])
    assert "model: ESPnetASRModel" in outputs
