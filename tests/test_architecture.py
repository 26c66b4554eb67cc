"""The shape of the module: each file stands on those above it, and what only some files may touch."""

import ast
from pathlib import Path

import pytest

import dpm

ORDER = ["files", "schedules", "forward", "networks", "reverse", "bound", "entropy", "posterior", "optimum", "train"]
ORDER += ["fetch", "datasets", "baselines", "experiments", "results", "plots", "__main__"]
PACKAGE = Path(dpm.__file__).parent
DRAWING = {"matplotlib", "seaborn"}
UNPICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def imports(tree):
    """Every module that an import anywhere in the file names, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "dpm" if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_imports(tree):
    """The files of dpm that a file imports from."""
    return {parts[1] for parts in (name.split(".") for name in imports(tree)) if parts[0] == "dpm" and len(parts) > 1}


def roots(tree):
    return {name.split(".")[0] for name in imports(tree)}


def unpickles(tree):
    """Whether a file imports a pickler or speaks of torch.load, under any name of torch."""
    torches = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "torch"
    }
    called = any(
        isinstance(node, ast.Attribute)
        and node.attr == "load"
        and isinstance(node.value, ast.Name)
        and node.value.id in torches
        for node in ast.walk(tree)
    )
    return called or bool(roots(tree) & UNPICKLING) or "torch.load" in imports(tree)


def undocumented(tree):
    """Public classes and functions of the file without a docstring."""
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if public and not ast.get_docstring(node):
            yield node.name


def parse(name):
    return ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))


def test_the_order_names_every_file():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)
    assert not own_imports(parse("__init__"))


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_files_above_it(name):
    assert own_imports(parse(name)) <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize("name", ["__init__", *ORDER])
def test_only_plots_draws(name):
    assert bool(roots(parse(name)) & DRAWING) == (name == "plots")


@pytest.mark.parametrize("name", ["__init__", *ORDER])
def test_nothing_is_unpickled(name):
    assert not unpickles(parse(name))


@pytest.mark.parametrize("name", ORDER)
def test_every_public_function_and_class_has_a_docstring(name):
    assert ast.get_docstring(parse(name))
    assert list(undocumented(parse(name))) == []


def test_the_checks_above_see_what_they_look_for():
    """Each of them, on a line that breaks its rule."""
    for line in ("from dpm.train import Run", "from dpm import train", "import dpm.train as x", "from . import train"):
        assert own_imports(ast.parse(line)) == {"train"}
    assert own_imports(ast.parse("def f():\n    from dpm.train import Run")) == {"train"}
    assert roots(ast.parse("import matplotlib.pyplot as plt\nfrom seaborn import color_palette")) == DRAWING
    for line in ("import torch\ntorch.load(f)", "import torch as t\nt.load(f)", "from torch import load"):
        assert unpickles(ast.parse(line))
    assert unpickles(ast.parse("from pickle import loads"))
    assert not unpickles(ast.parse("import torch\nload(f)"))
    assert list(undocumented(ast.parse("def f():\n    pass\n\nclass C:\n    x = 1\n\ndef _g():\n    pass"))) == [
        "f",
        "C",
    ]
