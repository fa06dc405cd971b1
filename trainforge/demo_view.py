"""How the demo looks: a live screen on a terminal, plain lines everywhere else."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from trainforge.commands.common import ENDED, number_text
from trainforge.commands.logs import line_text
from trainforge.commands.manifest import plan_lines
from trainforge.config.views import JobDetail, LogLine, MetricPoint

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

LOG_LINES = 10
METRIC_ROWS = 8
NEXT = (
    "trainforge sender start",
    "trainforge sender token          # prints the line that joins a machine",
    "trainforge init ~/my-model --template digits",
    "cd ~/my-model && git push trainforge main",
    "trainforge logs -f && trainforge pull",
)


def _activation() -> list[str]:
    """What lets a shell find `trainforge`, where it does not yet."""
    script = Path(sys.prefix) / "bin" / "activate"
    return (
        [f". {shlex.quote(str(script))}"] if shutil.which("trainforge") is None and script.is_file() else []
    )


class View(Protocol):
    """What the demo says; `show` is called again and again with what is new."""

    def say(self, text: str) -> None: ...

    def command(self, text: str) -> None: ...

    def show(self, job: JobDetail, lines: list[LogLine], points: list[MetricPoint]) -> None: ...

    def close(self) -> None: ...

    def next_steps(self) -> None: ...


def make_view() -> View:
    return LiveView() if sys.stdout.isatty() else PlainView()


class PlainView:
    """One line for each change."""

    def __init__(self) -> None:
        self._seen = ""
        self._planned = False

    def say(self, text: str) -> None:
        click.echo(text)

    def command(self, text: str) -> None:
        self.say(click.style(f"$ {text}", bold=True))

    def show(self, job: JobDetail, lines: list[LogLine], points: list[MetricPoint]) -> None:
        now = status_text(job)
        if now != self._seen:
            self._seen = now
            self.say(now)
        if job.plan and not self._planned:
            self._planned = True
            for text in plan_lines(job.plan):
                self.say(f"  {text}")
        for line in lines:
            self.say(f"  {line_text(line, prefixed=True)}")
        for point in points:
            self.say(f"  metrics: {point_text(point)}")

    def close(self) -> None:
        sys.stdout.flush()

    def next_steps(self) -> None:
        self.say("\nNext, for real:")
        for command in (*_activation(), *NEXT):
            self.say(f"  {command}")


class LiveView(PlainView):
    """A screen that keeps itself up to date while the job runs."""

    def __init__(self) -> None:
        super().__init__()
        self._live: Live | None = None
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._points: deque[MetricPoint] = deque(maxlen=METRIC_ROWS)

    def show(self, job: JobDetail, lines: list[LogLine], points: list[MetricPoint]) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(auto_refresh=False)
            self._live.start()
        self._lines.extend(click.unstyle(line_text(line, prefixed=True)) for line in lines)
        self._points.extend(points)
        self._live.update(self._screen(job), refresh=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _screen(self, job: JobDetail) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        seconds = (job.ended or time.time()) - job.created
        head = Text.assemble(
            (f"job {job.id[:8]}", "bold"), "  ", (job.state, _colour(job.state)), f"  {seconds:.0f} s"
        )
        for name, why in job.waiting.items():
            head.append(f"\nwaits for {name}: {why}", "yellow")
        for text in plan_lines(job.plan):
            head.append(f"\n  {text}", "dim")
        bar = ProgressBar(total=1.0, completed=job.progress or 0.0, width=60)
        text = "\n".join(self._lines) or "no output yet"
        output = Panel(
            Text(text, no_wrap=True, overflow="ellipsis"), title="output", height=LOG_LINES + 2, style="dim"
        )
        return Group(head, Padding(bar, (0, 0, 1, 0)), _node_table(job), _metric_table(self._points), output)


def _colour(state: str) -> str:
    return {"completed": "green", "failed": "red", "cancelled": "yellow"}.get(state, "cyan")


def _node_table(job: JobDetail) -> RenderableType:
    from rich.table import Table

    table = Table("node", "executor", "state", "phase", "", box=None, pad_edge=False)
    for node in job.attempts[-1].nodes if job.attempts else []:
        table.add_row(
            str(node.rank), node.executor_name, node.state, node.phase or "", node.reason or node.detail
        )
    return table


def _metric_table(points: Iterable[MetricPoint]) -> RenderableType:
    from rich.table import Table

    points = list(points)
    names = list(dict.fromkeys(name for point in points for name in point.values if name != "progress"))
    table = Table("epoch", *names, box=None, pad_edge=False)
    for point in points:
        epoch = "" if point.epoch is None else f"{point.epoch:g}"
        table.add_row(epoch, *(number_text(point.values.get(name, "")) for name in names))
    return table


def status_text(job: JobDetail) -> str:
    """State, phase of each node and what is waited for, in a line."""
    parts = [f"job {job.id[:8]} {job.state}"]
    if job.attempts and job.state not in ENDED:
        parts += [f"{node.executor_name}: {node.phase or node.state}" for node in job.attempts[-1].nodes]
    parts += [f"waits for {name}: {why}" for name, why in job.waiting.items()]
    if job.reason:
        parts.append(job.reason)
    return " | ".join(parts)


def point_text(point: MetricPoint) -> str:
    epoch = "" if point.epoch is None else f"epoch {point.epoch:g}, "
    values = (f"{name} {number_text(value)}" for name, value in point.values.items() if name != "progress")
    return epoch + ", ".join(values)


def tree_lines(paths: Sequence[str]) -> list[str]:
    """Paths as an indented tree."""
    lines = []
    shown: tuple[str, ...] = ()
    for path in sorted(paths):
        *folders, name = path.split("/")
        for depth in range(len(folders)):
            if tuple(folders[: depth + 1]) != shown[: depth + 1]:
                lines.append("  " * depth + folders[depth] + "/")
        shown = tuple(folders)
        lines.append("  " * len(folders) + name)
    return lines
