"""The shape of the module: each file stands on those above it, and what only a few files may touch."""

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import dpm

ORDER = ["errors", "files", "units", "distributions", "schedules"]
ORDER += ["forward.base", "forward.gaussian", "forward.bernoulli", "forward.absorbing", "forward"]
ORDER += ["networks", "networks.layers", "networks.unet", "networks.denoisers", "networks.paper"]
ORDER += ["reverse", "bound", "importance", "entropy", "posterior", "ideal", "adapters", "pipelines"]
ORDER += ["distributed", "training", "profiling", "provenance"]
ORDER += ["data", "data.download", "data.images", "data.folder", "data.synthetic", "data.sets"]
ORDER += ["baselines"]
ORDER += ["experiments", "experiments.shipped", "experiments.base"]
ORDER += ["experiments.swiss_roll", "experiments.heartbeat", "experiments.digits", "experiments.mnist"]
ORDER += ["experiments.dead_leaves", "experiments.bark", "experiments.cifar10", "experiments.registry"]
ORDER += ["evaluation", "scoring", "figures", "player"]
ORDER += ["cli", "cli.parser", "cli.output", "cli.listing", "cli.train", "cli.evaluate", "cli.score"]
ORDER += ["cli.ideal", "cli.sample", "cli.baselines", "cli.main", "__main__"]
PACKAGE = Path(dpm.__file__).parent
ROOT = PACKAGE.parent
DRAWING = {"matplotlib", "seaborn"}
DRAWS = {"figures", "player", "cli.sample"}
UNPICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LONGEST = 60  # lines of a function
RETIRED = re.compile(  # old names; a class of one letter keeps this list from finding itself
    r"\b([e]verywhere|[h]olding|[B]itRates|[e]rase_evenly|[a]t_time|[c]olumns_at|[l]ook_up|[P]arted|[H]alved|[P]airBlock"
    r"|[f]aded_waves|[S]tepReadout|[B]lurredOptimum|[w]ith_constants|[e]valuate_some|[a]long_trajectory|[p]er_sample"
    r"|[s]tep_back)\b"
)


def path_of(name):
    """The file of a module: dpm/forward/base.py of "forward.base", dpm/forward/__init__.py of "forward"."""
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def parse(name):
    return ast.parse(path_of(name).read_text(encoding="utf-8"))


def imports(tree, package=""):
    """Every module that an import anywhere in a file of `package` names, `from a import b` as a.b."""
    above = ["dpm", *package.split(".")] if package else ["dpm"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = above[: len(above) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_imports(tree, package=""):
    """The files of dpm that a file imports from; what is in none of them, under its own name; dpm itself as ""."""
    found = set()
    for name in imports(tree, package):
        root, *parts = name.split(".")
        if root == "dpm":
            prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            found.add(next((prefix for prefix in prefixes if prefix in ORDER), ".".join(parts)))
    return found


def package_of(name):
    """The package that `from . import x` means in a file."""
    return name if path_of(name).name == "__init__.py" else name.rpartition(".")[0]


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
    """Public classes, functions and methods of the file without a docstring."""
    scopes = [("", tree)]
    for prefix, scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    yield prefix + node.name
                if isinstance(node, ast.ClassDef):
                    scopes.append((f"{prefix}{node.name}.", node))


def classes(tree):
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


KINDS = set().union(*(classes(parse(name)) for name in ORDER if name.split(".")[0] in ("forward", "distributions")))


def asks_for_a_kind(tree):
    """Classes of forward processes and distributions for which a file asks, by isinstance, issubclass or a match."""
    meant = {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    asked = []
    for node in ast.walk(tree):
        if isinstance(node, ast.MatchClass):
            asked.append(node.cls)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asked += node.args[1:] if node.func.id in ("isinstance", "issubclass") else []
    named = (part for expression in asked for part in ast.walk(expression))
    words = {getattr(part, "id", None) or getattr(part, "attr", None) for part in named}
    return {meant.get(word, word) for word in words} & KINDS


def long_functions(tree):
    """Functions and methods over LONGEST lines."""
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.name for node in functions if node.end_lineno - node.lineno + 1 > LONGEST]


def test_the_order_names_every_file():
    files = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")} - {Path("__init__")}
    names = [".".join(path.parts).removesuffix(".__init__") for path in files]
    assert sorted(names) == sorted(ORDER)
    assert not own_imports(parse("__init__"))


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_files_above_it(name):
    assert own_imports(parse(name), package_of(name)) <= set(ORDER[: ORDER.index(name)])


def test_import_dpm_and_its_command_line_load_nothing_heavy():
    """Neither torch nor a file of dpm, until a name is used."""
    code = "import json, sys, {}; print(json.dumps(sorted(sys.modules)))"

    def loaded(name):
        run = subprocess.run(
            [sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True, cwd=ROOT
        )
        return set(json.loads(run.stdout))

    assert not {name for name in loaded("dpm") if name.startswith("dpm.") or name == "torch"}
    assert not {"torch", "numpy", *DRAWING} & loaded("dpm.cli.main")


@pytest.mark.parametrize("name", dpm.__all__)
def test_a_name_of_the_package_is_the_one_of_its_home(name):
    home = dpm._HOME_OF[name]
    assert home in ORDER and getattr(dpm, name) is getattr(import_module(f"dpm.{home}"), name)


@pytest.mark.parametrize("name", ["__init__", *ORDER])
def test_only_figures_draw(name):
    assert bool(roots(parse(name)) & DRAWING) == (name in DRAWS)


@pytest.mark.parametrize("name", ["__init__", *ORDER])
def test_nothing_is_unpickled(name):
    assert not unpickles(parse(name))


@pytest.mark.parametrize("name", ["__init__", *ORDER])
def test_every_public_function_class_and_method_has_a_docstring(name):
    assert ast.get_docstring(parse(name))
    assert list(undocumented(parse(name))) == []


@pytest.mark.parametrize("name", [name for name in ORDER if name.split(".")[0] not in ("forward", "distributions")])
def test_no_file_asks_which_forward_process_or_distribution_it_has(name):
    """A method says what differs, so that a new kernel needs no change elsewhere."""
    assert asks_for_a_kind(parse(name)) == set()


@pytest.mark.parametrize("name", ["__init__", *ORDER])
def test_no_function_is_long(name):
    assert long_functions(parse(name)) == []


@pytest.mark.parametrize(
    "path",
    [path for folder in ("dpm", "tests", "tools", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_retired_word_comes_back(path):
    assert RETIRED.findall(path.read_text("utf8")) == []


@pytest.mark.parametrize("path", sorted((ROOT / "chapters").glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_retired_word_comes_back_in_the_code_of_a_chapter(path):
    cells = json.loads(path.read_text("utf8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code and RETIRED.findall("\n".join(code)) == []


def test_the_checks_above_see_what_they_look_for():
    """Each of them, on a line that breaks its rule."""
    for line in (
        "from dpm.training import TrainState",
        "from dpm import training",
        "import dpm.training as x",
        "from . import training",
        "from .training import TrainState",
    ):
        assert own_imports(ast.parse(line)) == {"training"}
    assert own_imports(ast.parse("def f():\n    from dpm.training import TrainState")) == {"training"}
    for line in (
        "from dpm.forward.base import ForwardProcess",
        "from dpm.forward import base",
        "import dpm.forward.base",
    ):
        assert own_imports(ast.parse(line)) == {"forward.base"}
    assert own_imports(ast.parse("from dpm.forward import GaussianForward")) == {"forward"}
    for line in ("from . import base", "from .base import sum_except_batch", "from ..forward import base"):
        assert own_imports(ast.parse(line), "forward") == {"forward.base"}
    assert own_imports(ast.parse("from .. import training"), "forward") == {"training"}
    assert own_imports(ast.parse("import dpm")) == {""} and own_imports(ast.parse("from dpm import sample")) == {
        "sample"
    }
    assert package_of("forward") == package_of("forward.base") == "forward" and package_of("bound") == ""
    assert roots(ast.parse("import matplotlib.pyplot as plt\nfrom seaborn import color_palette")) == DRAWING
    for line in ("import torch\ntorch.load(f)", "import torch as t\nt.load(f)", "from torch import load"):
        assert unpickles(ast.parse(line))
    assert unpickles(ast.parse("from pickle import loads"))
    assert not unpickles(ast.parse("import torch\nload(f)"))
    assert list(undocumented(ast.parse("def f():\n    pass\n\nclass C:\n    x = 1\n\ndef _g():\n    pass"))) == [
        "f",
        "C",
    ]
    method = 'class C:\n    """Said."""\n    def m(self):\n        pass\n    def __call__(self):\n        pass'
    assert list(undocumented(ast.parse(method))) == ["C.m"]
    assert {"ForwardProcess", "AbsorbingForward", "Normal", "Categorical"} <= KINDS
    for line in (
        "isinstance(q, GaussianForward)",
        "isinstance(q, (Tensor, forward.GaussianForward))",
        "isinstance(q, Tensor | GaussianForward)",
        "issubclass(type(q), GaussianForward)",
        "from dpm.forward import GaussianForward as G\nisinstance(q, G)",
        "match q:\n    case GaussianForward():\n        pass",
    ):
        assert asks_for_a_kind(ast.parse(line)) == {"GaussianForward"}
    assert not asks_for_a_kind(ast.parse("isinstance(t, Tensor)\nGaussianForward(isinstance)"))
    body = "    x = 1\n" * LONGEST
    assert long_functions(ast.parse(f"class C:\n  def m():\n{body}\ndef g():\n{body[:-10]}\n")) == ["m"]
    for word in re.findall(r"\[(\w)\](\w+)", RETIRED.pattern):
        assert RETIRED.findall(f"law.{''.join(word)}(x)") == ["".join(word)]
    assert not RETIRED.findall("withhold at_times Partedness")
