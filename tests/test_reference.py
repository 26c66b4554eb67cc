"""The reference pages: the glossary names what there is, every docstring has its page, and links lead back."""

import ast
import importlib
import inspect
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from built import HTML, built

from dpm.experiments.registry import EXPERIMENTS
from dpm.experiments.shipped import load_result

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
crossref = importlib.import_module("crossref")
equations = importlib.import_module("equations")

NOTATION = (ROOT / "chapters" / "notation.md").read_text("utf8")
MODULES = sorted(path.stem for path in (ROOT / "dpm").glob("*.py") if path.stem != "__init__")
LINKS = sorted(set(re.findall(r"\{py:obj\}`([^<`]+) <(dpm[^>]+)>`", NOTATION)))


def page_of(module):
    return "command_line" if module == "__main__" else module


def exists(full):
    """Whether a dotted name is an attribute of dpm: of a module, a class, or what a class's __init__ makes."""
    _, module, *names = full.split(".")
    found = importlib.import_module(f"dpm.{module}")
    for name in names:
        if isinstance(found, type) and not hasattr(found, name):
            return name in found.__annotations__ or f"self.{name} = " in inspect.getsource(found)
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


# the glossary


@pytest.mark.parametrize(("words", "full"), LINKS)
def test_a_name_in_the_glossary_is_a_name_in_dpm(words, full):
    assert exists(full) and words.split(".")[-1] == full.split(".")[-1]


def test_names_that_are_not_there_are_noticed():
    assert not any(map(exists, ["dpm.bound.Bound.L", "dpm.bound.L", "dpm.forward.Chain.alpha", "dpm.bound.evaluate.K"]))
    assert all(map(exists, ["dpm.bound.Bound.K", "dpm.bound.Bound.kl", "dpm.forward.Chain.alpha_bar"]))


def test_other_code_in_the_glossary_is_an_argument_a_shape_or_a_key_of_a_record():
    arguments = set()
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / "dpm" / f"{module}.py").read_text("utf8"))):
            if isinstance(node, ast.arg):
                arguments.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                arguments.add(node.target.id)
    keys = (
        load_result("swiss_roll", "paper").keys()
        | load_result("mnist", "cpu").keys()
        | EXPERIMENTS["mnist"].paper.keys()
    )
    plain = re.findall(r"`([^`]+)`", re.sub(r"\{[\w:]+\}`[^`]*`", "", NOTATION))
    assert {"x0", "xt", "rate", "K_bits", "S"} <= set(plain)
    for code in plain:
        names = set() if code.startswith("[") else set(re.findall(r"\w+", code))
        assert names <= arguments | keys | {"dpm"}, code


# docstrings as pages


def test_every_module_has_a_page_in_the_order_of_the_overview_and_of_the_contents():
    overview = re.findall(r"<api/(\w+)>", (ROOT / "chapters" / "api.md").read_text("utf8"))
    contents = re.findall(r"chapters/api/(\w+)", (ROOT / "_toc.yml").read_text("utf8"))
    assert overview == contents and sorted(overview) == sorted(map(page_of, MODULES))
    for module in MODULES:
        text = (ROOT / "chapters" / "api" / f"{page_of(module)}.md").read_text("utf8")
        assert f".. automodule:: dpm.{module}\n" in text


def test_the_example_of_the_overview_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "chapters" / "api.md").read_text("utf8"), flags=re.S)
    names = {}
    exec(code, names)
    assert (
        names["K"].shape == (1000,)
        and names["K"].mean() < names["EXPERIMENTS"]["swiss_roll"].ideal.log_prob(names["x0"]).mean()
    )


KNOWN = {
    "dpm.bound.Bound",
    "dpm.bound.Bound.K",
    "dpm.bound.in_bits",
    "dpm.reverse.trajectory",
    "dpm.posterior.trajectory",
}
TARGET = equations.ROWS | {"(14)": "eq-14", "(37)": "eq-39", "(38)": "eq-39", "(39)": "eq-39", "(43)": "eq-43"}


@pytest.mark.parametrize(
    ("text", "rst"),
    [
        ("K of equation (14), by (9).", r"K of equation \ :ref:`(14) <eq-14>`\ , by \ :ref:`(9) <row-9>`\ ."),
        ("(37)-(39)", r"\ :ref:`(37)-(39) <eq-39>`\ "),
        ("(40)-(43)", r"\ :ref:`(40) <row-40>`–:ref:`(43) <eq-43>`\ "),
        ("f(2) of (2015)", "f(2) of (2015)"),
        ("Table App.1 and", r"\ :ref:`Table App.1 <row-table-app-1>`\  and"),
        ("Tables 1 and 2", r"\ Tables :ref:`1 <row-table-1>` and :ref:`2 <row-table-2>`\ "),
        ("`in_bits`", r"\ :py:obj:`in_bits <dpm.bound.in_bits>`\ "),
        ("`K` of `Bound`", r"\ :py:obj:`K <dpm.bound.Bound.K>`\  of \ :py:obj:`Bound <dpm.bound.Bound>`\ "),
        ("`reverse.trajectory`", r"\ :py:obj:`reverse.trajectory <dpm.reverse.trajectory>`\ "),
        ("`chunk`", r"\ ``chunk``\ "),
        ("[B, D] → [B] in [0, 1]", r"\ ``[B, D]``\  → \ ``[B]``\  in [0, 1]"),
        ("q(x^{t−1}|x^t)", r"q(x\ :sup:`t−1`\ \|x\ :sup:`t`\ )"),
        ("β_t, L_null, log_odds, Σ_{s≤t}", r"β\ :sub:`t`\ , L\ :sub:`null`\ , log\_odds, Σ\ :sub:`s≤t`\ "),
        ("2^(n−1)·a_cᵀh", r"2\ :sup:`n−1`\ ·a\ :sub:`c`\ ᵀh"),
        ("K*, (App. D)", r"K\*, (App.\  D)"),
    ],
)
def test_a_docstring_becomes_restructured_text(text, rst):
    assert crossref.as_rst(text, "dpm.bound.Bound", KNOWN, TARGET) == rst


def docstrings():
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / "dpm" / f"{module}.py").read_text("utf8"))):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                yield f"dpm.{module}", ast.get_docstring(node)


def test_every_citation_in_dpm_becomes_a_link_to_its_formula_or_its_row():
    target, known = equations.ROWS | equations.targets(ROOT), crossref.documented(ROOT)
    cited = set()
    for module, text in docstrings():
        rst = crossref.as_rst(text, module, known, target)
        assert not equations.cited(re.sub(r":ref:`[^`]*`", "", rst)), text
        for words, to in re.findall(r":ref:`(\([^<]*\)) <([^>]*)>`", rst):
            assert {target[name] for name in equations.cited(words)} == {to}, text
            cited |= equations.cited(words)
    assert {"(14)", "(44)", "(65)"} <= cited


# the built pages


documented = cache(crossref.documented)


def api(module):
    return HTML / "chapters" / "api" / f"{page_of(module)}.html"


@pytest.mark.parametrize("module", MODULES)
def test_every_docstring_has_its_place_and_nothing_else_has(module):
    """Nothing else: no member that torch gives to every module."""
    source = (ROOT / "dpm" / f"{module}.py").read_text("utf8")
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names = {node.name for node in nodes if ast.get_docstring(node)}
    shown = {anchor for anchor in built()[api(module)].places if anchor.startswith(f"dpm.{module}.")}
    assert {name for name in documented(ROOT) if name.startswith(f"dpm.{module}.")} <= shown
    for anchor in shown:
        name = anchor.split(".")[-1]
        assert name in names or re.search(rf"(?m)^ *(self\.)?{name}(:| =).*#: ", source), anchor


@pytest.mark.parametrize("module", MODULES)
def test_an_api_page_is_legible(module):
    text = re.sub(r"<[^>]*>", "", api(module).read_text("utf8").split("<article")[1].split("</article")[0])
    assert not re.search(r"&lt;function|at 0x[0-9a-f]{6}|:(ref|sup|sub|py:obj):|``|dpm\.\w+\.\w+\(", text)


def test_every_formula_leads_to_its_row_and_the_row_back_to_it():
    pages = built()
    index = pages[HTML / "chapters" / "equations.html"]
    assert set(equations.ROWS.values()) <= index.places
    targets = equations.targets(ROOT)
    at = {target: [path for path, page in pages.items() if target in page.places] for target in targets.values()}
    for target, (path,) in at.items():
        row = equations.ROWS[f"({target.removeprefix('eq-')})"]
        assert f"equations.html#{row}" in pages[path].links, target
    for names in map(equations.members, equations.SAYS):
        if names[0] in targets:
            (path,) = at[targets[names[0]]]
            assert f"{path.name}#{targets[names[0]]}" in index.links, names


def test_every_function_in_the_index_leads_to_its_page():
    linked = set(built()[HTML / "chapters" / "equations.html"].links)
    for name, cited in equations.homes(ROOT).items():
        if cited:
            assert f"api/{name.split('.')[0]}.html#dpm.{name}" in linked
