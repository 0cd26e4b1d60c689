"""`paras2s sft`: supervised training of the speech LM, of its base, or of the judge's ears."""

from pathlib import Path
from typing import Annotated

import typer


def sft(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [section.key=value ...]",
            help="pocket (the warm-up), pocket/base or pocket/polytone, and changes to it.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run's folder (default: runs/RECIPE-KIND, as runs/pocket-sft).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan; do nothing.")] = False,
) -> None:
    """Train on demonstrations: the speech LM, or the judge's transcriber and tone describer (PolyTone).

    The same command resumes a run that was interrupted. Under torchrun its processes share the work and the memory.
    """
    from paras2s_cli.verbs.runs import kind_called, recipe_words, stem_of

    name, overrides = recipe_words(words)
    kind = kind_called(name, "sft", ("sft", "base", "polytone"))
    from paras2s_cli.recipe.judging import PolytoneRecipe
    from paras2s_cli.recipe.load import dump_recipe, load_recipe, recipe_hash
    from paras2s_cli.recipe.speaking import BaseRecipe, SftRecipe

    models: dict[str, type[SftRecipe] | type[BaseRecipe] | type[PolytoneRecipe]]
    models = {"sft": SftRecipe, "base": BaseRecipe, "polytone": PolytoneRecipe}
    recipe = load_recipe(name, overrides, models[kind])
    folder = out or Path("runs") / f"{stem_of(name).removesuffix('-' + kind)}-{kind}".removeprefix(f"{kind}-")
    if dry_run:
        from paras2s_cli.train.plan import plan_of

        typer.echo(dump_recipe(recipe) + plan_of(recipe, folder))
        return
    from paras2s_cli.train.ranks import joined
    from paras2s_cli.train.run_folder import open_run
    from paras2s_cli.train.supervised import run_supervised
    from paras2s_cli.verbs.progress import Show

    with joined() as ranks:
        show = Show(quiet=not ranks.first)
        with ranks.in_turn():
            if ranks.first and open_run(folder, dump_recipe(recipe), recipe_hash(recipe), kind).resumed:
                show.say(f"resuming the run in {folder}")
        with show.live():
            figures = run_supervised(recipe, folder, show.say, show.watch, ranks)
    for key, value in figures.items():
        typer.echo(f"{key}\t{value:.4f}")
    show.say(f"the model: {folder / 'model'}")
