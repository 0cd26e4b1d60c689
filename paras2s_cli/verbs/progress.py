"""What a long command shows on stderr: what is being made and why, a bar with rate and time left, and GRPO's monitors in a table."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import Progress, TaskID, TextColumn
from rich.table import Table

from paras2s_cli.judge.output import bar_columns
from paras2s_cli.train.loop import Watch

MONITORS = (
    "reward",
    "reward_deviation",
    "judge_score",
    "judge_gap",
    "judge_pearson",
    "text_heard",
    "kl_text",
    "kl_audio",
    "entropy_text",
    "entropy_audio",
    "clipped_audio",
    "off_policy_audio",
    "codes",
    "silent",
    "repeated",
    "seconds",
)
"""The metrics of GRPO that the live table shows, in its order."""


class Show:
    """Says sentences and shows progress. On a stderr that is no terminal only the sentences are printed; nothing where it is quiet."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.progress = Progress(*bar_columns(), TextColumn("{task.fields[note]}"), console=self.console)
        self.tasks: dict[str, TaskID] = {}
        self.latest: dict[str, float] = {}
        self.totals: dict[str, int] = {}

    def say(self, sentence: str) -> None:
        """One line."""
        self.console.print(f"[bold]paras2s:[/bold] {escape(sentence)}", soft_wrap=True)

    def watch(self, name: str) -> Watch:
        """What a stage of that name calls after each step."""

        def watch(step: int, metrics: dict) -> None:
            total = metrics.get("of", self.totals.get(name))
            if name not in self.tasks:
                self.tasks[name] = self.progress.add_task(name, total=total, rate="", note="", completed=step - 1)
            speed = self.progress.tasks[self.progress.task_ids.index(self.tasks[name])].speed
            note = " ".join(f"{k} {metrics[k]:.3f}" for k in ("loss", "text_loss", "audio_loss", "reward") if k in metrics)
            self.progress.update(self.tasks[name], completed=step, rate=f"{speed:.1f}/s" if speed else "", note=note)
            if name == "grpo":
                self.latest |= {k: v for k, v in metrics.items() if k in MONITORS}

        return watch

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        shown = [(k, self.latest[k]) for k in MONITORS if k in self.latest]
        for start in range(0, len(shown), 4):
            table.add_row(*(f"[dim]{k}[/dim] {v:.3f}" for k, v in shown[start : start + 4]))
        return table

    @contextmanager
    def live(self) -> Iterator["Show"]:
        """While this lasts, the bars and the table are drawn."""
        if not sys.stderr.isatty():
            yield self
            return

        class _Screen:
            def __rich__(screen) -> Group:
                return Group(self.progress, self._table())

        with Live(_Screen(), console=self.console, refresh_per_second=4, redirect_stdout=False):
            yield self
