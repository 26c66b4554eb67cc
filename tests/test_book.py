"""The book as a whole: every cell executed, no page that asks the network for anything, a README that is the record."""

import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from built import HTML, built

from dpm.cli.parser import build_parser
from dpm.experiments.registry import EXPERIMENTS, get_experiment
from dpm.experiments.shipped import load_result, weights_path
from dpm.files import read_tensors

pytestmark = pytest.mark.book

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
SHIPPED = [path.stem.rsplit("-", 1) for path in sorted((ROOT / "data" / "weights").glob("*.safetensors"))]


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_cell_is_executed(path):
    """nbval compares nothing where a cell carries no execution."""
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_figure_has_alt_text_and_a_caption(path):
    for cell in code_cells(path):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert cell.metadata["mystnb"]["image"]["alt"] and cell.metadata["mystnb"]["figure"]["caption"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_asserts(path):
    """A printed number stands in a cell that checks something."""
    sources = [cell.source for cell in code_cells(path) if "def " not in cell.source]
    printing = [source for source in sources if "print(" in source or "Markdown(" in source]
    assert printing and all("assert" in source for source in printing)


NARRATIVE = [path for path in CHAPTERS if path.stem != "index"]
PAGES = re.findall(r"^ *- file: chapters/(\S+)", (ROOT / "_toc.yml").read_text(), re.MULTILINE)


@pytest.fixture(params=NARRATIVE, ids=lambda path: path.stem)
def chapter(request):
    return request.param


def sections(path):
    """The cells of each section, under its heading; what stands before the first is under ""."""
    cells: dict[str, list] = {"": []}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            cells[list(cells)[-1]].append(cell)
            continue
        for part in re.split(r"^(?=## )", cell.source, flags=re.MULTILINE):
            if part.startswith("## "):
                cells[part.splitlines()[0][3:].strip()] = []
            cells[list(cells)[-1]].append(part)
    return cells


def test_a_chapter_is_in_the_contents(chapter):
    assert PAGES.count(chapter.stem) == 1


def test_a_chapter_opens_with_title_place_and_aims(chapter):
    """What a reader will do, learn and need, before any code."""
    title, _, place, *rest = sections(chapter)[""][0].splitlines()
    assert re.fullmatch(r"# [A-Z].+", title) and re.fullmatch(r"\*[^*]+\*", place)
    assert re.findall(r"^- \*\*(You [a-z ]+)\*\*", "\n".join(rest), re.MULTILINE) == [
        "You will",
        "You will learn",
        "You need",
    ]


def test_a_chapter_sets_up_in_one_silent_cell(chapter):
    """Imports stand in the first code cell and nowhere else; it comes second, and prints nothing."""
    second = nbformat.read(chapter, as_version=4).cells[1]
    assert second.cell_type == "code" and not second.outputs
    assert second.source.startswith(("import ", "from ")) and "figures.set_style()" in second.source
    for cell in code_cells(chapter)[1:]:
        assert not re.search(r"^(import|from) ", cell.source, re.MULTILINE)


def test_a_chapter_lists_its_symbols(chapter):
    """A table of the paper's symbols, their names here, and their meaning, before the first section."""
    opening = "\n".join(part for part in sections(chapter)[""] if isinstance(part, str))
    assert re.search(r"^\| (paper|symbol) \|.* here \|.* meaning \|$", opening, re.MULTILINE)


def test_a_chapter_has_exercises_with_solutions_that_assert(chapter):
    """Two to four, numbered, each question followed by one dropdown that runs and checks."""
    parts = sections(chapter)["Exercises"]
    text = "\n".join(part for part in parts if isinstance(part, str))
    solutions = [part for part in parts if not isinstance(part, str)]
    assert 2 <= len(solutions) <= 4
    assert re.findall(r"^\*\*(\d)\.\*\*", text, re.MULTILINE) == [str(k + 1) for k in range(len(solutions))]
    for cell in solutions:
        assert "hide-cell" in cell.metadata["tags"] and re.search(r"^ *assert ", cell.source, re.MULTILINE)


def test_a_chapter_closes_with_practice_reading_and_the_next_page(chapter):
    """The last section; its last line links to the page that follows in the contents."""
    name, parts = list(sections(chapter).items())[-1]
    text = "\n".join(parts)  # text alone: code would not join
    following = PAGES[PAGES.index(chapter.stem) + 1]
    assert name == "In practice" and "**Further reading.**" in text
    (last,) = [block for block in text.split("\n\n") if block.startswith("**Next:**")]
    assert text.rstrip().endswith(last) and re.search(rf"{{doc}}`([^`]+<)?{following}>?`", last)


def test_the_opening_page_maps_every_chapter_and_every_file():
    """From sections to chapters and to `dpm`, less the files that hold nothing of the paper."""
    page = "".join(cell.source for cell in nbformat.read(ROOT / "chapters" / "index.ipynb", as_version=4).cells)
    _, chart = page.split("## From the paper to the code")
    for path in CHAPTERS:
        assert path.stem == "index" or f"{{doc}}`{path.stem}`" in chart, path.stem
    files = {path.stem for path in (ROOT / "dpm").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    nothing_of_the_paper = {
        "files",
        "errors",
        "distributed",
        "runlog",
        "profiling",
        "provenance",
        "figures",
        "player",
        "cli",
    }
    assert files - set(re.findall(r"dpm\.(\w+)[.\w]*`", chart)) == {"__init__", "__main__"} | nothing_of_the_paper


@pytest.fixture
def pages():
    assert len(built()) > len(CHAPTERS)
    return built()


def outside(url):
    return re.match(r"(https?:)?//|mailto:", url)


def test_no_page_loads_from_outside(pages):
    for path, page in pages.items():
        for url in page.loads:
            assert not outside(url), (path.name, url)
            local = url.split("?")[0].split("#")[0]
            assert not local or url.startswith("data:") or (path.parent / local).exists(), (path.name, url)


def test_every_link_leads_somewhere(pages):
    seen = 0
    for path, page in pages.items():
        for url in page.links:
            target, _, place = unquote(url).partition("#")
            there = (path.parent / target).resolve() if target else path
            if not outside(url):
                assert there.exists(), (path.name, url)
                if place and there in pages:
                    assert place in pages[there].places, (path.name, url)
                    seen += 1
    assert seen > 1000


def test_every_picture_has_words(pages):
    for path, page in pages.items():
        assert page.mute == [], path.name


def test_no_stylesheet_loads_from_outside():
    for sheet in HTML.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf8")), sheet


def test_no_page_is_heavy(pages):
    assert all(path.stat().st_size < 2.5e6 for path in pages)
    assert sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file()) < 40e6


@pytest.mark.parametrize(("name", "setting"), SHIPPED)
def test_shipped_results_name_what_made_them(name, setting):
    record = load_result(name, setting)
    assert weights_path(name, setting).stat().st_size < 8e6
    assert {"command", "seed", "device", "versions", "revision", "date", "training_seconds"} <= set(
        record["provenance"]
    )
    assert record.get("K_draws_stderr_bits", record["K_stderr_bits"]) <= 0.01  # of this K, not of other pictures
    assert record["K_stderr_bits"] <= (0.06 if name == "bark" else 0.02)  # of bark there are 81 photographs
    if EXPERIMENTS[name].ideal:
        assert record["K_bits"] < record["minus_entropy_bits"]


@pytest.mark.parametrize(("name", "setting"), SHIPPED)
def test_shipped_weights_were_trained_as_their_setting_says(name, setting):
    """By the command on record; its batch is what passed through the network in a step, where that is on record."""
    made, (_, config) = load_result(name, setting)["provenance"], get_experiment(name, setting)
    args = build_parser().parse_args(made["command"].split()[1:])
    assert (args.name, args.setting, args.seed) == (name, setting, made["seed"])
    assert made["steps"] == (args.steps or config.n_steps)
    if "samples_per_second" in made:
        batch = made["samples_per_second"] * made["training_seconds"] / made["steps"]
        assert batch == pytest.approx(config.batch, rel=1e-3)


@pytest.mark.parametrize("path", sorted((ROOT / "data" / "results").glob("*-curve.json")), ids=lambda path: path.stem)
def test_shipped_curves_are_of_a_second_run_of_the_command_on_record(path):
    """Same experiment, setting, seed and number of steps, and a K that differs by no more than noise."""
    name, setting, _ = path.stem.split("-")
    curve, record = load_result(name, f"{setting}-curve"), load_result(name, setting)
    first, second = (build_parser().parse_args(run["provenance"]["command"].split()[1:]) for run in (record, curve))
    assert (second.name, second.setting, second.seed) == (first.name, first.setting, first.seed)
    assert len(curve["K_bits"]) == len(curve["step"]) <= 200 and curve["step"][-1] == record["provenance"]["steps"]
    assert abs(curve["K_final_bits"] - record["K_bits"]) < 4 * record.get("K_draws_stderr_bits", 0.001)
    assert curve["K_optimum_bits"] == pytest.approx(record.get("K_optimum_bits"), abs=1e-3)


def test_every_experiment_ships_its_best_setting():
    assert {name for name, setting in SHIPPED if setting == "best"} == set(EXPERIMENTS)
    assert {setting for _, setting in SHIPPED} == {"paper", "best", "beyond"}
    assert {name for name, setting in SHIPPED if setting == "beyond"} == {
        name for name, experiment in EXPERIMENTS.items() if "beyond" in experiment.settings
    }
    for setting in ("paper", "beyond"):
        assert {("swiss_roll", setting), ("heartbeat", setting)} <= {tuple(pair) for pair in SHIPPED}


def test_beyond_passes_what_the_paper_s_form_can_reach_and_comes_near_the_truth():
    """K above K* of `best`, and at most this many bits below −H(X⁰), three standard errors away."""
    for name, bits in (("swiss_roll", 0.02), ("heartbeat", 0.005)):
        best, beyond = load_result(name, "best"), load_result(name, "beyond")
        assert beyond["K_bits"] - 5 * beyond["K_stderr_bits"] > best["K_optimum_bits"]
        assert beyond["K_bits"] > beyond["minus_entropy_bits"] - bits and 3 * beyond["K_stderr_bits"] < bits
        assert f" {beyond['K_bits']:.3f}".replace("-", "−") in (ROOT / "README.md").read_text("utf8")


@pytest.mark.parametrize(
    ("name", "label"),
    [("mnist", "MNIST"), ("dead_leaves", "dead leaves"), ("bark", "bark"), ("cifar10", "CIFAR"), ("digits", "8×8")],
)
def test_readme_table_of_pictures_is_the_record(name, label):
    (row,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {label}")]
    record = load_result(name, "best")
    wanted = [record[key] for key in ("K_bits", "K_minus_L_null_bits", "bits_per_dimension")]
    assert row.split("|")[3:-1] == [f" {value:.2f} ".replace("-", "−") for value in wanted]


@pytest.mark.parametrize("path", sorted((ROOT / "data" / "samples").glob("*")), ids=lambda path: path.stem)
def test_kept_samples_name_the_command_that_made_them(path):
    arrays, metadata = read_tensors(path)
    name, what, *settings = path.stem.split("-")
    assert metadata["command"].startswith(f"dpm {what} {name} ") and path.name in metadata["command"]
    assert all(f"--setting {setting} " in metadata["command"] for setting in settings)
    assert all(x.isfinite().all() for x in arrays.values())


def test_readme_table_is_the_record():
    readme = (ROOT / "README.md").read_text()
    for name, label in (("swiss_roll", "swiss roll"), ("heartbeat", "heartbeat")):
        (row,) = [line for line in readme.splitlines() if line.startswith(f"| {label}")]
        paper, best = load_result(name, "paper"), load_result(name, "best")
        wanted = [paper["K_bits"], best["K_bits"], best["K_optimum_bits"], best["minus_entropy_bits"]]
        assert row.split("|")[3:-1] == [f" {value:.3f} ".replace("-", "−") for value in wanted]


def test_the_commands_and_the_example_of_the_readme_are_the_modules():
    """The words of every command are known, its setting and files exist; the example draws the points it says."""
    readme = (ROOT / "README.md").read_text("utf8")
    commands = re.findall(r"(?m)(?:^|`)dpm ([^#`\n]+)", readme)
    assert len(commands) >= 6
    for command in commands:
        args = build_parser().parse_args(command.split())
        if getattr(args, "name", None):
            get_experiment(args.name, args.setting)
            assert args.setting in [*re.findall(r"--setting (\w+)", command), "paper"]
        assert getattr(args, "start", None) is None or (ROOT / args.start).exists()
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    names = {}
    exec(code, names)
    assert names["x0"].shape == (2000, 2) and (names["x0"].std() - 1).abs() < 0.05
