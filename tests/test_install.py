"""The package as pip installs it: what its archives hold and need, and that they work far from the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_architecture import ORDER, parse, roots

from dpm.experiments.registry import EXPERIMENTS
from dpm.experiments.shipped import weights_path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
EXTRAS = {name: [*map(Requirement, lines)] for name, lines in PROJECT["optional-dependencies"].items()}
NEEDED = [*map(Requirement, PROJECT["dependencies"])]
DISTRIBUTIONS = packages_distributions()  # the names that Python imports → the names that pip knows
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("HOME", "PYTHONPATH")}
TOP = ["pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]
LARGEST = 30e6  # bytes of an archive


def run(*words, cwd):
    """The output of a command that must succeed, run with neither HOME nor PYTHONPATH."""
    ran = subprocess.run([*map(str, words)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What the archives are made of, copied, so that the checkout is left as it is."""
    folder = tmp_path_factory.mktemp("source")
    for name in TOP:
        shutil.copy(ROOT / name, folder)
    for name in ("dpm", "data", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def archives(source, tmp_path_factory):
    """The source archive, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("archives")
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    run(sys.executable, "-c", build, cwd=source)
    (sdist,) = folder.iterdir()
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """The folder of commands of a fresh environment that holds the wheel, and sees what runs here for the rest."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    running = f"import sys; sys.path.append({sysconfig.get_path('purelib')!a})\n"  # in ASCII: any locale can read it
    (packages / "running.pth").write_text(running)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    run(*pip, "--no-deps", "--no-index", "--ignore-installed", archives[1], cwd=folder)
    return folder / "bin"


def test_the_archives_hold_the_module_and_all_that_is_shipped(source, archives):
    code, data = (files_below(source / name) for name in ("dpm", "data"))
    with zipfile.ZipFile(archives[1]) as wheel:
        held = {name for name in wheel.namelist() if not name.startswith("dpm-")}
    assert held == {f"dpm/{name}" for name in code} | {f"dpm/shipped/{name}" for name in data}
    with tarfile.open(archives[0]) as sdist:
        packed = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    made = {name for name in packed if name.startswith("dpm.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert packed - made == {f"dpm/{name}" for name in code} | {f"data/{name}" for name in data} | {*TOP}
    assert len(code) > 40 and len(data) > 30 and all(archive.stat().st_size < LARGEST for archive in archives)


def test_an_installed_dpm_finds_what_is_shipped(installed, tmp_path):
    code = "import dpm.experiments.shipped as shipped; print(shipped.__file__, shipped.DATA)"
    module, data = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert data == str(Path(module).parent.parent / "shipped") and module.startswith(str(installed.parent))
    rows = json.loads(run(installed / "dpm", "list", "--json", cwd=tmp_path))["experiments"]
    shipped = {(row["experiment"], row["setting"]) for row in rows if row["shipped"]}
    assert shipped == {
        (e.name, s) for e in EXPERIMENTS.values() for s in e.settings if weights_path(e.name, s).exists()
    }


def test_an_installed_dpm_measures_as_the_checkout_does(installed, tmp_path):
    """K of a few held-out sequences, by shipped weights, and samples that are all possible data."""
    code = (
        "import dpm, torch; model = dpm.load_model('heartbeat', 'best'); g = torch.Generator().manual_seed(0); "
        "x0 = dpm.EXPERIMENTS['heartbeat'].held_out_data(g)[:10]; "
        "print(float(dpm.evaluate_subsampled(model.p, model.forward_process(), x0, g, 20).K.mean()))"
    )
    here = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert float(run(installed / "python", "-c", code, cwd=tmp_path)) == pytest.approx(float(here), rel=1e-6)
    words = ["sample", "heartbeat", "--setting", "best", "-n", 20, "--T", 200, "--json"]
    result = json.loads(run(installed / "dpm", *words, cwd=tmp_path))
    assert result["possible_share"] > 0.8 and result["provenance"]["revision"] == "unknown"
    assert result["provenance"]["versions"]["dpm"] == PROJECT["version"]
    assert not list(tmp_path.iterdir())


def imported(name):
    """The distributions that a file of dpm imports from; what is not installed here has the name of its module."""
    foreign = roots(parse(name)) - sys.stdlib_module_names - {"dpm"}
    return {DISTRIBUTIONS.get(root, [root])[0].lower() for root in foreign}  # once it was Pillow


def test_dependencies_are_what_the_module_imports():
    """Two files need more: the player a notebook's packages, the pipelines the library that wrote them."""
    more, needed = {"player": "book", "pipelines": "diffusers"}, {requirement.name for requirement in NEEDED}
    assert set().union(*(imported(name) for name in ORDER if name not in more)) == needed
    for name, extra in more.items():
        rest = imported(name) - needed
        assert rest and rest <= {requirement.name for requirement in EXTRAS[extra]}


def test_the_pinned_versions_of_the_book_satisfy_the_package():
    lines = [line.split("#")[0].strip() for name in ("requirements", "constraints") for line in read_list(name)]
    pinned = {Requirement(line).name: str(Requirement(line).specifier)[2:] for line in lines if "==" in line}
    assert pinned["torch"] == "2.13.0" and len(pinned) > 80
    for requirement in [*NEEDED, *EXTRAS["book"], *EXTRAS["test"]]:
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def read_list(name):
    return (ROOT / f"{name}.txt").read_text("utf8").splitlines()
