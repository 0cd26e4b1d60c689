"""The report's cards: a sentence in its two styles side by side, with every system's answer to each."""

from __future__ import annotations

import json
from html import escape

from paras2s_cli.bench.clips import Clips, Pair, Side
from paras2s_cli.bench.stats import Scored
from paras2s_cli.bench.words import normalise

_ICONS = (
    '<svg class="go" viewBox="0 0 16 16" aria-hidden="true"><path d="M3 1l11 7-11 7z"/></svg>'
    '<svg class="stop" viewBox="0 0 16 16" aria-hidden="true"><path d="M2 2h12v12H2z"/></svg>'
)


def card(pair: Pair, systems: list[str], clips: Clips, number: int) -> str:
    """One sentence: styles as columns, the query and each system's answer as rows; sound goes to `clips`."""
    scores = {name: [side.answers[name].score if name in side.answers else None for side in pair.sides] for name in systems}
    heads = "".join(f'<th role="columnheader" scope="col">{escape(side.style)}</th>' for side in pair.sides)
    asked = "".join(_td(side.style, _query(side, clips)) for side in pair.sides)
    body = f'<tr role="row"><th role="rowheader" scope="row">query</th>{asked}</tr>' + "".join(
        f'<tr role="row" data-system="{escape(name)}"><th role="rowheader" scope="row">{escape(name)}</th>'
        + "".join(_td(side.style, _answer(side.answers.get(name), name, side.style, clips)) for side in pair.sides)
        + "</tr>"
        for name in systems
    )
    return (
        f'<article class="card" tabindex="-1" aria-labelledby="q{number}" '
        f'data-dimension="{escape(pair.dimension)}" data-scores="{escape(json.dumps(scores))}">'
        f'<h3 id="q{number}">\u201c{escape(pair.text)}\u201d '
        f'<span class="tag">{escape(pair.dimension)}</span></h3><table class="pair" role="table">'
        '<colgroup><col class="name"><col><col></colgroup>'
        f'<thead role="rowgroup"><tr role="row"><td></td>{heads}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table></article>'
    )


def _td(style: str, inner: str) -> str:
    """Narrow pages lay tables out as blocks: each cell then names its style, and roles keep it a table."""
    return f'<td role="cell" data-style="{escape(style)}">{inner}</td>'


def _query(side: Side, clips: Clips) -> str:
    row = side.query
    button = _button(clips.add(row.query_audio), f"the query, {side.style}: {row.text}")
    tone = f"tone heard: {escape(row.tone_in)}" if row.tone_in else "no tone heard"
    return f'<div class="said">{button}<div class="facts">{tone}</div></div>'


def _answer(row: Scored | None, name: str, style: str, clips: Clips) -> str:
    if row is None:
        return '<span class="facts">no answer</span>'
    button = _button(clips.add(row.answer_audio), f"{name}, asked {style}: {row.heard_text}")
    truth = "" if row.truth is None else f"<span>truth {row.truth:g}</span>"
    tone = f"<span>tone: {escape(row.tone_out)}</span>" if row.tone_out else ""
    wrote = ""
    if row.written_text is not None and normalise(row.written_text) != normalise(row.heard_text):
        wrote = f'<div class="why">written: {escape(row.written_text)}</div>'
    heard = escape(row.heard_text) or '<span class="facts">nothing heard</span>'
    return (
        f'<div class="said">{button}<div><div class="facts">{_pill(row.score)}{truth}{tone}</div>'
        f'<div class="heard">{heard}</div>{wrote}<div class="why">{escape(row.reason)}</div></div></div>'
    )


def _pill(score: float | None) -> str:
    if score is None:
        return '<span class="pill">no score</span>'
    step = min(max(round(score), 1), 5)
    return f'<span class="pill s{step}"><span class="sr">score </span>{score:.3g}</span>'


def _button(clip: str | None, label: str) -> str:
    if clip is None:
        said = f"No sound: {escape(label)}"
        return f'<button type="button" class="play" disabled aria-label="{said}">{_ICONS}</button>'
    return f'<button type="button" class="play" data-clip="{clip}" aria-pressed="false" aria-label="Play {escape(label)}">{_ICONS}</button>'
