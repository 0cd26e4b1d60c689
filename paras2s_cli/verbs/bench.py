"""`paras2s bench`: systems side by side, with intervals and a page to listen to."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    systems: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SYSTEM ...] [section.key=value ...]", help="base, sft, aligned, cascade, topline (default: the recipe's)."
        ),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A bench recipe.")] = "pocket",
    run: Annotated[Path, typer.Option("--run", help="The align run whose models are measured.")] = Path("runs/pocket"),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where rows and report go (default: RUN/bench).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe; do nothing.")] = False,
) -> None:
    """Measure systems on the held-out suite: the full judge's score, the renderer's truth, word errors; means with 95 % intervals."""
    names = [word for word in systems or [] if "=" not in word]
    overrides = [word for word in systems or [] if "=" in word]
    from paras2s_cli.bench.systems import check_names
    from paras2s_cli.recipe.load import dump_recipe, load_recipe
    from paras2s_cli.recipe.schema import BenchRecipe

    check_names(names)
    settings = load_recipe(recipe, overrides, BenchRecipe)
    if names:
        settings = settings.model_copy(update={"systems": names, "sampled": [n for n in settings.sampled if n in names]})
    if dry_run:
        typer.echo(dump_recipe(settings), nl=False)
        return
    from paras2s_cli.bench.table import print_table
    from paras2s_cli.train.whole import measure_run
    from paras2s_cli.verbs.progress import Show

    show = Show()
    folder = out or run / "bench"
    with show.live():
        summary = measure_run(settings, run, folder, show.say, show.watch)
    print_table(summary)
    show.say(f"to listen: {folder / 'report.html'}")
