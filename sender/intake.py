"""What a journal batch says, pure: records to rows. The store writes them, once each and in order.

A record that does not have its declared form is noted and passed over: refusing it would keep everything
behind it from ever arriving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from trainforge.config import messages as m
from trainforge.config.errors import MessageInvalid
from trainforge.sender.levels import level_of

MAX_METRICS = 256
MAX_METRIC_NAME = 128
_TOTALS = (("epoch", "epochs"), ("epoch", "total_epochs"), ("step", "total_steps"), ("step", "max_steps"))

_MODELS: dict[str, type[m.Message]] = {
    "phase": m.Phase, "ready": m.Ready, "reached": m.Reached, "started": m.Started, "log": m.Log,
    "metric": m.Metric, "usage": m.Usage, "ended": m.Ended, "publish_waiting": m.PublishWaiting,
    "published": m.Published, "finished": m.Finished, "note": m.Note,
}  # fmt: skip


@dataclass
class Intake:
    """Rows without their job, attempt, node and cursor. `node` and `job` are columns to set."""

    node: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # the newest value of each
    progress: float | None = None
    waiting: str | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    timeline: list[dict[str, Any]] = field(default_factory=list)

    @property
    def steers(self) -> bool:
        """Whether the life cycle may have something to do now."""
        return bool(self.node.keys() - {"phase", "detail"})


def fresh_records(batch: m.JournalBatch, acknowledged: int) -> list[m.Record] | None:
    """The records of a batch that are not stored yet; None when something before them is missing.

    Raises:
        MessageInvalid: the batch is not numbered without gaps from `after`.
    """
    if [record.n for record in batch.records] != list(
        range(batch.after + 1, batch.after + 1 + len(batch.records))
    ):
        raise MessageInvalid(
            "the journal batch is not numbered without gaps", hint="send it from `after` + 1"
        )
    if batch.after > acknowledged:
        return None
    return [record for record in batch.records if record.n > acknowledged]


def read_records(records: Sequence[m.Record]) -> Intake:
    intake = Intake()
    for record in records:
        try:
            said = _MODELS[record.kind].model_validate(record.data)
        except ValidationError as error:
            _note(
                intake,
                record,
                "error",
                f"record {record.n} ({record.kind}) is unreadable: {error.errors()[0]['msg']}",
            )
            continue
        _read(intake, record, said)
    return intake


def _read(intake: Intake, record: m.Record, said: m.Message) -> None:  # noqa: C901 - one case per kind
    match said:
        case m.Log():
            for text in said.text.removesuffix("\n").split("\n"):
                row = {"time": record.time, "rank": said.rank, "stream": said.stream, "level": level_of(text)}
                intake.lines.append({**row, "text": text})
        case m.Metric():
            _read_metric(intake, record, said)
        case m.Phase():
            intake.node |= {"phase": said.phase, "detail": said.detail}
            _note(intake, record, "phase", said.phase + (f": {said.detail}" if said.detail else ""))
        case m.Ready():
            intake.node |= {"ready": said.model_dump(mode="json"), "phase": "ready"}
        case m.Reached():
            intake.node["reached"] = said.model_dump(mode="json")
        case m.Started():
            intake.node |= {"begun": said.model_dump(mode="json"), "phase": "training"}
            _note(intake, record, "phase", f"training with {said.processes} processes")
        case m.Ended():
            _read_ended(intake, record, said)
        case m.PublishWaiting():
            intake.waiting = said.reason
        case m.Published():
            intake.node["published"] = said.model_dump(mode="json")
            _note(intake, record, "phase", f"published as {said.commit[:12]} on {said.branch}")
        case m.Finished():
            intake.node |= {"finished": said.model_dump(mode="json"), "phase": "finished"}
        case m.Note():
            _note(intake, record, "note" if said.level == "info" else said.level, said.text)


def _read_ended(intake: Intake, record: m.Record, said: m.Ended) -> None:
    intake.node |= {
        "outcome": said.model_dump(mode="json"),
        "state": "failed" if said.code else "completed",
        "code": said.code,
        "reason": said.reason,
        "exit_code": said.exit_code,
        "ended": record.time,
    }
    why = f" with {said.code}: {said.reason}" if said.code else ""
    _note(intake, record, "error" if said.code else "phase", f"ended{why}")


def _read_metric(intake: Intake, record: m.Record, said: m.Metric) -> None:
    values = {name[:MAX_METRIC_NAME]: value for name, value in list(said.values.items())[:MAX_METRICS]}
    point = {"time": record.time, "rank": said.rank, "step": said.step, "epoch": said.epoch, "values": values}
    intake.points.append(point)
    if said.rank == 0:
        intake.metrics |= values
        if (
            progress := progress_of({**values, "epoch": said.epoch, "step": said.step}, said.values)
        ) is not None:
            intake.progress = progress


def progress_of(*reports: Any) -> float | None:
    """How far training is, from 0 to 1, where its numbers tell."""
    known: dict[str, Any] = {}
    for report in reports:
        known |= {key: value for key, value in report.items() if _number(value)}
    if "progress" in known and 0 <= known["progress"] <= 1:
        return float(known["progress"])
    for part, total in _TOTALS:
        if part in known and known.get(total, 0) > 0:
            return float(min(max(known[part] / known[total], 0.0), 1.0))
    return None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _note(intake: Intake, record: m.Record, kind: str, text: str) -> None:
    intake.timeline.append({"time": record.time, "kind": kind, "text": text[:4000]})
