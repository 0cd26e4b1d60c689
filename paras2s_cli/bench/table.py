"""The bench on a terminal: systems as rows, one block per decoding mode, then the paired differences."""

from __future__ import annotations

from typing import IO

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from paras2s_cli.bench.stats import ALL, Comparison, Interval, Measure, Summary, SystemSummary
from paras2s_cli.errors import TooManyFailed

NOTHING = "-"
PLAIN_WIDTH = 100  # columns, where there is no terminal to ask


def render_table(summary: Summary) -> Group:
    """A rich renderable, readable at 100 columns: a table a mode, the comparisons, what was left out."""
    parts: list[Table | Text] = [_systems(summary, mode) for mode in summary.modes]
    if summary.comparisons:
        parts.append(_comparisons(summary))
    parts.append(Text("\n".join(notes(summary) + missing(summary)), style="dim"))
    return Group(*parts)


def print_table(summary: Summary, file: IO[str] | None = None) -> None:
    """Print the table to `file` (stdout by default): plain text of 100 columns where that is no terminal."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, no_color=True, width=PLAIN_WIDTH)
    console.print(render_table(summary))


def notes(summary: Summary) -> list[str]:
    """What must stand beside the numbers: how the intervals were made, how well judge and truth agree."""
    crossed = " crossed with seeds" if len(summary.seeds) > 1 else ""
    lines = [
        f"Intervals: {summary.level:.0%} bootstrap, {summary.draws} draws of whole texts{crossed}; "
        f"{_count(summary.queries, 'query', 'queries')}, {_count(summary.texts, 'text')}, "
        f"{_count(len(summary.seeds), 'seed')}."
    ]
    judged = summary.judge_truth.get(ALL)
    if judged is not None:
        lines.append(f"Judge against truth, Pearson's r: {interval_text(judged)} over {judged.n} answers.")
    return lines


def missing(summary: Summary) -> list[str]:
    """A line for each system with answers that got no score: how many, and what that could change."""
    return [
        f"{system.system} ({system.mode}): scored {score.scored} of {score.total}; the mean would be "
        f"{score.if_lowest:.2f} if the rest were all 1, {score.if_highest:.2f} if all 5."
        for system in summary.systems
        if (score := system.score[ALL]).missing
    ]


def check_missing(summary: Summary, max_fail: float) -> None:
    """Raises TooManyFailed if a system has no score for more than this share of its answers."""
    over = [s for s in summary.systems if s.score[ALL].missing > max_fail * s.score[ALL].total]
    if over:
        names = ", ".join(f"{s.system} ({s.score[ALL].missing} of {s.score[ALL].total})" for s in over)
        raise TooManyFailed(f"answers without a score: {names}; more than --max-fail {max_fail:g} allows; rows.jsonl says why")


def interval_text(interval: Interval | None, digits: int = 2) -> str:
    """Like 4.21 [4.10 4.32]; the bare mean where there is no interval, a dash where there is nothing."""
    if interval is None:
        return NOTHING
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f} {interval.high:.{digits}f}]"


def mean_text(measure: Measure | None) -> str:
    return NOTHING if measure is None or measure.interval is None else f"{measure.interval.mean:.2f}"


def percent_text(interval: Interval | None) -> str:
    return NOTHING if interval is None else f"{100 * interval.mean:.1f}%"


def signed_text(interval: Interval, digits: int = 2) -> str:
    """Like +0.42 [+0.30 +0.54]: a difference always shows its sign."""
    text = f"{interval.mean:+.{digits}f}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{interval.low:+.{digits}f} {interval.high:+.{digits}f}]"


def _systems(summary: Summary, mode: str) -> Table:
    table = _table(f"Judge, 1 to 5 ({mode})")
    table.add_column("system", overflow="fold", min_width=8)
    table.add_column(ALL, justify="right", no_wrap=True)
    for dimension in summary.dimensions:
        table.add_column(dimension, justify="right", no_wrap=len(summary.dimensions) <= 4)
    table.add_column("truth", justify="right", no_wrap=True)
    table.add_column("word\nerror", justify="right", no_wrap=True)
    table.add_column("text\n=heard", justify="right", no_wrap=True)
    for system in (s for s in summary.systems if s.mode == mode):
        table.add_row(*_row(system, summary.dimensions))
    return table


def _row(system: SystemSummary, dimensions: tuple[str, ...]) -> list[str | Text]:
    return [
        Text(system.system, style="bold"),
        interval_text(system.score[ALL].interval),
        *(mean_text(system.score.get(dimension)) for dimension in dimensions),
        interval_text(system.truth[ALL].interval),
        percent_text(system.word_error),
        percent_text(system.text_heard),
    ]


def _comparisons(summary: Summary) -> Table:
    table = _table("Paired on the same queries")
    table.add_column("difference", overflow="fold", min_width=12)
    table.add_column("mode", no_wrap=True)
    table.add_column("by", no_wrap=True)
    table.add_column("points", justify="right", no_wrap=True)
    table.add_column("relative, %", justify="right", no_wrap=True)
    for comparison in summary.comparisons:
        if ALL in comparison.differences:
            table.add_row(*_difference(comparison))
    return table


def _difference(comparison: Comparison) -> list[str | Text]:
    found = comparison.differences[ALL]
    by = "judge" if comparison.measure == "score" else "truth"
    name = Text(f"{comparison.system} - {comparison.baseline}", style="bold")
    return [name, comparison.mode, by, signed_text(found.absolute), signed_text(found.relative, 1)]


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _table(title: str) -> Table:
    return Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
