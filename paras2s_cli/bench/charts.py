"""Small inline SVG: an interval on the 1..5 scale, lines over training steps, judge against reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from paras2s_cli.bench.stats import HIGHEST, LOWEST, Interval

Points = list[tuple[float, float]]
_WIDTH, _HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 36, 10, 10, 32  # the plot's margins in px


def interval_svg(interval: Interval | None) -> str:
    """A dot and its whisker on a 1..5 axis; hidden from screen readers: the numbers stand beside it."""
    if interval is None:
        return ""

    def x(value: float) -> str:
        return f"{4 + 84 * (min(max(value, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST):.1f}"

    ticks = "".join(f'<line class="tick" x1="{x(t)}" x2="{x(t)}" y1="2" y2="14"/>' for t in range(1, 6))
    whisker = ""
    if interval.low is not None and interval.high is not None:
        ends = f'x1="{x(interval.low)}" x2="{x(interval.high)}"'
        whisker = f'<line class="whisker" {ends} y1="8" y2="8"/>'
    dot = f'<circle class="dot" cx="{x(interval.mean)}" cy="8" r="3.2"/>'
    return f'<svg class="interval" viewBox="0 0 92 16" aria-hidden="true">{ticks}{whisker}{dot}</svg>'


def training_charts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Figures of GRPO's metrics rows: reward, KL, entropy, judge against reward; those with data."""
    figures = [
        _lines("Reward, and the judge on a sample", rows, {"reward": "reward", "judge_score": "judge"}),
        _lines("KL to the warm model, nats a token", rows, {"kl_text": "text", "kl_audio": "audio"}, zero=True),
        _lines("Entropy, nats a token", rows, {"entropy_text": "text", "entropy_audio": "audio"}, zero=True),
        _against("Judge against reward, a dot a step", rows),
    ]
    return [figure for figure in figures if figure]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> Points:
    pairs = [(_number(row.get(x)), _number(row.get(y))) for row in rows]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def _lines(title: str, rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str], *, zero: bool = False) -> str:
    series = {label: sorted(_points(rows, "step", key)) for key, label in keys.items()}
    series = {label: points for label, points in series.items() if points}
    if not series:
        return ""
    every = [point for points in series.values() for point in points]
    frame = _Frame(every, zero=zero)
    body, said, legend = [], [], []
    for i, (label, points) in enumerate(series.items(), start=1):
        path = " ".join(f"{frame.x(a)},{frame.y(b)}" for a, b in points)
        body.append(f'<polyline class="line c{i}" points="{path}"/>')
        if len(points) <= 30:
            marks = (f'cx="{frame.x(a)}" cy="{frame.y(b)}"' for a, b in points)
            body.extend(f'<circle class="mark c{i}" {mark} r="2"/>' for mark in marks)
        said.append(f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g}")
        legend.append(f'<span class="key c{i}">{escape(label)}</span>')
    return _figure(title, ", ".join(said), frame, body, "step", legend)


def _against(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    points = _points(rows, "reward", "judge_score")
    if len(points) < 2:
        return ""
    low, high = min(min(p) for p in points), max(max(p) for p in points)
    frame = _Frame([(low, low), (high, high)])
    diagonal = (f'x1="{frame.x(low)}" y1="{frame.y(low)}"', f'x2="{frame.x(high)}" y2="{frame.y(high)}"')
    body = [f'<line class="same" {diagonal[0]} {diagonal[1]}/>']
    body += [f'<circle class="mark c1" cx="{frame.x(a)}" cy="{frame.y(b)}" r="2.6"/>' for a, b in points]
    gap = sum(b - a for a, b in points) / len(points)
    said = f"judge minus reward {gap:+.2f} on average over {len(points)} steps"
    return _figure(title, said, frame, body, "reward (dashed: judge = reward)", [])


class _Frame:
    """Data to pixels, with a few round gridlines."""

    def __init__(self, points: Points, *, zero: bool = False) -> None:
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        self.x0, self.x1 = _spread(min(xs), max(xs))
        self.y0, self.y1 = _spread(min(0.0, *ys) if zero else min(ys), max(ys))

    def x(self, value: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - self.x0) / (self.x1 - self.x0):.1f}"

    def y(self, value: float) -> str:
        return f"{_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - self.y0) / (self.y1 - self.y0):.1f}"

    def grid(self) -> str:
        parts = []
        for tick in _ticks(self.y0, self.y1):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{_LEFT - 5}" y="{float(y) + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in _ticks(self.x0, self.x1):
            parts.append(f'<text x="{self.x(tick)}" y="{_HEIGHT - 18}" text-anchor="middle">{tick:g}</text>')
        return "".join(parts)


def _spread(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _figure(title: str, said: str, frame: _Frame, body: list[str], axis: str, legend: list[str]) -> str:
    label = escape(f"{title}: {said}", quote=True)
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <span class="keys">{"".join(legend)}</span>'
        "</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{frame.grid()}{"".join(body)}'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(axis)}</text>'
        "</svg></figure>"
    )
