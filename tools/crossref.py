"""Sphinx extension: docstrings as pages, and links between them, the equations and the index of equations.

A docstring of dpm is plain prose. Here a citation in it, "(14)", becomes a link to the formula or to its row in the
index; a name in backticks one to that function, or code; shapes become code, x^t and β_t raised and lowered letters.
"""

import ast
import inspect
import os
import re
import textwrap
from operator import attrgetter
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import equations
from docutils import nodes
from sphinx import addnodes

ROOT = Path(__file__).parent.parent
LETTER = "A-Za-zα-ωΑ-Ω"
MARKS = {
    "code": r"`[^`]+`",
    "cited": equations.NUMBER.pattern,
    "named": equations.NAMED.pattern,
    "shape": r"\w*\[(?!0, 1\])[^][()]+\]",  # [B, D], loss[j, k], not the interval [0, 1]
    "sup": r"\^(?:\{[^{}]*\}|\([^()]*\)|[^\W_]+)",  # x^t, x^{t−1}, 2^(n−1)
    "sub": rf"(?<![{LETTER}][{LETTER}0-9])_(?:\{{[^{{}}]*\}}|[{LETTER}0-9]+(?:…T)?)",  # β_t, Σ_{s≤t}, not log_odds
    "abbreviated": r"App\. ",  # a full stop that ends no sentence
    "special": r"[\\*|_]",
}
MARK = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in MARKS.items()))


def documented(root: Path) -> set[str]:
    """Functions, classes and methods that the API pages show: "dpm.bound.PaperBound"."""
    return {f"dpm.{name}" for name in equations.homes(root)}


def as_rst(text: str, name: str, known: set[str], target: dict[str, str]) -> str:
    """The docstring of the object `name`, plain prose, as reStructuredText. Line breaks stay."""

    def marked(found: re.Match) -> str:
        words = found.group()
        match found.lastgroup:
            case "special":
                return f"\\{words}"
            case "abbreviated":
                return "App.\\  "
            case "code":
                full = resolve(words[1:-1], name, known)
                rst = f":py:obj:`{words[1:-1]} <{full}>`" if full else f"`{words}`"
            case "cited":
                rst = "–".join(link(*end) for end in equations.ends(words, target))
            case "named":
                rst = to_rows(words)
            case "shape":
                rst = f"``{words}``"
            case role:
                inner = words[2:-1] if words[1] in "{(" else words[1:]
                rst = f":{role}:`{inner}`"
        return f"\\ {rst}\\ "

    return MARK.sub(marked, text)


def link(words: str, to: str) -> str:
    """A link to a formula or a row."""
    return f":ref:`{words} <{to}>`"


def to_rows(words: str) -> str:
    """Tables or figures linked to their rows: "Table 1" whole, of "Tables 1 and 2" the numbers."""
    names = equations.cited(words)
    if len(names) == 1:
        return link(words, equations.ROWS[names.pop()])
    kind = words.split()[0].removesuffix("s")
    return re.sub(equations.OBJECT, lambda one: link(one[0], equations.ROWS[f"{kind} {one[0]}"]), words)


def resolve(word: str, name: str, known: set[str]) -> str | None:
    """The full name of what the docstring of `name` calls `word`.

    That is a member of its own, a neighbour, or one of dpm; or else a class or function of another file, where only one
    has that name. A plain word in lower case may be an argument: it stays what it is.
    """
    parts = name.split(".")
    around = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    near = [f"{scope}.{word}" for scope in around if f"{scope}.{word}" in known]
    elsewhere = [full for full in known if full.endswith(f".{word}") and full.rpartition(".")[0] not in known]
    is_plain = word.islower() and "_" not in word
    return near[0] if near else elsewhere[0] if len(elsewhere) == 1 and not is_plain else None


def contents(module) -> list[str]:
    """Public functions and classes of a module, in source order."""
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return [name for name, value in own.items() if callable(value) and value.__doc__ and not name.startswith("_")]


def imported(module) -> dict[str, str]:
    """Names at the top of a module to where they come from: "ForwardProcess" to "dpm.forward.base.ForwardProcess"."""
    names = {name: f"{module.__name__}.{name}" for name in vars(module)}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names |= {alias.asname or alias.name: base + alias.name for alias in node.names}
    for name, value in vars(module).items():  # what a package passes on has its page in the file that defines it
        if getattr(value, "__module__", "").startswith("dpm.") and hasattr(value, "__name__"):
            names[name] = f"{value.__module__}.{value.__name__}"
    return names


class Qualified(ast.NodeTransformer):
    """Annotations as written, each name with its module, which "~" hides from the reader."""

    def __init__(self, module):
        self.module, self.names = module, imported(module)

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(f"~{self.names[node.id]}" if node.id in self.names else node.id)

    def visit_Attribute(self, node: ast.Attribute) -> ast.Name:
        named = attrgetter(ast.unparse(node))(self.module)
        return ast.Name(f"~{named.__module__}.{named.__qualname__}")

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return self.visit(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node


def signature(app, what, name, obj, options, shown, returns):
    """Signatures as the source has them: short names for types, defaults as written."""
    if what not in ("function", "method", "class", "exception") or isinstance(obj, TypeVar):
        return None
    if isinstance(obj, type) and issubclass(obj, tuple):
        return None
    function = inspect.unwrap(obj.__init__ if isinstance(obj, type) else obj)
    if not getattr(function, "__module__", "").startswith("dpm."):
        return "", None
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except OSError:  # what a dataclass wrote
        return None
    qualified = Qualified(inspect.getmodule(function))
    if what != "function":
        del node.args.args[0]
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg) and argument.annotation:
            argument.annotation = qualified.visit(argument.annotation)
    returned = node.returns and not isinstance(obj, type)
    return f"({ast.unparse(node.args)})", ast.unparse(qualified.visit(node.returns)) if returned else None


def skip(app, what, name, obj, skipped, options):
    """Leave out what another library put into a class."""
    return True if inspect.isfunction(obj) and not obj.__module__.startswith("dpm.") else None


def docstring(app, what, name, obj, options, lines):
    """A docstring on its way to a page; that of a module is followed by a table of what is in it."""
    lines[:] = as_rst("\n".join(lines), name, app.known, app.target).split("\n")
    if name == "dpm.cli.parser":
        lines += ["", ".. code-block:: text", "", *textwrap.indent(usage(obj), "   ").split("\n")]
    if what == "module" and contents(obj):
        lines += ["", ".. autosummary::", "   :nosignatures:", "", *(f"   {one}" for one in contents(obj)), ""]


def usage(parser) -> str:
    """What `dpm --help` prints, then the usage of each command."""
    top = parser.build_parser()
    (commands,) = (action for action in top._actions if action.choices)
    with patch.dict(os.environ, COLUMNS="72"):  # not the width of whose terminal builds the book
        return "\n".join([top.format_help(), *(one.format_usage() for one in commands.choices.values())])


def link_rows(app, doctree):
    """A small link under each numbered formula, to its row in the index."""
    for block in list(doctree.findall(nodes.math_block)):
        for number in [name[3:] for name in block["ids"] if re.fullmatch(r"eq-\d+", name)]:
            link = addnodes.pending_xref(
                "",
                nodes.inline("", "functions, tests"),
                refdomain="std",
                reftype="ref",
                reftarget=equations.ROWS[f"({number})"],
                refexplicit=True,
                refwarn=True,
                refdoc=app.env.docname,
            )
            block.parent.insert(block.parent.index(block) + 1, nodes.paragraph("", "", link, classes=["to-row"]))


def alias(app, env, node, contents):
    """Find a type that is an alias, `Reverse`: Sphinx looks for types among classes only."""
    if node.get("reftype") == "class":
        return env.domains["py"].resolve_xref(
            env, node["refdoc"], app.builder, "obj", node["reftarget"], node, contents
        )


def prepare(app):
    app.known = documented(ROOT)
    app.target = equations.ROWS | equations.targets(ROOT)


def setup(app):
    app.connect("builder-inited", prepare)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", alias)
    app.connect("doctree-read", link_rows)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
