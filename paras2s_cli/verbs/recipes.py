"""`paras2s recipes`: list the installed recipes; show, copy or check one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Output(StrEnum):
    table = "table"
    json = "json"


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe to show, with its comments.")] = None,
    copy: Annotated[Path | None, typer.Option("--copy", help="Copy the recipe to this file.")] = None,
    check: Annotated[str | None, typer.Option("--check", help="Check a recipe, by name or path.")] = None,
    output: Annotated[Output, typer.Option("--output", help="How to print the list.")] = Output.table,
) -> None:
    """List the recipes that came with paras2s; show, copy or check one."""
    from paras2s_cli.errors import UsageError
    from paras2s_cli.recipe.catalog import copy_recipe, find_recipe, list_recipes

    if check is not None:
        from paras2s_cli.recipe.check import check_recipe

        print(check_recipe(check))
        return
    if copy is not None:
        if name is None:
            raise UsageError("--copy needs the name of a recipe: paras2s recipes NAME --copy PATH")
        print(copy_recipe(name, copy))
        return
    infos = list_recipes()
    if name is not None:
        family = [info for info in infos if info.name.startswith(f"{name}/")]
        if not family:
            file = find_recipe(name)
            print(file.read_text(), end="")
            return
        infos = family
    if output is Output.json:
        import json

        print(json.dumps([{"name": i.name, "kind": i.kind, "summary": i.summary, "path": str(i.path)} for i in infos]))
        return
    widths = [max((len(text) for text in column), default=0) for column in zip(*((i.name, i.kind) for i in infos), strict=True)]
    for info in infos:
        print(f"{info.name:<{widths[0]}}  {info.kind:<{widths[1]}}  {info.summary}".rstrip())
