"""Every cell of every notebook can be run again: a reader goes back, changes something and runs it once more."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "chapters").rglob("*.ipynb"))


@pytest.mark.soak
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT / "chapters")))
def test_each_cell_can_be_run_again(path):
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook, timeout=1800, allow_errors=True, resources={"metadata": {"path": str(path.parent)}}
    )
    failed = []
    in_order = list(enumerate(notebook.cells))
    with client.setup_kernel():
        # each cell twice in a row, and the whole once more: by then later cells may have given a name another meaning
        for index, cell in [pair for pair in in_order for _ in range(2)] + in_order:
            client.execute_cell(cell, index)
            failed += [
                f"cell {index}: {output.ename}: {output.evalue}\n{cell.source}"
                for output in cell.get("outputs", [])
                if output.output_type == "error"
            ]
    assert not failed, "\n\n".join(failed)
