"""Execute notebooks in place so that a second run gives the same bytes: no timings, no machine's own names.

Says what is printed differently than before. Where the book has an address, each notebook begins with a cell for Colab.
With --twice, runs every cell twice in a row, as a reader may who presses the key again, and writes nothing.
"""

import argparse
import difflib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from publishing import repository_address

COLAB = """\
# On Colab: install the module. The notebook asks for a GPU there.
import sys

if "google.colab" in sys.modules:
    %pip install -q "dpm @ git+{address}"
"""


def with_colab_cell(notebook, address: str):
    """The notebook, begun by a cell that no page shows and that installs the module on Colab, or without it."""
    notebook.cells = [cell for cell in notebook.cells if "colab" not in cell.metadata.get("tags", [])]
    if address:
        cell = nbformat.v4.new_code_cell(COLAB.format(address=address).rstrip(), id="colab")
        cell.metadata["tags"] = ["colab", "remove-cell"]
        notebook.cells.insert(0, cell)
        notebook.metadata["accelerator"] = "GPU"
    return notebook


def printed(notebook) -> list[str]:
    """Every line that the notebook's cells print or show as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("text") or output.get("data", {}).get("text/markdown", "") for output in outputs]
    return [line for text in shown for line in text.splitlines()]


def run(notebook, folder: Path) -> None:
    """Execute the cells, as if opened in this folder."""
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # or timing would cut a printed table in two
        store_widget_state=False,  # sliders live in a kernel; a page has players
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def twice(cell):
    """A cell and the same again; a text stays one."""
    return [cell] if cell.cell_type == "markdown" else [cell, nbformat.v4.new_code_cell(cell.source)]


def execute(path: Path) -> None:
    """Execute one notebook and write it, then print which of its lines have moved."""
    notebook = with_colab_cell(nbformat.read(path, as_version=4), repository_address())
    before = printed(notebook)
    run(notebook, path.parent)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # its id is random
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    print(path, f"{path.stat().st_size / 1e3:.0f} kB")
    for line in difflib.unified_diff(before, printed(notebook), "before", "now", n=0, lineterm=""):
        print("   ", line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--twice", action="store_true", help="run every cell twice in a row, and write nothing")
    parser.add_argument("notebooks", nargs="+", type=Path)
    args = parser.parse_args()
    for path in args.notebooks:
        if args.twice:
            notebook = nbformat.read(path, as_version=4)
            notebook.cells = [copy for cell in notebook.cells for copy in twice(cell)]
            run(notebook, path.parent)
            print(path, "every cell ran twice")
        else:
            execute(path)


if __name__ == "__main__":
    main()
