"""The notebooks of examples/ run from the first cell to the last, and their stored outputs are none."""

import os
import shutil
import sys
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parent.parent / "examples"
# What each prints when it works
PRINTED = {
    "first_token.ipynb": ["KL gap closed: 0.", "tokens in: Arr"],
    "compare.ipynb": ["comparison/report.html", "\nfull  ", "\nbe:4  ", "\ntruncation:32  "],
    "serve_many.ipynb": ["\npirate: Arr", "\nmonk: ", "<|pirate_3|>: Arr", "<|be_monk_3|>: "],
}


def test_every_notebook_is_tested():
    assert {path.name for path in EXAMPLES.rglob("*.ipynb")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_notebooks_are_stored_without_outputs(name):
    nbformat = pytest.importorskip("nbformat")
    cells = [cell for cell in nbformat.read(EXAMPLES / name, as_version=4).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTED)
def test_notebooks_run(name, tmp_path, monkeypatch, smollm2_dir):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    shutil.copytree(EXAMPLES / "redbeard", tmp_path / "redbeard")
    # `peft-be` in a cell is that of this Python
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    for text in PRINTED[name]:
        assert text in printed, printed
