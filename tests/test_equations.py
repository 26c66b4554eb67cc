"""The equation index: everything in the paper has a function, a chapter and a test, and the page says which."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("equations", ROOT / "tools" / "equations.py")
equations = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(equations)


def test_the_index_asks_for_all_of_the_paper():
    figures = ["Figure 1", "Figure 2", "Figure 3", "Figure 4", "Figure 5", "Figure App.1", "Figure D.1"]
    want = [f"({n})" for n in range(1, 66)] + ["Table 1", "Table 2", "Table App.1", *figures]
    assert want == equations.EVERYTHING


def test_everything_has_a_function_a_chapter_and_a_test():
    assert not equations.missing(ROOT)


def test_the_page_is_the_one_that_the_sources_make():
    assert (ROOT / "chapters" / "equations.md").read_text("utf8") == equations.page(ROOT), "python tools/equations.py"


REFERENCES = {
    "function": ("dpm/**/*.py", "(15)"),
    "chapter": ("chapters/evidence_lower_bound.ipynb", "tag{15}"),
    "test": ("tests/test_training.py", "Equation (15)"),
}


@pytest.mark.slow
def test_deleted_references_are_noticed(tmp_path):
    """One after the other, in a copy."""
    shutil.copy(ROOT / "_toc.yml", tmp_path)  # it has the order of the chapters
    for folder in ("dpm", "chapters", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    pages, deleted = [equations.page(ROOT)], []
    assert equations.page(tmp_path) == pages[0]
    for kind, (files, reference) in REFERENCES.items():
        for path in tmp_path.glob(files):
            path.write_text(path.read_text("utf8").replace(reference, ""), "utf8")
        deleted.append(kind)
        pages.append(equations.page(tmp_path))
        assert equations.missing(tmp_path)["(15)"] == deleted and pages[-1] != pages[-2]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("K of equation (14), by (9).", "(9) (14)"),
        ("(37)-(39)", "(37) (38) (39)"),
        ("(37) to (39), and (41)–(42)", "(37) (38) (39) (41) (42)"),
        ("the paper's (10) to\n(13)", "(10) (11) (12) (13)"),
        ("see {ref}`(25–27) <eq-27>`; (43) and (46)", "(25) (26) (27) (43) (46)"),
        (r"\tag{24, 36} \tag{31–32} \tag{44}", "(24) (31) (32) (36) (44)"),
        ("**(15)**, [(16)](x), (“(17)”), $K_{(14)}$", "(14) (15) (16) (17)"),
        ("Tables 1 and 2, Table App.1.", "Table 1|Table 2|Table App.1"),
        ("Tables 1\nand 2, Table\nApp.1, Figures 3\nto 5", "Table 1|Table 2|Table App.1|Figure 3|Figure 4|Figure 5"),
        ("Figures 1 to 3 and App.1; Figure D.1", "Figure 1|Figure 2|Figure 3|Figure App.1|Figure D.1"),
        ("Sohl-Dickstein et al. (2015), Neal (1997), (2.4.1), (0), (66), (100)", ""),
        ("f(2), a[0](3), x^(2), g()(4), [B, 2], (1, 2), (2.4), (14 of them)", ""),
        ("Figure 10, Table 2.1, Section 2, Figure A, a table 1", ""),
    ],
)
def test_citations_are_seen_and_nothing_else(text, found):
    assert equations.cited(text) == set(found.split("|") if "e" in found else found.split())


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, "utf8")


def test_files_of_packages_count_under_their_dotted_names(tmp_path):
    write(tmp_path, "dpm/__init__.py", 'def f():\n    """(1)"""\n')
    write(tmp_path, "dpm/a/__init__.py", 'def f():\n    """(2)"""\n')
    write(tmp_path, "dpm/a/b.py", 'class C:\n    """(3)"""\n    def m(self):\n        """(4)"""\n')
    assert list(equations.modules(tmp_path)) == ["a", "a.b"]
    assert equations.homes(tmp_path) == {"a.f": {"(2)"}, "a.b.C": {"(3)"}, "a.b.C.m": {"(4)"}}
    assert [equations.short(name) for name in ("a.f", "a.b.C", "a.b.C.m")] == ["a.f", "C", "C.m"]


def test_short_names_tell_functions_classes_and_methods_apart():
    names = list(equations.homes(ROOT))
    assert len(set(map(equations.short, names))) == len(names) > 100


def test_the_test_that_the_page_explains_is_there():
    assert equations.title("test_networks.py::test_bumps_are_equation_63") in " ".join(equations.HEAD.split())
    assert "(63)" in equations.tests(ROOT)["test_networks.py::test_bumps_are_equation_63"]


def test_docstrings_of_functions_classes_and_methods_count_and_no_others(tmp_path):
    code = '"""(1)"""\n# (2)\ndef f():\n    """(3)"""\n    def g():\n        """(4)"""\ndef _h():\n    """(5)"""\n'
    write(tmp_path, "dpm/a.py", code + 'class C:\n    """(6)"""\n    def m(self):\n        """(7)"""\n        "(8)"\n')
    assert equations.homes(tmp_path) == {"a.f": {"(3)"}, "a.C": {"(6)"}, "a.C.m": {"(7)"}}


def test_names_docstrings_and_comments_of_tests_count_and_no_others(tmp_path):
    code = '# (1)\ndef test_f():\n    """(2)"""\n    x = "(3)"  # (4)\ndef helper():\n    """(5)"""\n'
    write(tmp_path, "tests/test_a.py", code + "def test_equations_6_to_8_of_table_app_1_and_Figure_2():\n    pass\n")
    write(tmp_path, "tests/test_equations.py", "def test_equation_9():\n    pass\n")
    f, named = equations.tests(tmp_path).values()
    assert f == {"(2)", "(4)"} and named == {"(6)", "(7)", "(8)", "Table App.1", "Figure 2"}


def test_formulas_are_found_by_the_target_before_them(tmp_path):
    cells = '[{"cell_type": "markdown", "source": ["(eq-3)=\\n", "x \\\\tag{2–3}\\n", "(eq-5)=\\n", "\\\\tag{5}"]},'
    cells += '{"cell_type": "code", "source": ["# (7)"]}]'
    write(tmp_path, "chapters/a_b.ipynb", f'{{"cells": {cells}}}')
    write(tmp_path, "chapters/b.ipynb", '{"cells": []}')
    write(tmp_path, "_toc.yml", "  - file: chapters/b\n  - file: chapters/a_b\n  - file: chapters/not_there\n")
    assert list(equations.chapters(tmp_path)) == ["b", "a_b"]
    assert equations.chapters(tmp_path) == {"b": set(), "a_b": {"(2)", "(3)", "(5)"}}
    target = equations.targets(tmp_path)
    assert target == {"(2)": "eq-3", "(3)": "eq-3", "(5)": "eq-5"}
    assert equations.label("(2)–(3)", target) == "{ref}`(2)–(3) <eq-3>`"
    assert equations.label("(3)–(5)", target) == "{ref}`(3) <eq-3>`–{ref}`(5) <eq-5>`"
    assert equations.label("(5)–(6)", target) == "{ref}`(5) <eq-5>`–(6)"
    assert equations.label("(7)", target) == "(7)" and equations.label("Table 1", target) == "Table 1"
    assert equations.chapter("a_b", True) == "**{doc}`a b <a_b>`**"
    assert equations.title("test_a_b.py::test_c_is_test_d") == "a b: c is test d"
