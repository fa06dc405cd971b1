"""What the page of a job draws and estimates, as plain figures. Pure; the templates make SVG of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainforge.config.views import AttemptView, JobDetail, MetricPoint, NodeView
from trainforge.sender.intake import progress_of
from trainforge.sender.text import duration

PHASES = ("waiting", "checkout", "environment", "data", "ready", "training", "collecting", "publishing")
WIDTH = 1000.0  # of a timeline's picture
ROW = 26
SHORT = 4.0  # nothing that happened is narrower than this
EARLY = 0.01  # progress below which nothing can be said about the end
MOST_NODES = 64  # in the drawing of the topology


@dataclass(frozen=True)
class Bar:
    phase: str
    start: float
    seconds: float
    x: float = 0.0
    width: float = 0.0

    @property
    def words(self) -> str:
        return f"{self.phase} {duration(self.seconds) if self.seconds >= 1 else f'{self.seconds:.1f} s'}"


@dataclass
class Row:
    name: str
    bars: list[Bar] = field(default_factory=list)


def phases(job: JobDetail, attempt: AttemptView, now: float) -> list[Row]:
    """Each node's phases in one attempt, after the job's wait for it."""
    began = attempt.started or job.started or job.created
    marks: dict[int, list[tuple[float, str]]] = {}
    for entry in job.timeline:
        if entry["kind"] not in {"phase", "error"} or entry["attempt"] != attempt.number:
            continue
        if (said := _phase(entry["text"])) and entry["rank"] is not None:
            marks.setdefault(entry["rank"], []).append((entry["time"], said))
    rows = []
    first = min((times[0][0] for times in marks.values()), default=began)
    if attempt.number == 1 and first > job.created:
        rows.append(Row("job", [Bar("waiting", job.created, first - job.created)]))
    for node in attempt.nodes:
        end = node.ended if node.rank and node.ended else attempt.ended or job.ended or now
        rows.append(Row(f"rank {node.rank} {node.executor_name}", _bars(marks.get(node.rank, []), end)))
    return _drawn([row for row in rows if row.bars])


def _phase(text: str) -> str:
    word = text.split(maxsplit=1)[0].rstrip(":") if text.strip() else ""
    return {"published": "end", "ended": "ended"}.get(word, word if word in PHASES else "")


def _bars(marks: Sequence[tuple[float, str]], end: float) -> list[Bar]:
    bars: list[Bar] = []
    for number, (start, said) in enumerate(marks):
        until = marks[number + 1][0] if number + 1 < len(marks) else max(end, start)
        if said in PHASES:
            if bars and bars[-1].phase == said:
                before = bars.pop()
                bars.append(Bar(said, before.start, max(until - before.start, 0.0)))
            else:
                bars.append(Bar(said, start, max(until - start, 0.0)))
    return bars


def _drawn(rows: list[Row]) -> list[Row]:
    """The same with each bar's place."""
    every = [bar for row in rows for bar in row.bars]
    if not every:
        return []
    low, high = min(bar.start for bar in every), max(bar.start + bar.seconds for bar in every)
    scale = WIDTH / max(high - low, 0.001)
    return [Row(row.name, [_placed(bar, low, scale) for bar in row.bars]) for row in rows]


def _placed(bar: Bar, low: float, scale: float) -> Bar:
    x = min((bar.start - low) * scale, WIDTH - SHORT)
    width = min(max(bar.seconds * scale, SHORT), WIDTH - x)
    return Bar(bar.phase, bar.start, bar.seconds, round(x, 1), round(width, 1))


def totals(rows: Sequence[Row]) -> list[tuple[str, float]]:
    """The longest that any node was in each phase."""
    longest: dict[str, float] = {}
    for row in rows:
        own: dict[str, float] = {}
        for bar in row.bars:
            own[bar.phase] = own.get(bar.phase, 0.0) + bar.seconds
        for phase, seconds in own.items():
            longest[phase] = max(longest.get(phase, 0.0), seconds)
    return [(phase, longest[phase]) for phase in PHASES if phase in longest]


# --- who trains with whom -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    node: NodeView
    x: int
    y: int
    gpus: int


@dataclass(frozen=True)
class Topology:
    """Rank 0, where all processes meet, above the others. `more` nodes are not drawn."""

    boxes: tuple[Box, ...]
    width: int
    height: int
    processes: int
    more: int


BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, PER_ROW = 150, 50, 16, 34, 5


def topology(attempt: AttemptView, plan: Mapping[str, Any]) -> Topology | None:
    nodes = attempt.nodes[:MOST_NODES]
    if not nodes:
        return None
    placed = {}
    for one in plan.get("nodes", ()) if isinstance(plan.get("nodes"), list) else ():
        if isinstance(one, dict):
            placed[one.get("rank")] = one
    columns = min(max(len(nodes) - 1, 1), PER_ROW)
    width = columns * (BOX_WIDTH + GAP_X) - GAP_X
    boxes = []
    for index, node in enumerate(nodes):
        row, column = divmod(index - 1, PER_ROW) if index else (-1, 0)
        x = column * (BOX_WIDTH + GAP_X) if index else (width - BOX_WIDTH) // 2
        y = (row + 1) * (BOX_HEIGHT + GAP_Y)
        gpus = placed.get(node.rank, {}).get("gpus") or []
        boxes.append(Box(node, x, y, len(gpus) if isinstance(gpus, list) else 0))
    processes = plan.get("processes_per_node", 1)
    return Topology(
        tuple(boxes), width, boxes[-1].y + BOX_HEIGHT,
        processes if isinstance(processes, int) else 1, len(attempt.nodes) - len(nodes),
    )  # fmt: skip


# --- how long yet -------------------------------------------------------------------------------------


def seconds_left(
    progress: float | None, now: float, first: MetricPoint | None, started: float | None
) -> float | None:
    """How long training goes on at the pace it had; None where nothing tells.

    `first` is the attempt's first report: one that resumed did not begin at nothing.
    """
    if progress is None or not 0 < progress < 1 or started is None:
        return None
    since, done = started, 0.0
    if first is not None:
        known = {**first.values, "epoch": first.epoch, "step": first.step}
        before = progress_of(known, first.values)
        if before is not None and EARLY < before < progress - EARLY:
            since, done = first.time, before
    gained = progress - done
    return (now - since) / gained * (1 - progress) if gained >= EARLY and now > since else None


def node_progress(points: Sequence[MetricPoint]) -> dict[int, float]:
    """How far each rank is, by its newest report that tells."""
    known: dict[int, float] = {}
    for point in points:
        told = progress_of({**point.values, "epoch": point.epoch, "step": point.step}, point.values)
        if told is not None:
            known[point.rank] = told
    return known
