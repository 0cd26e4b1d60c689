"""Judgements and agreement for a person's eyes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from paras2s_cli.bench.intervals import Interval
from paras2s_cli.bench.table import interval_text

PLAIN_WIDTH = 100  # columns, where there is no terminal to ask
Row = Mapping[str, Any]


def print_pair(row: Row) -> None:
    """One judgement: both sides, then the scores and why."""
    table = _table("", "query", "answer")
    heard = [row[f"tone_{side}"] is not None for side in _SIDES]
    said = ["-" if row[f"content_{side}"] is None else f'"{row[f"content_{side}"]}"' for side in _SIDES]
    spoken = [there or text == "-" for there, text in zip(heard, said, strict=True)]
    lines = [("said", _where(spoken, said, "(no speech)")), ("tone", _where(heard, [row[f"tone_{side}"] or "-" for side in _SIDES]))]
    lines += [("", _where(heard, [_probabilities(row[f"{key}_{side}"]) for side in _SIDES])) for key in ("tones", "voice")]
    for name, texts in lines:
        if set(texts) != {"-"}:  # an end-to-end judge tells nothing of what it heard
            table.add_row(name, *(Text(text, "" if name else "dim") for text in texts))
    if table.row_count:
        _print(table)
    told = [(name, key) for name, key in _SCORES if row[key] is not None] or _SCORES
    scores = ", ".join(f"{name} {_score(row[key])}" for name, key in told)
    _print(Text(f"{scores}   (1 to 5)", "bold"))
    _print(Text(row["reason"] if row["failure"] is None else f"{row['reason']} [{row['failure']}]"))


def print_rows(rows: Iterable[Row]) -> None:
    """Many judgements, a line each."""
    table = _table("query", "system", "heard", "tone", "answered", "tone", "C", "S", "score", "why")
    for row in rows:
        words = [row["query"], row["system"], *(row[key] or "-" for key in _HEARD)]
        table.add_row(*map(Text, [*words, *(_score(row[key]) for _, key in _SCORES), row["reason"]]))
    _print(table)


def print_agreement(figures: Row) -> None:
    """Both correlations with their intervals, and what was left out."""
    table = _table("judge against people", "95 % interval by query", "pairs", "queries")
    for name in ("pearson", "spearman"):
        value = Interval(**figures[name]) if figures[name] else None
        table.add_row(name.title(), Text(interval_text(value)), str(figures["pairs"]), str(figures["queries"]))
    _print(table)
    for key, what in (("unscored", "the judge has no score for"), ("unmatched", "not among the scores:")):
        if figures[key]:
            _print(Text(f"{what} {figures[key]} of the pairs that people scored", "dim"))


_SCORES: Sequence[tuple[str, str]] = (("content", "content_score"), ("style", "style_score"), ("overall", "score"))
_HEARD = ("content_in", "tone_in", "content_out", "tone_out")


_SIDES = ("in", "out")


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("C", "S", "score") else "left")
    return table


def _where(heard: Sequence[bool], texts: Sequence[str], otherwise: str = "-") -> list[str]:
    return [text if there else otherwise for there, text in zip(heard, texts, strict=True)]


def _probabilities(tones: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in tones.items())


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _print(what: Table | Text) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, no_color=True, width=PLAIN_WIDTH)
    console.print(what)
