"""The Colab notebook: its very cells run from top to bottom, at sizes that take seconds."""

import json

import nbclient
import nbformat
import pytest
from processes import ROOT, environment
from small_recipe import SMALL

NOTEBOOK = ROOT / "experiments" / "colab" / "quickstart.ipynb"
TINY = f"""
NUM_TRAIN, NUM_TEST = 16, 4
STAGE1_STEPS, STAGE2_STEPS = 2, 2
OPTIONS = {[option for option in SMALL if not option.startswith("--num_steps")]}  # the programs of other tests
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.slow
def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += TINY
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert "text to video" in printed and "in the model's words" in printed
    assert printed.count("image/png") == 2
