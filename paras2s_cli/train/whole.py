"""An `align` from its first missing stage to the measured result."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from paras2s_cli.audio.workers import threads_of
from paras2s_cli.bench.outside import OWN, Source, make_sources
from paras2s_cli.bench.run import GREEDY, USUAL, run_bench
from paras2s_cli.bench.stats import Summary
from paras2s_cli.bench.suite import manifest_queries
from paras2s_cli.bench.systems import MODELS, Loaded, LoadModel, parse_systems
from paras2s_cli.data.cache import is_complete
from paras2s_cli.data.manifest import read_rows
from paras2s_cli.data.rows import Query
from paras2s_cli.data.worlds import World, load_world
from paras2s_cli.endpoint.client import Client
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.backends import assemble_judge, load_judge, load_scorer
from paras2s_cli.judge.endpoint.asking import Asking
from paras2s_cli.judge.endpoint.verdict import read_response
from paras2s_cli.models.folder import load_model
from paras2s_cli.models.hub import local_folder
from paras2s_cli.recipe.aligning import AlignRecipe
from paras2s_cli.recipe.benching import BenchRecipe
from paras2s_cli.recipe.judging import PolytoneRecipe
from paras2s_cli.recipe.load import load_recipe, recipe_hash
from paras2s_cli.recipe.speaking import CheckpointBase, OmniBase
from paras2s_cli.train.align import Run, aligned_model, prepare
from paras2s_cli.train.base import load_base
from paras2s_cli.train.judged import align_kimi, align_omni, has_voice
from paras2s_cli.train.loop import Say, Watch, WatchOf
from paras2s_cli.train.metrics import read_metrics
from paras2s_cli.train.omni import load_omni
from paras2s_cli.train.ranks import ALONE, Ranks


def align_and_measure(
    recipe: AlignRecipe, out: Path, say: Say, watch: WatchOf, *, measure: bool = True, ranks: Ranks = ALONE
) -> Summary | None:
    """Aligns, then benches base, SFT, aligned model, cascade and topline, on rank 0.

    Raises:
        UsageError, Paras2sError: see the stages.
    """
    run, base = prepare(recipe, out, say, watch, ranks), recipe.sft.base
    if isinstance(base, CheckpointBase) and not (local_folder(base.folder) / "config.json").is_file():
        raise UsageError(f"sft.base.folder: {base.folder} holds no config.json: name the folder that the checkpoint was downloaded to")
    if isinstance(base, OmniBase):
        align_omni(run, base)
    elif has_voice(base):
        align_kimi(run)
    else:
        aligned_model(run)
    if not (measure and ranks.first):
        return None
    settings = recipe.bench.model_copy(update={"seed": recipe.seed})
    if settings.queries or settings.judge or check_bench(settings):
        return measure_run(settings, out, out / "bench", say, watch)
    metrics = read_metrics(out / "grpo" / "metrics.jsonl")
    return run_bench(
        settings, run.world, run.judge, loader(run), out / "bench", say, metrics, {"recipe": recipe_hash(recipe)}, mode=mode_of(run)
    )


def check_bench(settings: BenchRecipe) -> dict[str, Source]:
    """The systems of a bench that are not altogether our own. Nothing is asked or written: for before a training that ends in a bench.

    Raises:
        UsageError: a system cannot be asked, or the manifest of queries is at fault.
    """
    parse_systems(settings.sampled)
    if settings.queries is not None:
        read_rows(settings.queries, Query)
    return make_sources(settings, Path(), Asking().purse, lambda _: None, lambda _: lambda _done, _of: None, allow_outside=False)


def loader(run: Run) -> LoadModel:
    """The models of a run by the names that a bench gives them."""

    def load(name: str) -> Loaded:
        base, folder = run.recipe.sft.base, run.out / {"base": "", "sft": "sft", "aligned": "grpo"}[name] / "model"
        if isinstance(base, OmniBase):
            return load_omni(base, folder if is_complete(folder) else None)
        if name == "base":
            return load_base(base, run.world, run.say, run.watch)
        return load_model(folder)

    return load


def measure_run(
    settings: BenchRecipe,
    run_folder: Path,
    out: Path,
    say: Say,
    watch: WatchOf,
    *,
    max_cost: float | None = None,
    allow_outside: bool = False,
) -> Summary:
    """Benches systems: models of a finished `align` run, which has to be there for these, and any others.

    Raises:
        UsageError: the folder is no align run, or lacks a model that is to be measured; or a system cannot be asked.
        Paras2sError: a server refuses all, or `max_cost` would be passed.
    """
    asking = Asking(max_cost=max_cost)
    models = [name for name in settings.systems if name in MODELS]
    sources = make_sources(settings, out / "replies", asking.purse, say, lambda name: _count(watch(name)), allow_outside=allow_outside)
    endpoint = settings.judge.endpoint if settings.judge else None
    sender = Client(endpoint, read_response, purse=asking.purse) if endpoint else None
    queries = None
    if settings.queries is not None:
        path = Path(settings.queries)
        queries = manifest_queries(path, settings.split, out / "queries", allow_outside=allow_outside, heard=bool(models))
    run = _finished(run_folder, models, say, watch)
    world = run.world if run else _world(settings, say, watch)
    if run and not sources and queries is None and settings.judge is None:
        judge = run.judge
    elif settings.judge:
        judge = assemble_judge(settings.judge, say, load_scorer(settings.judge, say, asking, sender), asking)
    else:
        judge = load_judge(run.recipe.judge if run else load_recipe("pocket", (), PolytoneRecipe), say)
    # A cascade's own transcriber is the judge's, and a judge that hears end to end has none.
    deaf = settings.judge and settings.judge.e2e and "cascade" in settings.systems and settings.cascade.asr == OWN
    metrics_file = run_folder / "grpo" / "metrics.jsonl"
    return run_bench(
        settings,
        world,
        judge,
        loader(run) if run else _no_model,
        out,
        say,
        read_metrics(metrics_file) if run and metrics_file.exists() else None,
        {"recipe": recipe_hash(run.recipe if run else settings)},
        queries=queries,
        sources=sources,
        max_cost=max_cost,
        mode=mode_of(run) if run else GREEDY,
        ears=load_judge(run.recipe.judge if run else load_recipe("pocket", (), PolytoneRecipe), say) if deaf else None,
    )


def mode_of(run: Run) -> str:
    """How a run's models are sampled in a bench that asks for nothing else."""
    base = run.recipe.sft.base
    return USUAL if isinstance(base, OmniBase) or has_voice(base) else GREEDY


def _finished(folder: Path, models: Sequence[str], say: Say, watch: WatchOf) -> Run | None:
    """The run of a folder; None where there is none and no model is asked of it."""
    file = folder / "recipe.yaml"
    if not file.exists():
        if models:
            raise UsageError(f"{folder} holds no run of align: `paras2s align --out {folder}` makes one, or name another with --run")
        return None
    for name, stage in {"sft": "sft", "aligned": "grpo"}.items():
        if name in models and not is_complete(folder / stage / "model"):
            raise UsageError(f"{folder} has no {name} model yet: run the same `paras2s align` again to finish it")
    return prepare(load_recipe(str(file), (), AlignRecipe), folder, say, watch)


def _world(settings: BenchRecipe, say: Say, watch: WatchOf) -> World:
    torch.set_num_threads(threads_of(settings.threads))
    return load_world(settings.world, settings.threads, say, _count(watch("render")))


def _no_model(name: str) -> Loaded:
    raise AssertionError(f"{name} is of a run, and there is none")


def _count(watch: Watch) -> Callable[[int, int], None]:
    """Counts as a bar shows them."""
    return lambda done, of: watch(done, {"of": of})
