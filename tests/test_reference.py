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

pytestmark = pytest.mark.book

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
crossref = importlib.import_module("crossref")
equations = importlib.import_module("equations")

NOTATION = (ROOT / "chapters" / "notation.md").read_text("utf8")
PATHS = equations.modules(ROOT)
MODULES = sorted(PATHS)
LINKS = sorted(set(re.findall(r"\{py:obj\}`([^<`]+) <(dpm[^>]+)>`", NOTATION)))


SHOWN = {
    page.stem: re.findall(r"\.\. automodule:: dpm\.(\S+)\n", page.read_text("utf8"))
    for page in sorted((ROOT / "chapters" / "api").glob("*.md"))
}
PAGE_OF = {module: page for page, modules in SHOWN.items() for module in modules}


def module_of(full):
    """The file of a dotted name: "forward.base" of "dpm.forward.base.ForwardProcess.prior"."""
    parts = full.split(".")[1:]
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next(prefix for prefix in prefixes if prefix in PATHS)


def exists(full):
    """Whether a dotted name is an attribute of dpm: of a module, a class, or what a class's __init__ makes."""
    module = f"dpm.{module_of(full)}"
    found = importlib.import_module(module)
    for name in full.removeprefix(module).split(".")[1:]:
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
    absent = ["bound.PaperBound.L", "bound.L", "forward.base.ForwardProcess.alpha", "bound.evaluate.K", "forward.L"]
    present = [
        "bound.PaperBound.K",
        "bound.PaperBound.kl",
        "forward.base.ForwardProcess.alpha_bar",
        "forward.BIT_KERNELS",
    ]
    assert not any(exists(f"dpm.{name}") for name in absent)
    assert all(exists(f"dpm.{name}") for name in present)


def test_other_code_in_the_glossary_is_an_argument_a_shape_or_a_key_of_a_record():
    arguments = set()
    for module in MODULES:
        for node in ast.walk(ast.parse(PATHS[module].read_text("utf8"))):
            if isinstance(node, ast.arg):
                arguments.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                arguments.add(node.target.id)
    keys = (
        load_result("swiss_roll", "paper").keys()
        | load_result("mnist", "best").keys()
        | EXPERIMENTS["mnist"].paper.keys()
    )
    plain = re.findall(r"`([^`]+)`", re.sub(r"\{[\w:]+\}`[^`]*`", "", NOTATION))
    assert {"x0", "xt", "channels", "K_bits", "n_trajectories"} <= set(plain)
    for code in plain:
        names = set() if code.startswith("[") else set(re.findall(r"\w+", code))
        assert names <= arguments | keys | {"dpm"}, code


# docstrings as pages


def test_every_module_has_a_page_in_the_order_of_the_overview_and_of_the_contents():
    overview = re.findall(r"<api/(\w+)>", (ROOT / "chapters" / "api.md").read_text("utf8"))
    contents = re.findall(r"chapters/api/(\w+)", (ROOT / "_toc.yml").read_text("utf8"))
    assert overview == contents and sorted(overview) == sorted(SHOWN)
    assert sorted(module for modules in SHOWN.values() for module in modules) == MODULES  # each once
    for page, modules in SHOWN.items():
        text = (ROOT / "chapters" / "api" / f"{page}.md").read_text("utf8")
        headings = re.findall(r"(?m)^## `dpm\.(\S+)`$", text)
        assert modules[1:] == headings and re.match(r"# .+: `dpm(\.\w+)?`\n", text)


def test_the_example_of_the_overview_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "chapters" / "api.md").read_text("utf8"), flags=re.S)
    names = {}
    exec(code, names)
    assert names["K"].shape == (1000,) and names["K"].mean() < names["experiment"].ideal.log_prob(names["x0"]).mean()


KNOWN = {
    "dpm.bound.PaperBound",
    "dpm.bound.PaperBound.K",
    "dpm.bound.step_kl",
    "dpm.bound.evaluate",
    "dpm.reverse.sample",
    "dpm.reverse.reverse_step",
    "dpm.reverse.last_state",
    "dpm.posterior.last_state",
    "dpm.forward.gaussian.GaussianForward",
    "dpm.forward.gaussian.GaussianForward.sample_noise",
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
        ("Figures 3\nand 4", "\\ Figures :ref:`3 <row-figure-3>`\nand :ref:`4 <row-figure-4>`\\ "),
        ("`step_kl`", r"\ :py:obj:`step_kl <dpm.bound.step_kl>`\ "),
        (
            "`K` of `PaperBound`",
            r"\ :py:obj:`K <dpm.bound.PaperBound.K>`\  of \ :py:obj:`PaperBound <dpm.bound.PaperBound>`\ ",
        ),
        ("`reverse.sample`", r"\ :py:obj:`reverse.sample <dpm.reverse.sample>`\ "),
        ("`evaluate`", r"\ :py:obj:`evaluate <dpm.bound.evaluate>`\ "),
        # of another file: by its one name, unless it may be an argument, is a method, or is ambiguous
        ("`GaussianForward`", r"\ :py:obj:`GaussianForward <dpm.forward.gaussian.GaussianForward>`\ "),
        ("`reverse_step`", r"\ :py:obj:`reverse_step <dpm.reverse.reverse_step>`\ "),
        ("`sample`, `sample_noise`, `last_state`", r"\ ``sample``\ , \ ``sample_noise``\ , \ ``last_state``\ "),
        ("`chunk`", r"\ ``chunk``\ "),
        ("[B, D] → [B] in [0, 1]", r"\ ``[B, D]``\  → \ ``[B]``\  in [0, 1]"),
        ("q(x^{t−1}|x^t)", r"q(x\ :sup:`t−1`\ \|x\ :sup:`t`\ )"),
        ("β_t, L_null, log_odds, Σ_{s≤t}", r"β\ :sub:`t`\ , L\ :sub:`null`\ , log\_odds, Σ\ :sub:`s≤t`\ "),
        ("2^(n−1)·a_cᵀh", r"2\ :sup:`n−1`\ ·a\ :sub:`c`\ ᵀh"),
        ("K*, (App. D)", r"K\*, (App.\  D)"),
    ],
)
def test_a_docstring_becomes_restructured_text(text, rst):
    assert crossref.as_rst(text, "dpm.bound.PaperBound", KNOWN, TARGET) == rst


def docstrings():
    for module in MODULES:
        for node in ast.walk(ast.parse(PATHS[module].read_text("utf8"))):
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
    return HTML / "chapters" / "api" / f"{PAGE_OF[module]}.html"


@pytest.mark.parametrize("module", MODULES)
def test_every_docstring_has_its_place_and_nothing_else_has(module):
    """Nothing else: no member that torch gives to every module."""
    source = PATHS[module].read_text("utf8")
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names = {node.name for node in nodes if ast.get_docstring(node)}
    places = {anchor for anchor in built()[api(module)].places if anchor.startswith("dpm.") and anchor.count(".") > 1}
    shown = {anchor for anchor in places if module_of(anchor) == module} - {f"dpm.{module}"}
    assert {name for name in documented(ROOT) if module_of(name) == module} <= shown
    for anchor in shown:
        name = anchor.split(".")[-1]
        assert name in names or re.search(rf"(?m)^ *(self\.)?{name}(:| =).*#: |^#: .*\n{name}: ", source), anchor


def test_a_name_that_a_package_passes_on_leads_to_the_file_that_defines_it():
    names = crossref.imported(importlib.import_module("dpm.bound"))
    assert names["ForwardProcess"] == "dpm.forward.base.ForwardProcess" and names["Tensor"] == "torch.Tensor"
    assert names["ReverseModel"] == "dpm.reverse.ReverseModel" and names["Bound"] == "dpm.bound.Bound"
    assert "#dpm.forward.base.ForwardProcess" in "".join(built()[api("bound")].links)


def test_the_page_of_the_command_line_has_the_usage_of_every_command():
    parser = importlib.import_module("dpm.cli.parser").build_parser()
    (commands,) = (action.choices for action in parser._actions if action.choices)
    text = re.sub(r"<[^>]*>", "", api("cli.parser").read_text("utf8"))
    assert {"train", "evaluate", "sample"} <= set(commands)
    for command in commands:
        assert f"usage: dpm {command} " in text


@pytest.mark.parametrize("module", MODULES)
def test_an_api_page_is_legible(module):
    text = re.sub(r"<[^>]*>", "", api(module).read_text("utf8").split("<article")[1].split("</article")[0])
    assert not re.search(r"&lt;function|at 0x[0-9a-f]{6}|:(ref|sup|sub|py:obj):|``|dpm(\.\w+)+\(", text)


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
            assert f"api/{PAGE_OF[module_of(f'dpm.{name}')]}.html#dpm.{name}" in linked
