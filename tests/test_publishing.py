"""A few pages built with a made-up address: what a published book has, and a folder on a disk has not."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from built import HTML

ROOT = Path(__file__).parent.parent
ADDRESS, SITE = "https://github.com/Someone/diffusion", "https://someone.github.io/diffusion/"
CONTENTS = "format: jb-book\nroot: chapters/index\nchapters:\n  - file: chapters/claims\n"

sys.path.insert(0, str(ROOT / "tools"))
from execute import printed, with_colab_cell  # noqa: E402
from publishing import OLD_NAMES, repository_address  # noqa: E402

pytestmark = pytest.mark.book


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of two chapters, of a book whose address is set."""
    root = tmp_path_factory.mktemp("book")
    for name in ("chapters", "tools", "_static"):
        shutil.copytree(ROOT / name, root / name)
    (root / "data").mkdir()
    shutil.copy(ROOT / "data" / "swiss_roll.png", root / "data")
    shutil.copy(ROOT / "references.bib", root)
    config = (ROOT / "_config.yml").read_text(encoding="utf8")
    (root / "_config.yml").write_text(config.replace('url: ""', f"url: {ADDRESS}"), encoding="utf8")
    (root / "_toc.yml").write_text(CONTENTS)
    assert repository_address(root) == ADDRESS
    command = [Path(sys.executable).with_name("jupyter-book"), "build", root, "--all", "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root / "_build" / "html"


def test_a_chapter_has_buttons_to_its_source(site):
    page = (site / "chapters" / "claims.html").read_text(encoding="utf8")
    for address in (
        ADDRESS,
        f"{ADDRESS}/issues/new?",
        f"{ADDRESS}/edit/main/chapters/claims.ipynb",
        "https://colab.research.google.com/github/Someone/diffusion/blob/main/chapters/claims.ipynb",
        "https://mybinder.org/v2/gh/Someone/diffusion/main?urlpath=lab/tree/chapters/claims.ipynb",
    ):
        assert f'href="{address}' in page, address


def test_a_chapter_names_its_address_and_its_preview(site):
    page = (site / "chapters" / "claims.html").read_text(encoding="utf8")
    assert f'<link rel="canonical" href="{SITE}chapters/claims.html"' in page
    preview = dict(re.findall(r'<meta property="og:([a-z_:]+)" content="([^"]*)"', page))
    assert preview["url"] == f"{SITE}chapters/claims.html"
    assert preview["image"] == f"{SITE}_static/swiss_roll.png" and (site / "_static" / "swiss_roll.png").exists()
    assert preview["title"] and preview["image:alt"]


def test_the_map_names_every_page_and_no_other(site):
    places = [element.text for element in ElementTree.parse(site / "sitemap.xml").iter() if element.text]
    pages = {f"{SITE}chapters/{name}.html" for name in ("index", "claims")}
    assert set(places) == pages and len(places) == len(pages)


def test_old_names_lead_to_pages_of_the_book(site):
    assert set(OLD_NAMES.values()) <= {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    for old, new in OLD_NAMES.items():
        assert f'url={new}.html"' in (site / "chapters" / f"{old}.html").read_text(encoding="utf8")


def test_a_page_that_is_not_there_leads_home(site):
    assert f'href="{SITE}"' in (site / "404.html").read_text(encoding="utf8")


def test_without_an_address_the_pages_have_nothing_of_it():
    if not repository_address():
        assert not (HTML / "sitemap.xml").exists() and not (HTML / "404.html").exists()
        page = (HTML / "chapters" / "claims.html").read_text(encoding="utf8")
        assert "og:" not in page and "colab" not in page and "mybinder" not in page and 'rel="canonical"' not in page


def test_a_notebook_begins_with_a_cell_for_colab():
    """It is there once, no page shows it, and it goes when the address does."""
    notebook = nbformat.read(ROOT / "chapters" / "claims.ipynb", as_version=4)
    before = len(notebook.cells)
    for _ in range(2):
        notebook = with_colab_cell(notebook, ADDRESS)
        nbformat.validate(notebook)
        first, second = notebook.cells[:2]
        assert f'"dpm @ git+{ADDRESS}"' in first.source and "remove-cell" in first.metadata["tags"]
        assert "google.colab" not in second.source and len(notebook.cells) == before + 1
    assert notebook.metadata["accelerator"] == "GPU"
    assert len(with_colab_cell(notebook, "").cells) == before


def test_printed_lines_are_those_of_every_cell():
    stream = nbformat.v4.new_output("stream", text="K 1.0\nK* 2.0\n")
    table = nbformat.v4.new_output("execute_result", data={"text/markdown": "| a |", "text/plain": "<Markdown>"})
    cells = [nbformat.v4.new_code_cell(outputs=[output]) for output in (stream, table)]
    assert printed(nbformat.v4.new_notebook(cells=cells)) == ["K 1.0", "K* 2.0", "| a |"]
