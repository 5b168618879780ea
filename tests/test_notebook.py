"""The notebook of the manual runs from the first cell to the last, and shows tables and pictures."""

import json
import sys

import pytest

from tests.pages import DOCS

NOTEBOOK = DOCS / "notebooks" / "plan-in-a-notebook.ipynb"
PATHS = "import sys; sys.path[:0] = {paths!r}"


def executed(cells: list[str], folder) -> list[list[dict]]:
    """The outputs of every cell, run by a kernel in `folder` that imports this checkout."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    v4 = nbformat.v4
    paths = PATHS.format(paths=[path for path in sys.path if path])
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in (paths, *cells)])
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells[1:]]


def code_cells() -> list[str]:
    """The sources of the notebook's code cells."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.filterwarnings("ignore")  # the kernel's own
def test_the_notebook_runs_and_shows_tables_and_pictures(tmp_path):
    pytest.importorskip("pyarrow")
    pytest.importorskip("matplotlib")
    outputs = executed(code_cells(), tmp_path)
    kinds = [set().union(*(output.get("data", {}) for output in of_cell)) for of_cell in outputs]
    assert sum("text/html" in kind for kind in kinds) >= 7
    assert sum("image/png" in kind for kind in kinds) == 2
    assert (tmp_path / "plan.json").exists()
    texts = [output["data"]["text/plain"] for of_cell in outputs for output in of_cell if "data" in output]
    assert any(text.startswith("Plan(scenario") or text.startswith("Plan(greedy") for text in texts)
    assert outputs[-1][-1]["text"].startswith("sglang would load it: 9 layers, 256 experts + 32 redundant")


@pytest.mark.filterwarnings("ignore")
def test_a_cell_that_fails_is_noticed(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="NameError"):
        executed(["1 + 1", "no_such_name"], tmp_path)


def test_the_notebook_is_stored_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
