"""The layout: top-level folders, the package list, what is installed, and the name `kernels`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_FOLDERS = {"paras2s_cli", "kernels", "recipes", "benchmarks", "tests"}
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_kernels_is_no_package() -> None:
    # transformers imports a package called `kernels`; with an __init__.py ours would be taken for it.
    assert (ROOT / "kernels" / "paras2s_kernels" / "__init__.py").is_file()
    assert list((ROOT / "kernels").glob("*.py")) == []


def test_top_level_is_as_designed() -> None:
    assert (ROOT / "pyproject.toml").is_file()
    folders = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("[!.]*/**/*.py")}
    folders -= {"build", "runs", "dist"}
    assert folders <= TOP_FOLDERS, "Python files live in these folders only"
    assert folders >= TOP_FOLDERS - {"benchmarks"}


def test_every_package_is_listed_and_every_listed_one_is_there() -> None:
    folders = {"paras2s_cli": ROOT / "paras2s_cli", "paras2s_kernels": ROOT / "kernels" / "paras2s_kernels"}
    found = {"paras2s_recipes"}
    for name, folder in folders.items():
        for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            if any(inside.glob("*.py")):
                assert (inside / "__init__.py").is_file(), f"{inside} has modules but no __init__.py"
                found.add(".".join((name, *inside.relative_to(folder).parts)))
    assert sorted(SETTINGS["packages"]) == sorted(found), "[tool.setuptools] packages in pyproject.toml"


def test_the_version_is_said_once_in_two_places() -> None:
    import paras2s_cli

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == paras2s_cli.__version__


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["pocket"]]
    wanted += [name for name in project["optional-dependencies"]["dev"] if not name.startswith("setuptools")]
    names = {name.partition(";")[0].partition(">")[0].partition("=")[0].strip() for name in wanted}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("=")[0].partition("<")[0] for line in lines if not line.startswith("#")}
    assert names == pinned


def data_files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    return sorted(path.relative_to(folder).as_posix() for path in files)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wheel", "editable"])
def test_an_installation_has_the_recipes_and_the_kernels(tmp_path: Path, how: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    skip = shutil.ignore_patterns(".*", "build", "runs", "dist", "*.egg-info", "tests", "benchmarks", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skip)
    quiet = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    alone = ["--no-build-isolation", "--no-deps", "--no-index"]
    if how == "wheel":
        subprocess.run([*quiet, "wheel", *alone, "-w", str(tmp_path), str(source)], check=True)
        zipfile.ZipFile(next(tmp_path.glob("paras2s-*.whl"))).extractall(target)
        shutil.rmtree(source)
    else:
        subprocess.run([*quiet, "install", *alone, "--target", str(target), "-e", str(source)], check=True)
    program = (
        f"import importlib.util, site, sys; site.addsitedir({str(target)!r})\n"
        f"sys.path.append({sysconfig.get_path('purelib')!r})\n"
        "from paras2s_cli.recipe.catalog import list_recipes, recipes_root\n"
        "import paras2s_recipes, paras2s_cli.pocket\n"
        "assert importlib.util.find_spec('paras2s_kernels.reference')\n"
        "print(recipes_root(), *(info.name for info in list_recipes()))"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    # -S: without what this environment itself has installed in editable form.
    root, *names = run.stdout.split()
    assert Path(root).is_relative_to(tmp_path)
    recipes = ROOT / "recipes"
    assert names == [path.relative_to(recipes).with_suffix("").as_posix() for path in sorted(recipes.rglob("*.yaml"))]
    folder = target if how == "wheel" else source
    assert data_files(folder / "paras2s_cli") == data_files(ROOT / "paras2s_cli") != []
