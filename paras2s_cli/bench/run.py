"""A bench: systems on a suite, judged in full and by the truth, with intervals and a page to listen to."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from paras2s_cli.bench.report import write_report
from paras2s_cli.bench.stats import Scored, Summary, summarise
from paras2s_cli.bench.systems import MODELS, Answer, LoadModel, answers_of, check_names, saved
from paras2s_cli.data.atomic import write_text
from paras2s_cli.data.worlds import Spoken, World
from paras2s_cli.judge.pipeline import Judge
from paras2s_cli.judge.stages import Utterance, Verdict
from paras2s_cli.recipe.schema import BenchRecipe
from paras2s_cli.train.distill import hear_queries

GREEDY, SAMPLED = "greedy", "T=1"
COMPARED = [("aligned", "sft"), ("sft", "base")]


def run_bench(
    recipe: BenchRecipe,
    world: World,
    judge: Judge,
    load: LoadModel,
    folder: Path,
    say: Callable[[str], None],
    training: list[dict] | None = None,
    meta: dict | None = None,
) -> Summary:
    """Measures the recipe's systems on its split.

    Args:
        load: gives the models among the systems.
        folder: gets rows.jsonl, summary.json, report.html and the answers as files.

    Raises:
        UsageError: a system is not known.
    """
    check_names([*recipe.systems, *recipe.sampled])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answers").mkdir(exist_ok=True)
    queries = first_of_each_dimension(world.queries(recipe.split), recipe.limit)
    asked = hear_queries(judge, queries)
    plan = [(name, GREEDY if name in MODELS else "reference", 0.0) for name in recipe.systems]
    plan += [(name, SAMPLED, 1.0) for name in recipe.sampled if name in recipe.systems]
    rows: list[Scored] = []
    for name, mode, temperature in plan:
        say(f"bench: {name} ({mode}) on {len(queries)} queries")
        answers = answers_of(name, world, queries, asked, temperature, recipe.seed, load)
        rows += scored(name, mode, answers, asked, judge, world, recipe.seed, folder / "answers")
    write_text(folder / "rows.jsonl", "".join(json.dumps(_line(row)) + "\n" for row in rows))
    summary = summarise(rows, compare=COMPARED, draws=recipe.draws, seed=recipe.seed)
    page = {"judge": ", ".join(judge.name.values()), "split": recipe.split, "seed": recipe.seed, **(meta or {})}
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
    return summary


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
    world: World,
    seed: int,
    folder: Path,
) -> list[Scored]:
    """One row an answer: the judge's score, and the truth's. asked: what the judge heard in the query of each."""
    said = judge.hear([a.wave for a in answers], "answer")
    verdicts = judge.scorer.score(list(zip(asked, said, strict=True)), closed=True)
    return [
        _scored(name, mode, answer, q, a, v, world.truth(answer.query, answer.spoken), seed, folder)
        for answer, q, a, v in zip(answers, asked, said, verdicts, strict=True)
    ]


def _scored(
    name: str,
    mode: str,
    answer: Answer,
    asked: Utterance,
    said: Utterance,
    verdict: Verdict,
    truth: float,
    seed: int,
    folder: Path,
) -> Scored:
    query: Spoken = answer.query
    return Scored(
        system=name,
        mode=mode,
        query=query.id,
        text=query.row["sentence"],
        dimension=query.row["dimension"],
        style=query.row["style"],
        seed=seed,
        score=verdict.score,
        truth=truth,
        heard_text=said.heard.text,
        written_text=answer.written,
        tone_in=asked.words,
        tone_out=said.words,
        reason=verdict.reason,
        query_audio=query.path,
        answer_audio=saved(answer, folder, f"{name}.{mode.replace('=', '')}"),
    )


def _line(row: Scored) -> dict:
    fields = asdict(row) if not hasattr(row, "model_dump") else row.model_dump()
    return {key: str(value) if isinstance(value, Path) else value for key, value in fields.items()}
