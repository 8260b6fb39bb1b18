"""The notebook runs from its first cell to its last, and is kept without outputs."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "notebooks" / "comparative_analysis.ipynb"


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@pytest.mark.slow
def test_it_runs_on_the_sample_photos(notebook, own_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 10, "ROC, confusion, reliability, speed, training, robustness, mistakes"
    text = "".join(output.get("text", "") for output in outputs)
    assert "samples: 4 real, 5 fake" in text
    [output] = tmp_path.glob("tmp*/index.html")
    assert "data:image/png" in output.read_text()
