"""`paras2s align`: from nothing, or from what is there, to an aligned model and its bench."""

from pathlib import Path
from typing import Annotated

import typer


def align(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [section.key=value ...]", help="A recipe (default: pocket) and changes to it."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder (default: runs/RECIPE).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan; do nothing.")] = False,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure at the end.")] = True,
) -> None:
    """Train a reward model from the judge, then align by GRPO. Makes first what is missing, and says so.

    The same command resumes a run that was interrupted. Under torchrun its processes share the work and the memory.
    """
    from paras2s_cli.verbs.runs import recipe_words, stem_of

    name, overrides = recipe_words(words)
    from paras2s_cli.recipe.aligning import AlignRecipe
    from paras2s_cli.recipe.load import dump_recipe, load_recipe, recipe_hash

    recipe = load_recipe(name, overrides, AlignRecipe)
    folder = out or Path("runs") / stem_of(name)
    if dry_run:
        from paras2s_cli.train.plan import plan_of

        typer.echo(dump_recipe(recipe) + plan_of(recipe, folder))
        return
    from paras2s_cli.bench.table import print_table
    from paras2s_cli.train.ranks import joined
    from paras2s_cli.train.run_folder import open_run
    from paras2s_cli.train.whole import align_and_measure, check_bench
    from paras2s_cli.verbs.progress import Show

    if bench:
        check_bench(recipe.bench)
    with joined() as ranks:
        show = Show(quiet=not ranks.first)
        with ranks.in_turn():
            if ranks.first and open_run(folder, dump_recipe(recipe), recipe_hash(recipe), "align").resumed:
                show.say(f"resuming the run in {folder}")
        with show.live():
            summary = align_and_measure(recipe, folder, show.say, show.watch, measure=bench, ranks=ranks)
    if summary is not None:
        print_table(summary)
        show.say(f"to listen: {folder / 'bench' / 'report.html'}")
    show.say(f"the aligned model: {folder / 'grpo' / 'model'}")
