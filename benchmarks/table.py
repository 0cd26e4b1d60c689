"""One table from the JSON of pytest-benchmark.

    pytest benchmarks/ --benchmark-only --benchmark-save-data --benchmark-json=runs/bench.json
    python benchmarks/table.py runs/bench.json

Times are the 20th, 50th and 80th percentile of the rounds. `x ours` is a peer's median over that of `ours` (or `engine`) in its group.
GB/s and TFLOP/s count what must be moved and computed (the bench's `bytes` and `flops`), shares are of the copy and the product of
`bench_roof.py` in the same files. Of a bench with `phases`, bytes and FLOPs that follow one another, the share is the time that all of them
take at best, each by its own roof, over the time taken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

OURS = ("ours", "engine")


@dataclass(frozen=True)
class Row:
    """One variant of one group. Times in seconds."""

    group: str
    variant: str
    p20: float
    p50: float
    p80: float
    extra: Mapping[str, Any]


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """The rows of one JSON. ValueError if the rounds are not in it."""
    found = []
    for bench in report["benchmarks"]:
        data = bench["stats"].get("data")
        if not data:
            raise ValueError(f"{bench['name']}: its rounds are not in the file; run pytest with --benchmark-save-data")
        given = bench.get("params") or {}
        variant = given.get("variant") or given.get("name") or bench["name"]
        others = "-".join(str(value) for key, value in given.items() if key not in ("variant", "name"))
        # one variant of several sizes is no group of its own
        group = bench.get("group") or " ".join(part for part in (bench["name"].split("[")[0].removeprefix("test_"), others) if part)
        p20, p50, p80 = np.percentile(data, (20, 50, 80))
        found.append(Row(group, str(variant), float(p20), float(p50), float(p80), bench.get("extra_info") or {}))
    return found


def roofs_of(rows: Iterable[Row]) -> dict[str, float]:
    """Bytes a second of `memory` and FLOPs a second of `compute`, where they were measured."""
    found = {}
    for row in rows:
        if row.extra.get("roof") == "memory":
            found["bytes"] = row.extra["bytes"] / row.p50
        elif row.extra.get("roof") == "compute":
            found["flops"] = row.extra["flops"] / row.p50
    return found


def versions_of(report: Mapping[str, Any]) -> str:
    """The packages of `conftest.py` with their versions."""
    packages = (report.get("machine_info") or {}).get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def lines_of(rows: list[Row]) -> list[list[str]]:
    """Cells of the table, grouped, ours first."""
    roofs, lines = roofs_of(rows), []
    for group in dict.fromkeys(row.group for row in rows):
        mine = [row for row in rows if row.group == group]
        own = next((row for row in mine if row.variant in OURS), None)
        for row in sorted(mine, key=lambda r: r is not own):
            ratio = "" if own is None or row is own else f"{row.p50 / own.p50:.2f}"
            rates, shares = [], []
            for key, unit, scale in (("bytes", "GB/s", 1e9), ("flops", "TFLOP/s", 1e12)):
                if key in row.extra:
                    rate = row.extra[key] / row.p50
                    rates.append(f"{rate / scale:.3g} {unit}")
                    if key in roofs and "roof" not in row.extra:
                        shares.append(f"{rate / roofs[key]:.0%}")
            if "tokens" in row.extra:
                rates.append(f"{row.extra['tokens'] / row.p50:.0f} tokens/s")
            if "phases" in row.extra and len(roofs) == 2:
                least = sum(max(size / roofs["bytes"], flops / roofs["flops"]) for size, flops in row.extra["phases"])
                shares.append(f"{least / row.p50:.0%}")
            times = [f"{value * 1e3:.3f}" for value in (row.p20, row.p50, row.p80)]
            lines.append([row.group, row.variant, *times, ratio, " ".join(rates), " ".join(shares)])
    return lines


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+")
    given = parser.parse_args()
    rows: list[Row] = []
    versions: set[str] = set()
    for path in given.reports:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            rows += rows_of(report)
            versions.add(versions_of(report))
        except OSError as error:
            parser.error(f"{path} cannot be read ({error.strerror})")
        except (ValueError, KeyError, TypeError) as error:
            parser.error(f"{path}: no report of pytest-benchmark ({error})")
    table = Table(*("group", "variant", "p20 ms", "p50 ms", "p80 ms", "x ours", "rate", "of the roof"), box=None)
    for line in lines_of(rows):
        table.add_row(*line)
    console = Console(width=None if Console().is_terminal else 180)
    console.print(table)
    seen = {(row.extra.get("device"), row.extra.get("torch")) for row in rows} - {(None, None)}
    for device, version in sorted(seen, key=str):
        console.print(f"device {device}, torch {version}")
    for packages in sorted(versions - {""}):
        console.print(packages)


if __name__ == "__main__":
    main()
