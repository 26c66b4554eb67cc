"""Execute notebooks in place so that a second run gives the same bytes: no timings, no machine's own names."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

for path in map(Path, sys.argv[1:]):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # or timing would cut a printed table in two
        store_widget_state=False,  # sliders live in a kernel; a page has players
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # its id is random
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    print(path, f"{path.stat().st_size / 1e3:.0f} kB")
