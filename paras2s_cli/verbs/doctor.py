"""`paras2s doctor`: what this machine can run, which kernel backends, and why not the others."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Output(StrEnum):
    table = "table"
    json = "json"


def doctor(
    output: Annotated[Output, typer.Option("--output", help="How to print it.")] = Output.table,
) -> None:
    """Say what this machine can run, and what to do about what it cannot.

    Exit code 0 unless something that paras2s cannot do without is missing.
    """
    from paras2s_cli.machine import examine

    checks = examine()
    if output is Output.json:
        import json

        print(json.dumps([check.row() for check in checks], indent=2, ensure_ascii=False))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_header=False)
        colours = {"ok": "green", "absent": "yellow", "missing": "red"}
        for check in checks:
            detail = f"{check.detail}; {check.way_out}" if check.way_out else check.detail
            table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", detail.replace("[", "\\["))
        Console().print(table)
    if any(check.status == "missing" for check in checks):
        raise typer.Exit(1)
