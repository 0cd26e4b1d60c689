"""An `align` from its first missing stage to the measured result."""

from collections.abc import Callable
from pathlib import Path

from paras2s_cli.bench.run import run_bench
from paras2s_cli.bench.stats import Summary
from paras2s_cli.data.cache import is_complete
from paras2s_cli.errors import UsageError
from paras2s_cli.models.folder import load_model
from paras2s_cli.models.speech_lm import SpeechLM
from paras2s_cli.models.tokenizer import TextTokenizer
from paras2s_cli.recipe.load import load_recipe, recipe_hash
from paras2s_cli.recipe.schema import AlignRecipe, BenchRecipe
from paras2s_cli.train.align import Run, aligned_model, prepare
from paras2s_cli.train.base import load_base
from paras2s_cli.train.loop import Say, WatchOf
from paras2s_cli.train.metrics import read_metrics


def align_and_measure(recipe: AlignRecipe, out: Path, say: Say, watch: WatchOf, *, measure: bool = True) -> Summary | None:
    """Aligns, then benches base, SFT, aligned model, cascade and topline.

    Raises:
        UsageError, Paras2sError: see the stages.
    """
    run = prepare(recipe, out, say, watch)
    aligned_model(run)
    if not measure:
        return None
    settings = recipe.bench.model_copy(update={"seed": recipe.seed})
    metrics = read_metrics(out / "grpo" / "metrics.jsonl")
    return run_bench(
        settings, run.world, run.judge, loader(run), out / "bench", say, training=metrics, meta={"recipe": recipe_hash(recipe)}
    )


def loader(run: Run) -> Callable[[str], tuple[SpeechLM, TextTokenizer]]:
    """The models of a run by the names that a bench gives them."""

    def load(name: str) -> tuple[SpeechLM, TextTokenizer]:
        if name == "base":
            return load_base(run.recipe.sft.base, run.world, run.say, run.watch)
        return load_model(run.out / {"sft": "sft", "aligned": "grpo"}[name] / "model")

    return load


def measure_run(settings: BenchRecipe, run_folder: Path, out: Path, say: Say, watch: WatchOf) -> Summary:
    """Benches the models of a finished `align` run.

    Raises:
        UsageError: the folder is no align run, or lacks a model that is to be measured.
    """
    file = run_folder / "recipe.yaml"
    if not file.exists():
        raise UsageError(f"{run_folder} holds no run of align: `paras2s align --out {run_folder}` makes one, or name another with --run")
    recipe = load_recipe(str(file), (), AlignRecipe)
    needed = {"sft": "sft", "aligned": "grpo"}
    for name, stage in needed.items():
        if name in settings.systems and not is_complete(run_folder / stage / "model"):
            raise UsageError(f"{run_folder} has no {name} model yet: run the same `paras2s align` again to finish it")
    run = prepare(recipe, run_folder, say, watch)
    metrics_file = run_folder / "grpo" / "metrics.jsonl"
    metrics = read_metrics(metrics_file) if metrics_file.exists() else None
    return run_bench(settings, run.world, run.judge, loader(run), out, say, metrics, {"recipe": recipe_hash(recipe)})
