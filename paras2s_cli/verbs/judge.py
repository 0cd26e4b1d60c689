"""`paras2s judge`: one pair, a manifest of pairs, or the judge's scores beside people's."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from paras2s_cli.data.rows import Judgement
    from paras2s_cli.judge.run import Settings

WAYS = "name two audio files (paras2s judge query.wav answer.wav), or one manifest of pairs (paras2s judge pairs.jsonl; - for stdin)"
AUDIO = (".wav", ".flac", ".ogg", ".mp3")


class Output(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"


def judge(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY ANSWER | PAIRS.jsonl | -",
            help="Two audio files, or a manifest of pairs; with --agree, scores.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Append the rows to this file; the same command goes on where it ends.")
    ] = None,
    output: Annotated[
        Output | None,
        typer.Option("--output", help="How to print: table for a pair, jsonl for a manifest if not said."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option("--queries", metavar="FILE", help="The manifest holds a system's responses; this one the queries that they answer."),
    ] = None,
    judge_recipe: Annotated[
        str,
        typer.Option(
            "--judge",
            metavar="NAME_OR_PATH",
            help="The judge's recipe: auto (the best that can run here), pocket, endpoint, local, or a YAML file.",
        ),
    ] = "auto",
    agree: Annotated[
        Path | None,
        typer.Option("--agree", help="Compare scores with this CSV of people's (query, system or id; score)."),
    ] = None,
    closed: Annotated[
        bool,
        typer.Option(
            "--closed", help="The answers come from a model that knows the judge's world only: what else it says is garbled, and scores 1."
        ),
    ] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows that are judged at a time.")] = 64,
    max_fail: Annotated[float, typer.Option("--max-fail", min=0, max=1, help="Exit 3 if more rows than this have no score.")] = 0.5,
    max_seconds: Annotated[float, typer.Option("--max-seconds", min=0.001, help="The longest audio that is heard, in seconds.")] = 600.0,
    allow_outside: Annotated[bool, typer.Option("--allow-outside", help="Paths may leave the manifest's folder.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Ask an endpoint again what it has answered before.")] = False,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", min=0, help="The most that an endpoint may cost, by the recipe's prices.")
    ] = None,
    emit: Annotated[
        Path | None, typer.Option("--emit-batch", metavar="FILE", help="Write an endpoint's requests to a batch file; ask nothing.")
    ] = None,
    replies: Annotated[
        list[Path] | None,
        typer.Option("--read-batch", metavar="FILE", help="Take an endpoint's replies from a batch's output; may be given again."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Hear a query and an answer, and say how well they fit: content, style and both, 1 to 5, and why."""
    from paras2s_cli.errors import UsageError
    from paras2s_cli.judge.endpoint.asking import Asking
    from paras2s_cli.judge.run import Settings

    names = files or []
    if out == Path("-"):
        raise UsageError("-o is for a file; without it the rows go to the standard output")
    asking = Asking(not no_cache, max_cost, emit, tuple(replies or ()))
    settings = Settings(judge_recipe, closed, batch, max_fail, max_seconds, allow_outside, asking, queries)
    if agree is not None:
        if len(names) != 1 or out is not None or dry_run:
            raise UsageError("--agree compares one file of scores: paras2s judge scores.jsonl --agree humans.csv")
        _agree(Path(names[0]), agree, output or Output.table)
    elif len(names) == 2 and not names[0].endswith(".jsonl"):
        if queries is not None:
            raise UsageError("--queries goes with a manifest of responses: paras2s judge responses.jsonl --queries queries.jsonl")
        if out is not None:
            raise UsageError("-o goes with a manifest of pairs; the judgement of two files is printed (> FILE)")
        if emit is not None:
            raise UsageError("--emit-batch goes with a manifest of pairs: paras2s judge pairs.jsonl --emit-batch FILE")
        _pair(Path(names[0]), Path(names[1]), output or Output.table, settings, dry_run)
    elif len(names) == 1 and not names[0].lower().endswith(AUDIO):
        if out is not None and output not in (None, Output.jsonl):
            raise UsageError(f"with -o the rows go to {out} as JSONL; leave out --output {output}")
        if emit is not None and (out is not None or output is not None):
            raise UsageError("--emit-batch writes requests and no judgements; leave out -o and --output")
        _manifest(names[0], out, output or Output.jsonl, settings, dry_run)
    else:
        given = f"{len(names) or 'no'} {'file was' if len(names) < 2 else 'files were'} given"
        raise UsageError(f"{given}: {WAYS}")


def _pair(query: Path, answer: Path, output: Output, settings: Settings, dry_run: bool) -> None:
    from paras2s_cli.judge.output import say, write_json, write_row, writing_stdout
    from paras2s_cli.judge.run import judge_pair, plan_pair

    if dry_run:
        print(plan_pair(query, answer, settings))
        return
    row = judge_pair(query, answer, settings, say)
    if output is Output.table:
        from paras2s_cli.judge.show import print_pair

        with writing_stdout():
            print_pair(row.model_dump(mode="json"))
    elif output is Output.json:
        write_json(row.model_dump(mode="json"))
    else:
        write_row(row)


def _manifest(manifest: str, out: Path | None, output: Output, settings: Settings, dry_run: bool) -> None:
    from paras2s_cli.judge.output import bar, say, write_json, write_row, writing_stdout
    from paras2s_cli.judge.run import check_failures, judge_manifest, plan_manifest

    if dry_run:
        print(plan_manifest(manifest, out, settings))
        return
    if settings.asking.emit is not None:
        from paras2s_cli.judge.endpoint.emit import emit_batch

        with bar("hearing", rows_on_stdout=False) as watch:
            emit_batch(manifest, settings.asking.emit, settings, say, watch)
        return
    rows: list[dict[str, Any]] = []
    streams = output is Output.jsonl

    def emit(row: Judgement) -> None:
        if streams:
            write_row(row)
        else:
            rows.append(row.model_dump(mode="json"))

    with bar("judging", rows_on_stdout=streams and out is None) as watch:
        tally = judge_manifest(manifest, out, settings, emit, say, watch)
    if output is Output.json:
        write_json(rows)
    elif output is Output.table:
        from paras2s_cli.judge.show import print_rows

        with writing_stdout():
            print_rows(rows)
    check_failures(tally, settings.max_fail)


def _agree(scores: Path, humans: Path, output: Output) -> None:
    from paras2s_cli.errors import UsageError
    from paras2s_cli.judge.agreement import correlate, match_humans
    from paras2s_cli.judge.output import write_json, write_row, writing_stdout
    from paras2s_cli.judge.scores import read_scores

    if not scores.exists():
        raise UsageError(f"{scores} does not exist; make it with paras2s judge pairs.jsonl -o {scores}")
    figures = correlate(match_humans(read_scores(scores), humans))
    if output is Output.table:
        from paras2s_cli.judge.show import print_agreement

        with writing_stdout():
            print_agreement(figures)
    elif output is Output.json:
        write_json(figures)
    else:
        write_row(figures)
