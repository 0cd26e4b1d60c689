"""A bench: systems on a suite, judged in full and by the truth, with intervals and a page to listen to."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from paras2s_cli.audio.read import audio_info
from paras2s_cli.bench.outside import Source
from paras2s_cli.bench.report import write_report
from paras2s_cli.bench.stats import Scored, Summary, summarise
from paras2s_cli.bench.systems import MODELS, REFERENCES, Answer, LoadModel, answers_of, parse_systems, saved
from paras2s_cli.data.atomic import write_text
from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.endpoint import transcription
from paras2s_cli.endpoint.cost import Estimate, check_cost
from paras2s_cli.errors import UsageError
from paras2s_cli.judge.endpoint.estimate import estimate
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.judge.stages import Recording, Utterance, Verdict
from paras2s_cli.recipe.benching import BenchRecipe
from paras2s_cli.recipe.load import dump_recipe
from paras2s_cli.train.distill import hear_queries

GREEDY, SAMPLED, AS_IS, USUAL = "greedy", "T=1", "as it is", "as usual"
UNREAD = "(not transcribed)"
"""What was heard, where the judge puts nothing into words."""
FOLDERS = {"answers", "queries", "replies"}
"""What a bench's folder holds from the beginning, one of them at least."""
RESULTS = ("rows.jsonl", "summary.json", "report.html")
COMPARED = [("aligned", "sft"), ("sft", "base")]


def check_folder(folder: Path) -> None:
    """Raises UsageError if a bench there would lie among, and maybe overwrite, files that are none of a bench."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder; choose another --out")
    names = os.listdir(folder) if folder.exists() else []
    if names and FOLDERS.isdisjoint(names):
        raise UsageError(f"{folder} is not empty and no bench of paras2s (it holds {min(names)}); choose another --out")


def run_bench(
    recipe: BenchRecipe,
    world: World,
    judge: Judge,
    load: LoadModel,
    folder: Path,
    say: Callable[[str], None],
    training: list[dict] | None = None,
    meta: dict | None = None,
    *,
    queries: Sequence[Spoken] | None = None,
    sources: Mapping[str, Source] | None = None,
    max_cost: float | None = None,
    mode: str = GREEDY,
    ears: Judge | None = None,
) -> Summary:
    """Measures the recipe's systems on its split.

    Args:
        load: gives the models among the systems.
        folder: gets rows.jsonl, summary.json, report.html and the answers as files, and recipe.yaml, by which the results of another
            recipe are known: they are kept under other names.
        queries: what is asked, instead of the world's queries; nothing but a judge knows what is right then.
        sources: systems by their names that are not our own.
        mode: what the models among the systems do at temperature 0; `as usual` samples as their publishers do.
        ears: hear the queries for the systems, where the judge puts nothing into words.

    Raises:
        UsageError: a system is not known, or the bench is likely to cost more than `max_cost`.
    """
    names, sources = [system.name for system in parse_systems(recipe.systems)], sources or {}
    parse_systems(recipe.sampled)
    foreign = queries is not None
    queries = first_of_each_dimension(world.queries(recipe.split) if queries is None else queries, recipe.limit)
    plan = [(name, mode if name in MODELS else AS_IS, 0.0) for name in names]
    plan += [(name, SAMPLED, 1.0) for name in recipe.sampled if name in names and name in MODELS]
    seconds = sum(audio_info(query.path).seconds or 0.0 for query in queries)
    costs = estimates(recipe, sources, len(plan), len(queries), seconds)
    for who, what in costs:
        say(f"bench: {who}: {what}")
    check_cost([what for _, what in costs], max_cost)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers").mkdir(exist_ok=True)
    asked = hear_queries(judge, queries)
    read = hear_queries(ears, queries) if ears else asked
    rows: list[Scored] = []
    for name, mode, temperature in plan:
        say(f"bench: {name} ({mode}) on {len(queries)} queries")
        if name in sources:
            answers = sources[name].answers(world, queries, read)
        else:
            answers = answers_of(name, world, queries, read, temperature, recipe.seed, load, recipe.answer_limit)
        rows += scored(name, mode, answers, asked, judge, None if foreign else world, recipe.seed, folder / "answers")
        faults = Counter(answer.fault.failure for answer in answers if answer.fault)
        if faults:
            say(f"bench: {name}: {faults.total()} without an answer: {', '.join(f'{n} {why}' for why, n in faults.items())}")
    for kept in set_aside(folder, recipe):
        say(f"bench: {kept} is what another recipe measured here before")
    write_text(folder / "rows.jsonl", "".join(json.dumps(_line(row)) + "\n" for row in rows))
    beside = [(name, "cascade") for name in sources if name not in REFERENCES]
    summary = summarise(rows, compare=COMPARED + beside, draws=recipe.draws, seed=recipe.seed)
    write_text(folder / "summary.json", json.dumps(asdict(summary), indent=1) + "\n")
    suite = {"queries": recipe.queries or recipe.world, "split": recipe.split, "seed": recipe.seed}
    page = {"judge": ", ".join(judge.name.values()), **suite, **(meta or {})}
    write_report(
        folder / "report.html",
        summary,
        rows,
        title="paras2s bench",
        meta=page,
        players=recipe.players,
        training=training,
        seed=recipe.seed,
    )
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    return summary


def set_aside(folder: Path, recipe: BenchRecipe) -> list[Path]:
    """Gives the results of another recipe names with a mark of it, and returns the pages among them."""
    file = folder / "recipe.yaml"
    if not file.exists() or file.read_text(encoding="utf-8") == dump_recipe(recipe):
        return []
    mark = hashlib.sha256(file.read_bytes()).hexdigest()[:6]
    for path in (*(folder / name for name in RESULTS), file):
        if path.exists():
            path.rename(path.with_stem(f"{path.stem}-{mark}"))
    return [folder / f"report-{mark}.html"]


def estimates(recipe: BenchRecipe, sources: Mapping[str, Source], measured: int, count: int, seconds: float) -> list[tuple[str, Estimate]]:
    """What servers are likely to be asked: by systems, and by the judge of so many `measured` ones on queries of so many seconds."""
    found = [(name, each) for name, source in sources.items() for each in source.estimates(count, seconds)]
    if recipe.judge and recipe.judge.endpoint:
        # An answer is reckoned to be as long as its query.
        found.append(("the judge", estimate(recipe.judge.endpoint, measured * count, 2 * measured * seconds)))
    if recipe.judge and recipe.judge.transcriptions:
        # Every query is heard once.
        heard = transcription.estimate(recipe.judge.transcriptions, (measured + 1) * count, (measured + 1) * seconds)
        found.append(("the judge's transcriber", heard))
    return found


def first_of_each_dimension(queries: Sequence[Spoken], limit: int) -> list[Spoken]:
    """At most `limit` queries of each dimension, in the suite's order, in which twins stand side by side; 0 takes all."""
    counts: Counter[str] = Counter()
    found = []
    for query in queries:
        counts[query.row["dimension"]] += 1
        if not limit or counts[query.row["dimension"]] <= limit:
            found.append(query)
    return found


def scored(
    name: str,
    mode: str,
    answers: Sequence[Answer],
    asked: Sequence[Utterance],
    judge: Judge,
    world: World | None,
    seed: int,
    folder: Path,
) -> list[Scored]:
    """One row an answer: the judge's score, and the truth's, where the queries are a world's and the answer one that it can know.

    asked: what the judge heard in the query of each.
    """
    waves = {i: answer.wave for i, answer in enumerate(answers) if answer.wave is not None}
    said = dict(zip(waves, judge.hear(list(waves.values()), "answer"), strict=True))
    verdicts = judge.scorer.score(
        [(asked[i], said[i]) for i in waves],
        closed=not any(answer.outside for answer in answers),
        requirements=[answers[i].query.row.get("requirement") for i in waves],
    )
    judged = dict(zip(waves, verdicts, strict=True))
    rows = []
    for i, (answer, query) in enumerate(zip(answers, asked, strict=True)):
        truth = None if world is None or answer.outside else world.truth(answer.query, answer.spoken)
        rows.append(_scored(name, mode, answer, query, said.get(i), judged.get(i), truth, seed, folder))
    return rows


def _scored(
    name: str,
    mode: str,
    answer: Answer,
    asked: Utterance,
    said: Utterance | None,
    verdict: Verdict | None,
    truth: float | None,
    seed: int,
    folder: Path,
) -> Scored:
    query: Spoken = answer.query
    return Scored(
        system=name,
        mode=mode,
        query=query.id,
        text=query.row["text"] or query.row["sentence"],
        dimension=query.row["dimension"],
        style=query.row["style"],
        seed=seed,
        score=verdict.score if verdict else None,
        truth=truth,
        heard_text=(UNREAD if isinstance(said, Recording) else said.heard.text) if said else "",
        written_text=answer.written if said and not isinstance(said, Recording) and said.heard.failure is None else None,
        tone_in=asked.words,
        tone_out=said.words if said else "",
        reason=verdict.reason if verdict else answer.fault.reason if answer.fault else "",
        failure=verdict.failure if verdict else answer.fault.failure if answer.fault else None,
        query_audio=query.path,
        answer_audio=saved(answer, folder, f"{name}.{mode.replace('=', '').replace(' ', '-')}"),
    )


def _line(row: Scored) -> dict:
    fields = asdict(row) if not hasattr(row, "model_dump") else row.model_dump()
    return {key: str(value) if isinstance(value, Path) else value for key, value in fields.items()}
