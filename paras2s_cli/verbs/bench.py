"""`paras2s bench`: systems side by side, with intervals and a page to listen to."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    systems: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SYSTEM ...] [section.key=value ...]",
            help="base, sft, aligned, cascade, topline, 'cmd:PROGRAM {query} {answer}', openai:MODEL, files:MANIFEST, model:FOLDER;"
            " the last four may begin with NAME= (default: the recipe's).",
        ),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A bench recipe.")] = "pocket",
    run: Annotated[Path, typer.Option("--run", help="The align run whose models are measured.")] = Path("runs/pocket"),
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where rows and report go (default: RUN/bench, and runs/bench without a run).")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0, help="The most that servers may cost together, by the recipe's prices.")
    ] = None,
    max_fail: Annotated[
        float, typer.Option("--max-fail", min=0, max=1, help="Exit 3 if more of a system's answers than this have no score.")
    ] = 0.5,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Paths may leave their manifest's folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe; do nothing.")] = False,
) -> None:
    """Measure systems on a suite: the full judge's score, the renderer's truth, word errors; means with 95 % intervals."""
    from paras2s_cli.bench.systems import is_system, parse_systems
    from paras2s_cli.recipe.benching import BenchRecipe
    from paras2s_cli.recipe.load import dump_recipe, load_recipe

    names = [word for word in systems or [] if is_system(word)]
    overrides = [word for word in systems or [] if not is_system(word)]
    settings = load_recipe(recipe, overrides, BenchRecipe)
    if names:
        settings = settings.model_copy(update={"systems": names, "sampled": [n for n in settings.sampled if n in names]})
    parse_systems(settings.systems)
    if dry_run:
        typer.echo(dump_recipe(settings), nl=False)
        return
    from paras2s_cli.bench.run import check_folder
    from paras2s_cli.bench.table import check_missing, print_table
    from paras2s_cli.train.whole import measure_run
    from paras2s_cli.verbs.progress import Show

    # A folder that holds no run has to stay empty until `align` opens it.
    folder = out or (run / "bench" if (run / "recipe.yaml").exists() else Path("runs/bench"))
    check_folder(folder)
    show = Show()
    with show.live():
        summary = measure_run(settings, run, folder, show.say, show.watch, max_cost=max_cost, allow_outside=allow_outside)
    print_table(summary)
    show.say(f"to listen: {folder / 'report.html'}")
    check_missing(summary, max_fail)
