"""The notebooks run offline from top to bottom, and show what they say."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))
SHOWN = {"adapt": "helps>", "scores": "promised +0.091"}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    return "".join(output.get("text", "") for cell in code_of(notebook) for output in cell.outputs)


@every_notebook
def test_what_is_stored_is_whole_and_names_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_of(notebook)] == list(range(1, len(code_of(notebook)) + 1))
    assert SHOWN[path.stem] in printed(notebook)
    assert re.search(r"/(?:tmp|home|root|usr|Users)/", str(notebook)) is None


@pytest.mark.slow
@every_notebook
def test_a_kernel_runs_every_cell(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert SHOWN[path.stem] in printed(notebook)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == SHOWN.keys()
