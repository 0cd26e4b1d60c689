"""The recipes that are installed with the package, and how a name finds one."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from paras2s_cli.errors import UsageError
from paras2s_cli.recipe.source import read_source

# How a command takes a recipe of a kind. The kinds not named here are run by the verb of the same name.
COMMAND_OF_KIND = {
    "polytone": "sft NAME",
    "base": "sft NAME",
    "distill": "align reward=NAME",
    "judge": "judge --judge NAME",
    "bench": "bench --recipe NAME",
}


@dataclass(frozen=True)
class RecipeInfo:
    """An installed recipe: its name (`pocket/align`), kind (`align`), the whole sentences of its first comment line, and file."""

    name: str
    kind: str
    summary: str
    path: Path


@dataclass(frozen=True)
class RecipeFile:
    """A recipe that was found: its file, and what messages call it."""

    path: Path
    label: str

    def read_text(self) -> str:
        """The file as it is, comments and all. Raises UsageError when there is no such text file."""
        read_source(self.path, self.label)
        return self.path.read_text(encoding="utf-8")


def recipes_root() -> Path:
    """The folder of the installed recipes; in a checkout that is not installed, its `recipes` folder."""
    try:
        return Path(str(importlib.resources.files("paras2s_recipes")))
    except ModuleNotFoundError:
        return Path(__file__).parents[2] / "recipes"


def list_recipes() -> list[RecipeInfo]:
    """All installed recipes, by name."""
    root = recipes_root()
    return [_info(path, path.relative_to(root).with_suffix("").as_posix()) for path in sorted(root.rglob("*.yaml"))]


def recipe_names() -> list[str]:
    """The names of all installed recipes, without opening them."""
    root = recipes_root()
    return [path.relative_to(root).with_suffix("").as_posix() for path in sorted(root.rglob("*.yaml"))]


def command_of(kind: str) -> str:
    """The command that takes a recipe of this kind, and where its name goes in it."""
    return COMMAND_OF_KIND.get(kind, f"{kind} NAME")


def find_recipe(name_or_path: str, kind: str | None = None, beside: Path | None = None) -> RecipeFile:
    """The file of a recipe.

    `pocket` means `pocket/<kind>`. What ends in .yaml or .yml is a path, relative to the folder `beside`
    (default: the current one). Raises UsageError, with the nearest names, when there is no such recipe.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        return RecipeFile((beside or Path()) / Path(name_or_path).expanduser(), name_or_path)
    names = recipe_names()
    for name in (name_or_path, f"{name_or_path}/{kind}"):
        if name in names:
            return RecipeFile(recipes_root() / f"{name}.yaml", f"{name}.yaml")
    family = [name for name in names if name.startswith(f"{name_or_path}/")]
    if family:
        wanted = f" of kind '{kind}'" if kind else ""
        raise UsageError(f"'{name_or_path}' names several recipes, none{wanted} by itself: {', '.join(family)}")
    families = {name.partition("/")[0] for name in names}
    near = get_close_matches(name_or_path, [*names, *families], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`paras2s recipes` lists them; a path ends in .yaml"
    raise UsageError(f"no recipe is called '{name_or_path}': {hint}")


def copy_recipe(name: str, target: Path) -> Path:
    """Copy a recipe, comments and all, to a new file (or into a folder); the path of the copy.

    Raises UsageError when the file exists or its folder does not.
    """
    file = find_recipe(name)
    text = file.read_text()
    path = target / file.path.name if target.is_dir() else target
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{path}: a recipe's file name ends in .yaml, so that it is told from a recipe's name")
    try:
        with path.open("x", encoding="utf-8") as copy:
            copy.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists and is not overwritten: choose another name") from None
    except FileNotFoundError:
        raise UsageError(f"{path.parent} is not a folder: make it first") from None
    return path


def _info(path: Path, name: str) -> RecipeInfo:
    source = read_source(path, f"{name}.yaml")
    kind = source.data.get("kind") if isinstance(source.data, dict) else None
    lines = path.read_text(encoding="utf-8").splitlines()
    summary = next((line.lstrip("# ").strip() for line in lines if line.startswith("#") and line.strip("# ")), "")
    if not summary.endswith("."):  # a sentence goes on in the next line
        summary = summary[: summary.rfind(". ") + 1] or summary
    return RecipeInfo(name, str(kind or "?"), summary, path)
