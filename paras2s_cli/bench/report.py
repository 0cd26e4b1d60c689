"""The bench as one self-contained HTML page: what was measured and how, the systems, the answers to hear."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from paras2s_cli.bench.cards import card
from paras2s_cli.bench.charts import interval_svg, training_charts
from paras2s_cli.bench.clips import Clips, choose_pairs
from paras2s_cli.bench.stats import ALL, Comparison, Interval, Measure, Scored, Summary, SystemSummary
from paras2s_cli.bench.table import NOTHING, missing, notes, percent_text

BUDGET = 5_000_000  # bytes of base64 that the clips may take; sentences beyond it are left out


def write_report(
    path: Path,
    summary: Summary,
    rows: Sequence[Scored],
    *,
    title: str,
    meta: Mapping[str, Any],
    players: int = 20,
    training: Sequence[Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> None:
    """Write the page to `path` at once (temp beside, then renamed). It needs no network and no other file.

    meta: what was measured and how (judge, recipe hash, ...), printed as it comes. players: at most so many
    sentences, each in two styles, can be heard, every system in its first decoding mode. training: GRPO's metrics rows.
    Every string is escaped: a transcript may hold anything. OSError where the folder cannot be written.
    """
    first = {system.system: system.mode for system in reversed(summary.systems)}
    systems = list(dict.fromkeys(system.system for system in summary.systems))
    heard = [row for row in rows if row.mode == first[row.system]]
    modes = ", ".join(mode for mode in summary.modes if mode in first.values())
    clips = Clips()
    cards: list[str] = []
    for pair in choose_pairs(heard, players, seed=seed):
        cards.append(card(pair, systems, clips, len(cards)))
        if clips.size > BUDGET:
            break
    charts = training_charts(training or [])
    page = _fill(
        {
            "title": escape(title),
            "lead": _lead(summary),
            "meta": "".join(_fact(key, value) for key, value in meta.items()),
            "systems": "\n".join(_systems(summary, each) for each in summary.modes),
            "comparisons": _comparisons(summary),
            "notes": "".join(f'<p class="soft">{escape(note)}</p>' for note in _notes(summary)),
            "training": _training(charts),
            "sample": _sample(len(cards), len({(r.dimension, r.text) for r in heard}), modes),
            "filters": _filters(summary, systems),
            "cards": "\n".join(cards),
            "clips": _json(clips.base64),
        }
    )
    _write(path, page)


def _fill(slots: Mapping[str, str]) -> str:
    """The template with its {{slots}}, in one pass: text that looks like a slot is never filled again."""
    template = files("paras2s_cli.bench").joinpath("report.html").read_text(encoding="utf-8")
    script = template[template.rindex("<script>") + len("<script>") : template.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found = {**slots, "script_hash": f"sha256-{digest}"}  # the only script the page lets run
    return re.sub(r"\{\{(\w+)\}\}", lambda match: found[match[1]], template)


def _json(value: Any) -> str:
    """JSON for a <script> element: no character in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _write(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(page)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _notes(summary: Summary) -> list[str]:
    small = "Small print under \u201cscored\u201d: the mean if the answers without a score were all 1, and all 5."
    return notes(summary) + ([small] if missing(summary) else [])


def _lead(summary: Summary) -> str:
    kinds = ", ".join(summary.dimensions)
    return (
        "<p>Each sentence is spoken in two contrasting styles; its words alone do not say which answer fits. "
        "A judge hears the query and the answer and scores how well they fit, words and voice together, from "
        f"1 to 5. Dimensions: {escape(kinds)}. Truth, where there is one, is the score that follows from how "
        "the answer was made; no reward ever saw it.</p>"
    )


def _fact(key: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"<div><dt>{escape(str(key))}</dt><dd>{escape(text)}</dd></div>"


def _systems(summary: Summary, mode: str) -> str:
    heads = ["system", ALL, *summary.dimensions, "truth", "word error", "text = heard", "scored"]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "\n".join(_row(system, summary.dimensions) for system in summary.systems if system.mode == mode)
    label = f"{mode}: judge scores, 1 to 5, mean and interval"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table class="systems">'
        f"<caption>{escape(label)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(system: SystemSummary, dimensions: tuple[str, ...]) -> str:
    measures = [system.score.get(part) for part in (ALL, *dimensions)] + [system.truth.get(ALL)]
    cells = "".join(f"<td>{_cell(measure)}</td>" for measure in measures)
    rates = "".join(f"<td>{_rate(rate)}</td>" for rate in (system.word_error, system.text_heard))
    score = system.score[ALL]
    seeds = f"<small>{system.seeds} seeds</small>" if system.seeds > 1 else ""
    bounds = f"<small>{score.if_lowest:.2f} to {score.if_highest:.2f}</small>" if score.missing else ""
    counted = f"<td>{score.scored} of {score.total}{bounds}</td>"
    return f'<tr><th scope="row">{escape(system.system)}{seeds}</th>{cells}{rates}{counted}</tr>'


def _cell(measure: Measure | None) -> str:
    if measure is None or measure.interval is None:
        return NOTHING
    found = measure.interval
    return f"<b>{found.mean:.2f}</b>{interval_svg(found)}<small>{_range(found)}</small>"


def _range(found: Interval) -> str:
    return "" if found.low is None or found.high is None else f"{found.low:.2f} to {found.high:.2f}"


def _rate(found: Interval | None) -> str:
    if found is None:
        return NOTHING
    small = "" if found.low is None or found.high is None else f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"<b>{percent_text(found)}</b><small>{small}</small>"


def _comparisons(summary: Summary) -> str:
    if not summary.comparisons:
        return ""
    heads = ["difference", "mode", "by", "points", "relative, %", *summary.dimensions]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "\n".join(_difference(comparison, summary.dimensions) for comparison in summary.comparisons)
    label = "Differences, paired on the same queries"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="systems">'
        f"<caption>{label}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _difference(comparison: Comparison, dimensions: tuple[str, ...]) -> str:
    whole = comparison.differences[ALL]
    parts = (comparison.differences.get(dimension) for dimension in dimensions)
    cells = [
        escape(comparison.mode),
        "judge" if comparison.measure == "score" else "truth",
        _signed(whole.absolute),
        _signed(whole.relative, 1),
        *(NOTHING if part is None else _signed(part.absolute) for part in parts),
    ]
    name = f"{comparison.system} minus {comparison.baseline}"
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _signed(found: Interval, digits: int = 2) -> str:
    if found.low is None or found.high is None:
        return f"<b>{found.mean:+.{digits}f}</b>"
    return f"<b>{found.mean:+.{digits}f}</b><small>{found.low:+.{digits}f} to {found.high:+.{digits}f}</small>"


def _training(charts: list[str]) -> str:
    if not charts:
        return ""
    figures = "".join(charts)
    head = '<section aria-labelledby="h-train"><h2 id="h-train">Alignment</h2>'
    return f'{head}<div class="charts">{figures}</div></section>'


def _sample(shown: int, total: int, mode: str) -> str:
    return escape(
        f"{shown} of {total} sentences, {mode}, chosen evenly over dimensions and styles, not by score. "
        "Keys: j and k move between sentences, Tab and Enter play, Escape stops."
    )


def _filters(summary: Summary, systems: list[str]) -> str:
    first = summary.comparisons[0] if summary.comparisons else None
    a, b = (first.system, first.baseline) if first else ("", "")
    focus = a if a in systems else (systems[-1] if systems else "")
    dimensions = "".join(f'<option value="{escape(d)}">{escape(d)}</option>' for d in summary.dimensions)
    by = "".join(f'<option value="{escape(s)}"{" selected" if s == focus else ""}>{escape(s)}</option>' for s in systems)
    boxes = "".join(f'<label><input type="checkbox" name="system" value="{escape(s)}" checked> {escape(s)}</label>' for s in systems)
    gain = f'<option value="gain">largest gain over {escape(b)}</option>' if first else ""
    differ = f"only where {escape(a)} and {escape(b)} differ by a point"
    only = f'<label><input type="checkbox" name="differ"> {differ}</label>' if first else ""
    return (
        f'<form class="filters" aria-label="Filters" data-a="{escape(a)}" data-b="{escape(b)}">'
        '<label>dimension <select name="dimension">'
        f'<option value="">every</option>{dimensions}</select></label>'
        '<label>order <select name="order"><option value="listed">as listed</option>'
        '<option value="worst">worst first</option><option value="best">best first</option>'
        f"{gain}</select></label>"
        f'<label>by <select name="by">{by}</select></label>'
        f"<fieldset><legend>systems</legend>{boxes}</fieldset>{only}</form>"
    )
