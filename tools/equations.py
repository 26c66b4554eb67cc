"""Write chapters/equations.md: where each equation, table and figure of the paper lives in module, book and tests.

Nothing is listed by hand but what an equation says: its entries are the docstrings of dpm, the chapters and the tests
that cite it. tests/test_equations.py fails when one of the three has none.
"""

import ast
import io
import json
import re
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FEW = 3  # tests listed for one row

SAYS = {
    "(1)": "π is the stationary distribution of the kernel",
    "(2)": "the forward process: one transition",
    "(3)": "the forward process: a trajectory, the product of its transitions",
    "(4)": "the reverse process starts at π",
    "(5)": "the reverse process: a trajectory, the product of its transitions",
    "(6)": "the model's probability of x⁰, an integral over trajectories",
    "(7)–(8)": "the same integral with importance weights over forward trajectories",
    "(9)": "the same as a mean of importance weights, one per forward trajectory",
    "(10)–(11)": "L, the mean log likelihood of the data",
    "(12)": "Jensen: the log of a mean is at least the mean of the logs",
    "(13)": "L is at least K",
    "(14)": "K, the evidence lower bound: a KL divergence per step, and three entropies",
    "(15)": "training maximises K",
    "(16)": "the model times a second distribution r, at every t",
    "(17)–(20)": "what keeps p, and the product with r, in equilibrium from step to step",
    "(21)": "a perturbed reverse kernel that does, not yet normalised",
    "(22)": "the same kernel, normalised",
    "(23)": "r held constant over t",
    "(24)": "two bounds on the entropy of a reverse step",
    "(25)–(27)": "that entropy, exactly, by Bayes' rule",
    "(28)–(30)": "the upper bound: entropy grows on the way to π",
    "(31)–(35)": "the lower bound: the entropy of x⁰ given the state grows with t",
    "(36)": "both bounds together",
    "(37)–(39)": "K along whole trajectories",
    "(40)–(43)": "the cross entropy of x^T to π becomes H_p(X^T)",
    "(44)": "the final step is set, not learned",
    "(45)–(46)": "and so it cancels from K",
    "(47)–(48)": "each forward transition, reversed by Bayes' rule given x⁰",
    "(49)–(51)": "the entropies telescope, and log ratios become KL divergences",
    "(52)–(60)": "a Gaussian times r: add the energies, expand E_r to first order at μ, complete the square",
    "(61)": "the result: the mean moves by f_Σ ∂log r/∂x",
    "(62)": "the readout of each pixel: a sum over bumps in time",
    "(63)": "bumps in time: normalised radial basis functions",
    "(64)": "f_Σ, a perturbation of β_t",
    "(65)": "f_μ, whose fixed point is z^μ",
    "Table 1": "K and K − L_null of five data sets",
    "Table 2": "log likelihoods beside other models'",
    "Table App.1": "the two kernels and their perturbed reversals",
    "Figure 1": "swiss roll: forward process, reverse process, drift",
    "Figure 2": "heartbeat: samples, and the noise they start from",
    "Figure 3": "CIFAR-10: held-out images, noise added, denoised; samples",
    "Figure 4": "dead leaves: data and samples",
    "Figure 5": "bark: a square missing, and filled in",
    "Figure App.1": "MNIST: samples",
    "Figure D.1": "the network for images",
}

HEAD = """# Find an equation

Every equation, table and figure of the paper: what it says, the functions, classes and methods of `dpm` whose
docstring cites it, the chapters that cite it, in **bold** where it is written out, and tests that check it, three at
most. The test "networks: bumps are equation 63" is `test_bumps_are_equation_63` in `tests/test_networks.py`. A small
link under a formula in a chapter, and a citation in {doc}`the pages of the module <api>`, lead back to the row.
`tools/equations.py` makes this page from docstrings, chapters and tests; a test fails when a row lacks one of the
three.

:::{div} index
| | says | functions | chapters | tests |
|---|---|---|---|---|
"""

NUMBER = re.compile(
    r"(?<![\w.)\]}^])\((\d{1,2})(?:[-–](\d{1,2}))?\)"  # (14), (28–30), neither (2015) nor f(2)
    r"(?:(?:\s+to\s+|[-–])\((\d{1,2})\))?"  # (37)-(39), (37) to (39), also over the end of a line
    r"|\\tag\{([\d, –-]+)\}"  # \tag{25–27}, \tag{24, 36}
)
OBJECT = r"(?:App\.\d|D\.\d|\d)(?![\d\w]|\.\d)"
NAMED = re.compile(rf"\b(Table|Figure)s?\s({OBJECT}(?:(?:,\sand\s|,\s|\sand\s|\sto\s|[-–]){OBJECT})*)")


def cited(text: str) -> set[str]:
    """The equations, tables and figures that a text names: {"(14)", "Table App.1"}."""
    found: set[str] = set()
    for first, inner, outer, tag in NUMBER.findall(text):
        spans = re.findall(r"(\d+)(?:[-–](\d+))?", tag) if tag else [(first, outer or inner)]
        found |= {f"({n})" for a, b in spans for n in range(int(a), int(b or a) + 1) if 1 <= n <= 65}
    for kind, names in NAMED.findall(text):
        for first, last in re.findall(rf"({OBJECT})(?:(?:\sto\s|[-–])({OBJECT}))?", names):
            many = range(int(first), int(last) + 1) if last else [first]
            found |= {f"{kind} {name}" for name in many}
    return found


def anchor(row: str) -> str:
    """The anchor of a row in the page: "row-14", "row-7" for "(7)–(8)", "row-table-app-1"."""
    return "row-" + "-".join(re.findall(r"\w+", row.split("–")[0])).lower()


def members(row: str) -> list[str]:
    """What a row of SAYS stands for: "(7)–(8)" is (7) and (8)."""
    return sorted(cited(row), key=lambda name: int(name.strip("()"))) if row.startswith("(") else [row]


EVERYTHING = [name for row in SAYS for name in members(row)]
ROWS = {name: anchor(row) for row in SAYS for name in members(row)}  # "(27)" is in the row "row-25"


def modules(root: Path) -> dict[str, Path]:
    """The files of dpm by dotted name: "forward.base" to dpm/forward/base.py, "forward" to dpm/forward/__init__.py."""
    package = root / "dpm"
    paths = sorted(path for path in package.rglob("*.py") if path != package / "__init__.py")
    return {".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def homes(root: Path) -> dict[str, set[str]]:
    """Functions, classes and methods of dpm with a docstring, "forward.base.ForwardProcess", to what it cites.

    Not so modules: "Figures 1 to 5" on top of a file would hide that one of them has no function.
    """
    found = {}
    for name, path in modules(root).items():
        scopes: list[tuple[str, ast.Module | ast.ClassDef]] = [(name, ast.parse(path.read_text("utf8")))]
        for prefix, scope in scopes:
            for node in scope.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    if text := ast.get_docstring(node):
                        found[f"{prefix}.{node.name}"] = cited(text)
                    if isinstance(node, ast.ClassDef):
                        scopes.append((f"{prefix}.{node.name}", node))
    return found


def notebooks(root: Path) -> list[Path]:
    """The chapters, in the order of _toc.yml."""
    order = re.findall(r"chapters/(\w+)$", (root / "_toc.yml").read_text("utf8"), flags=re.M)
    paths = [root / "chapters" / f"{name}.ipynb" for name in order]
    return [path for path in paths if path.exists()]


def prose(path: Path) -> str:
    """The text of a notebook."""
    cells = json.loads(path.read_text("utf8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def chapters(root: Path) -> dict[str, set[str]]:
    """Chapters to what their text cites."""
    return {path.stem: cited(prose(path)) for path in notebooks(root)}


def targets(root: Path) -> dict[str, str]:
    """Equations to the `(eq-14)=` before the formula tagged with them."""
    found = {}
    for path in notebooks(root):
        for name, tag in re.findall(r"^\((eq-\d+)\)=$.*?(\\tag\{.*?\})", prose(path), flags=re.S | re.M):
            found |= dict.fromkeys(cited(tag), name)
    return found


def tests(root: Path) -> dict[str, set[str]]:
    """Tests to what their names, docstrings and comments cite; but for the tests of this file."""
    paths = sorted(set((root / "tests").glob("test_*.py")) - {root / "tests" / "test_equations.py"})
    cited_by = {path.name: citing_tests(path.read_text("utf8")) for path in paths}
    return {f"{name}::{test}": cites for name, found in cited_by.items() for test, cites in found.items()}


@cache
def citing_tests(source: str) -> dict[str, set[str]]:
    """The tests of a file, from its text, to what they cite."""
    found = {}
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            inside = [comments.get(line, "") for line in range(node.lineno, (node.end_lineno or 0) + 1)]
            said = [spoken(node.name), ast.get_docstring(node) or "", *inside]
            found[node.name] = cited("\n".join(said))
    return found


def spoken(name: str) -> str:
    """The name of a test as text: "equations_37_to_39" is (37–39), "table_app_1" is Table App.1."""
    name = re.sub(r"equations?_(\d+)(?:_to_(\d+))?", lambda m: f" ({m[1]}–{m[2] or m[1]}) ", name)
    return re.sub(r"(?i)(table|figure)_(app_?)?(\d)", lambda m: f" {m[1].title()} {'App.' * bool(m[2])}{m[3]} ", name)


def missing(root: Path) -> dict[str, list[str]]:
    """Equations, tables and figures without a function, a chapter or a test, and which of the three they lack."""
    entries = {"function": homes(root), "chapter": chapters(root), "test": tests(root)}
    lacks = {
        name: [kind for kind in entries if not any(name in c for c in entries[kind].values())] for name in EVERYTHING
    }
    return {name: kinds for name, kinds in lacks.items() if kinds}


def ends(words: str, target: dict[str, str]) -> list[tuple[str, str | None]]:
    """What of a citation to link, and where to: all of it, or its two ends where they lead to two places."""
    names = members(words)
    first, last = target.get(names[0]), target.get(names[-1])
    return [(words, first)] if first == last else [(names[0], first), (names[-1], last)]


def label(row: str, target: dict[str, str]) -> str:
    """A row's name, linked to the formula in the book, or to the formulas at its two ends."""
    return "–".join(f"{{ref}}`{words} <{to}>`" if to else words for words, to in ends(row, target))


def page(root: Path) -> str:
    """The text of chapters/equations.md."""
    functions, texts, checks, target = homes(root), chapters(root), tests(root), targets(root)
    written = {path.stem: cited("".join(re.findall(r"\\tag\{.*?\}", prose(path)))) for path in notebooks(root)}
    text = HEAD
    for row, says in SAYS.items():
        of = set(members(row))
        code = [f"{{py:obj}}`{short(name)} <dpm.{name}>`" for name in functions if functions[name] & of]
        book = [chapter(name, bool(written[name] & of)) for name in texts if texts[name] & of]
        test = [title(name) for name in checks if checks[name] & of][:FEW]
        cells = [f"[{label(row, target)}]{{#{anchor(row)}}}", says, ", ".join(code), ", ".join(book), "; ".join(test)]
        text += f"| {' | '.join(cells)} |\n"
    return text + ":::\n"


def short(name: str) -> str:
    """The name of a function, class or method that a row shows: "GaussianForward.prior", "bound.step_kl"."""
    parts = name.split(".")
    at = next((k for k, part in enumerate(parts) if part[0].isupper()), 0)
    return ".".join(parts[at:])


def chapter(name: str, bold: bool) -> str:
    """A link to a chapter by the name of its file, in words."""
    link = f"{{doc}}`{name.replace('_', ' ')} <{name}>`"
    return f"**{link}**" if bold else link


def title(name: str) -> str:
    """A test in words, which break over lines: "forward: binomial prior is stationary"."""
    file, test = name.replace("_", " ").split(".py::")
    return f"{file.removeprefix('test ')}: {test.removeprefix('test ')}"


if __name__ == "__main__":
    (ROOT / "chapters" / "equations.md").write_text(page(ROOT), encoding="utf8")
