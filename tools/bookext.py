"""The book's own Sphinx extension: pages ask nothing of the network."""

import re
import shutil
from importlib.metadata import distribution
from pathlib import Path

from docutils import nodes
from laboratory import write_weights

# The theme's Font Awesome script weighs 1.5 MB a page; its icons come from the theme's CSS all the same.
ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*fontawesome[^"]*\.js[^"]*"></script>')
# Of MathJax's 24 MB the pages use the TeX reader, its fonts, and the TeX extensions it loads on demand.
MATHJAX = ("tex-mml-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions")

LABORATORY = "chapters/laboratory"
ONLY_THERE = {"dpm.js", "laboratory.js", "laboratory.css"}


def use_local_mathjax(app, config):
    config.mathjax_path = "mathjax/tex-mml-chtml.js"


def mark_sentences(app, doctree, name):
    """A cell's output of one line is a sentence, which may wrap; of more, a table."""
    for block in doctree.findall(nodes.literal_block):
        if "output" in block["classes"] and "\n" not in block.astext().strip():
            block["classes"].append("sentence")


def load_laboratory_there_only(app, pagename, templatename, context, doctree):
    """Jupyter Book loads every script and style of _static on every page; the laboratory's belong to one."""
    for files in ("script_files", "css_files"):
        context[files] = [
            file
            for file in context[files]
            if pagename == LABORATORY or Path(str(file.filename or "")).name not in ONLY_THERE
        ]


def finish(app, exception):
    if exception is None and app.builder.format == "html":
        static = Path(app.outdir, "_static")
        copy_mathjax(static / "mathjax")
        write_weights(static / "swiss_roll_weights.js")
        drop_icon_script(Path(app.outdir))
        shutil.rmtree(static / "vendor" / "fontawesome" / "6.5.2" / "js", ignore_errors=True)


def copy_mathjax(target):
    package = distribution("sphinx-mathjax-offline")
    source = Path(str(package.locate_file("sphinx-mathjax-offline/static/mathjax")))
    for name in MATHJAX:
        here, there = source / name, target / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if here.is_dir():
            shutil.copytree(here, there, dirs_exist_ok=True)
        else:
            shutil.copy(here, there)


def drop_icon_script(outdir):
    for page in outdir.rglob("*.html"):
        text = page.read_text(encoding="utf8")
        page.write_text(ICON_SCRIPT.sub("", text), encoding="utf8")


def setup(app):
    app.connect("config-inited", use_local_mathjax)
    app.connect("html-page-context", load_laboratory_there_only, priority=900)
    app.connect("doctree-resolved", mark_sentences)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
