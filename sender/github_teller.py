"""Tells GitHub how jobs stand, keeps the comment of each pull request, and answers what is asked there.

Level-triggered: what is true now is compared with what was told last, and the difference is told. So a
change is told once, whatever was lost or repeated, and a sender that restarts goes on where it was. Nothing
waits for it: a GitHub that is away, or asks for patience, delays the telling and no job.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from sqlalchemy.engine import RowMapping

from trainforge.config.errors import NotFound, NotTrusted, TrainForgeError, Unreachable
from trainforge.config.messages import OUTCOMES
from trainforge.hooks.github_api import GitHubBusy, GitHubForbids
from trainforge.hooks.github_calls import Calls, Reaction
from trainforge.hooks.github_comment import MARKER, PullPlan, comment
from trainforge.hooks.github_report import Report, check_run, digest, status
from trainforge.sender import events
from trainforge.sender.context import Sender
from trainforge.sender.github_access import asking
from trainforge.sender.github_asked import Answer, act, note_pull
from trainforge.sender.github_dispatch import start
from trainforge.sender.github_plans import plan_pull
from trainforge.sender.github_reports import is_told, report_of
from trainforge.sender.notify import GITHUB, JOBS
from trainforge.sender.store_commands import DISPATCH, Asked
from trainforge.sender.store_github import Connection

log = logging.getLogger(__name__)
_TALK = {"pull_requests": "write"}
_REACTIONS: dict[str, Reaction] = {one: one for one in ("+1", "-1", "confused", "rocket", "eyes")}
LOOK_EVERY_S = 10.0
GAP_S = 0.25  # however much happens
NOTE_EVERY_S = 20.0  # up to when it is known which jobs are to be told
LIST_EVERY_S = 1800.0  # pull requests of which no delivery came
FIRST_REST_S, LONGEST_REST_S = 5.0, 900.0
AGAIN_S = 20.0  # between two tellings of a job whose state is the same
MOST_TRIES = 8
MOST_CALLS = 60  # of one connection in one look: GitHub takes 80 changes a minute


async def run(sender: Sender) -> None:
    """Until the sender stops."""
    teller = Teller(sender)
    while not sender.stopping:
        with sender.bell.listen(JOBS, GITHUB) as listener:
            await asyncio.to_thread(teller.look)
            await sender.bell.wait("end", GAP_S)
            await listener.wait(LOOK_EVERY_S)


class Teller:
    """Everything here runs in a worker thread. What is remembered here alone may be forgotten."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        # Of a part of a connection's work: until when it rests, and for how long.
        self._rest: dict[tuple[str, str], tuple[float, float]] = {}
        self._listed: dict[str, float] = {}
        self._told: dict[str, object] = {}  # how jobs and pull requests were when they were told of last
        self._noted = -math.inf
        self._left = 0
        self._asked = False

    def look(self) -> None:
        """Tell what is to be told now, as far as GitHub lets us."""
        sender = self._sender
        connections = sender.store.connections()
        if not connections:
            return
        now = sender.now()
        fresh = self._noted <= now < self._noted + NOTE_EVERY_S
        if not fresh:
            sender.store.begin_reports(now)
        since = {one.repository_id: one.connected for one in connections}
        due: dict[str, list[tuple[RowMapping, RowMapping | None]]] = {one: [] for one in since}
        for row, told in sender.store.reportable(since):
            due[row["repository_id"]].append((row, told))
        new = [row["id"] for rows in due.values() for row, told in rows if told is None]
        if new or not fresh:
            sender.store.note_reports(new, now)
            self._noted = now
        for connection in connections:
            if sender.stopping:
                return
            self._left, self._asked = MOST_CALLS, False
            self._connection(connection, due[connection.repository_id])

    def _connection(self, connection: Connection, due: list[tuple[RowMapping, RowMapping | None]]) -> None:
        """One part that may not do its work leaves the others theirs."""
        parts: dict[str, Callable[[], None]] = {
            "commands": partial(self._commands, connection),
            "jobs": partial(self._reports, connection, due),
            "pull requests": partial(self._pulls, connection),
        }
        well = True
        for name, part in parts.items():
            key = (connection.repository_id, name)
            if self._rest.get(key, (0.0, 0.0))[0] > self._sender.now():
                well = False
                continue
            try:
                part()
                self._rest.pop(key, None)
            except TrainForgeError as error:
                well = False
                for resting in parts if isinstance(error, GitHubBusy) else [name]:
                    self._pause(connection, resting, error)
        if well and self._asked and connection.problem:
            self._sender.store.note_connection(connection.repository_id, problem="")

    def _pause(self, connection: Connection, part: str, error: TrainForgeError) -> None:
        """Leave a part of a connection's work for a while; how long, GitHub says or its failures do."""
        now, key = self._sender.now(), (connection.repository_id, part)
        _, before = self._rest.get(key, (0.0, 0.0))
        rest = min(max(before * 2, FIRST_REST_S), LONGEST_REST_S)
        if isinstance(error, GitHubBusy):
            rest = max(error.until - now, rest if before else 1.0)  # once more busy: longer, as GitHub asks
        elif not isinstance(error, Unreachable):
            rest = max(rest, 60.0)
        log.warning("%s, %s: again in %.0f s: %s", connection.full_name, part, rest, error)
        self._rest[key] = (now + rest, rest)
        self._sender.store.note_connection(connection.repository_id, problem=str(error)[:500])

    # --- jobs -------------------------------------------------------------------------------------------

    def _reports(self, connection: Connection, due: list[tuple[RowMapping, RowMapping | None]]) -> None:
        needs = {"checks" if connection.app_id is not None else "statuses": "write"}
        with self._calls(connection, needs) as calls:
            for row, told in due:
                if self._left <= 0 or self._sender.stopping:
                    return
                self._job(connection, calls, row, told)

    def _job(
        self, connection: Connection, calls: Callable[[], Calls], row: RowMapping, told: RowMapping | None
    ) -> None:
        sender, now, by_app = self._sender, self._sender.now(), connection.app_id is not None
        if self._told.get(row["id"]) == _moment(row):
            return
        if not is_told(row) or (not by_app and sender.store.newer_job(row)):
            sender.store.drop_report(row["id"], now, "not told")
            return
        report = report_of(sender, connection, row)
        payload = check_run(report) if by_app else status(report)
        now_told = f"{_stage(report)}:{digest(payload)}"
        if told is not None and told["told"] == now_told:
            self._told[row["id"]] = _moment(row)
        if told is not None and (told["told"] == now_told or _rests(told, report, now)):
            return
        sender.store.begin_report(row["id"], now)
        try:
            number = self._tell_job(calls(), payload, report, told, by_app=by_app)
        except (GitHubForbids, NotTrusted, Unreachable):
            raise
        except TrainForgeError as error:  # of this job alone: such as a commit that GitHub does not have
            if told is not None and told["tries"] >= MOST_TRIES:
                log.warning("GitHub is not told of job %s: %s", row["id"], error)
                sender.store.drop_report(row["id"], now, str(error)[:500])
            else:
                tries = told["tries"] if told is not None else 0
                rest = min(FIRST_REST_S * 2.0**tries, LONGEST_REST_S)
                sender.store.rest_report(row["id"], now + rest, str(error)[:500])
            return
        sender.store.reported(row["id"], now_told, number, due=now + AGAIN_S, done=report.over)
        self._told.pop(row["id"], None)

    def _tell_job(
        self,
        calls: Calls,
        payload: Mapping[str, Any],
        report: Report,
        told: RowMapping | None,
        *,
        by_app: bool,
    ) -> int | None:
        self._left -= 1
        if not by_app:
            calls.set_status(report.commit, payload)
            return None
        number = told["remote_id"] if told is not None else None
        if number is None and told is not None and told["begun"]:  # before; did it arrive?
            number = calls.find_check_run(report.commit, report.context, report.job)
        if number is None:
            return calls.create_check_run(payload)
        calls.update_check_run(number, payload)
        return int(number)

    # --- commands ---------------------------------------------------------------------------------------

    def _commands(self, connection: Connection) -> None:
        sender = self._sender
        with self._calls(connection, _TALK) as calls:
            for asked in sender.store.open_commands(connection.repository_id, sender.now()):
                if self._left <= 0 or sender.stopping:
                    return
                if asked.kind == DISPATCH:
                    start(sender, asked)
                    continue
                self._left -= 3
                self._command(connection, calls(), asked)

    def _command(self, connection: Connection, calls: Calls, asked: Asked) -> None:
        sender = self._sender
        answer = Answer(_REACTIONS.get(asked.reaction, "eyes"), asked.answer)
        if not asked.acted:
            answer = act(sender, connection, calls, asked)
            sender.store.acted_on(asked, answer.reaction, answer.words, sender.now())
        try:
            if asked.comment_id is not None and asked.number is not None:
                calls.react(asked.comment_id, answer.reaction)
                if answer.words:
                    calls.create_comment(asked.number, f"@{asked.author} {answer.words}")
        except NotFound:
            log.info("a comment at %s was taken away before it was answered", connection.full_name)
        sender.store.answered(asked, sender.now())

    # --- pull requests ----------------------------------------------------------------------------------

    def _pulls(self, connection: Connection) -> None:
        sender, repository = self._sender, connection.repository_id
        with self._calls(connection, _TALK) as calls:
            if self._listed.get(repository, 0.0) <= sender.now():
                self._list(connection, calls())
            for pull in sender.store.live_pulls(repository):
                if self._left <= 0 or sender.stopping:
                    return
                if pull["due"] <= sender.now():
                    self._pull(connection, calls, pull)

    def _list(self, connection: Connection, calls: Calls) -> None:
        """Learn of those that are open, and no longer, whatever deliveries said of them."""
        sender, repository = self._sender, connection.repository_id
        found = calls.open_pulls()
        for facts in found:
            note_pull(sender, repository, facts)
        still = {facts.number for facts in found}
        for pull in sender.store.live_pulls(repository):
            if pull["open"] and pull["number"] not in still and not pull["stale"]:
                sender.store.change_pull(repository, pull["number"], open=False, stale=False)
        self._listed[repository] = sender.now() + LIST_EVERY_S

    def _pull(self, connection: Connection, calls: Callable[[], Calls], pull: RowMapping) -> None:
        sender, where = self._sender, (pull["repository_id"], pull["number"])
        try:
            if pull["stale"]:
                pull = self._refresh(calls(), pull)
            if pull["open"]:
                pull = self._planned(pull)
                self._comment(connection, calls, pull)
            elif pull["planned"] and (pull["remote_id"] or pull["mark"]):
                self._closed(connection, calls, pull)
        except (GitHubForbids, NotTrusted, GitHubBusy):
            raise
        except TrainForgeError as error:  # of this one alone: such as commits that git cannot bring now
            rest = min(FIRST_REST_S * 2.0 ** pull["tries"], LONGEST_REST_S)
            log.warning("pull request %d of %s waits: %s", pull["number"], connection.full_name, error)
            said = {
                "due": sender.now() + rest,
                "tries": min(pull["tries"] + 1, 30),
                "problem": str(error)[:500],
            }
            sender.store.change_pull(*where, **said)

    def _closed(self, connection: Connection, calls: Callable[[], Calls], pull: RowMapping) -> None:
        """Its comment goes on until the jobs of its head have ended; nothing is begun or planned for it."""
        store, repository = self._sender.store, pull["repository_id"]
        over = all(row["state"] in OUTCOMES for row in store.jobs_at(repository, pull["head_sha"]))
        self._comment(connection, calls, pull)
        if over:
            store.change_pull(repository, pull["number"], planned="")

    def _refresh(self, calls: Calls, pull: RowMapping) -> RowMapping:
        sender, repository, number = self._sender, pull["repository_id"], pull["number"]
        sender.store.change_pull(repository, number, stale=False)
        try:
            note_pull(sender, repository, calls.pull(number))
        except BaseException:
            sender.store.change_pull(repository, number, stale=True)
            raise
        return self._read(pull)

    def _planned(self, pull: RowMapping) -> RowMapping:
        """With the plan for the head and base that it has now."""
        sender = self._sender
        key = f"{pull['head_sha']} {pull['base_ref']} {pull['base_sha']}"
        if pull["planned"] == key:
            return pull
        plan, wish = plan_pull(sender, pull)
        if wish == "off" and not pull["asked"]:
            plan = plan.model_copy(update={"manifests": [], "runs": False})
        if plan.runs:
            for manifest in plan.manifests:
                events.request_job(
                    sender, pull["repository_id"], pull["head_sha"], manifest_path=manifest.path,
                    ref=f"refs/heads/{pull['head_ref']}", source="pull_request",
                )  # fmt: skip
        said = {"plan": plan.model_dump(mode="json"), "planned": key}
        sender.store.change_pull(pull["repository_id"], pull["number"], **said)
        return self._read(pull)

    def _comment(self, connection: Connection, calls: Callable[[], Calls], pull: RowMapping) -> None:
        sender, where = self._sender, (pull["repository_id"], pull["number"])
        plan = PullPlan.model_validate(pull["plan"])
        found = sender.store.jobs_at(pull["repository_id"], pull["head_sha"])
        key, seen = f"{where}", (*map(_moment, found), pull["told"], str(pull["plan"]), pull["asked"])
        if pull["told"] and self._told.get(key) == seen:
            return
        rows = [row for row in found if is_told(row)]
        newest = {(row["manifest_path"], str(row["cell"])): row for row in rows}
        reports = [report_of(sender, connection, row) for row in newest.values()]
        if not (plan.manifests or reports or pull["asked"] or pull["remote_id"]):
            return
        mark = pull["mark"] or secrets.token_hex(8)
        body = comment(plan, reports).replace(MARKER, _first_line(mark), 1)
        told = digest({"body": body})
        if told == pull["told"]:
            self._told[key] = seen
            return
        self._left -= 2
        if not pull["mark"]:
            sender.store.change_pull(*where, mark=mark)
        number = pull["remote_id"]
        if number is None and pull["mark"]:
            number = calls().find_comment(pull["number"], _first_line(mark))
        if number is None and not pull["open"]:
            return
        try:
            if number is None:
                number = calls().create_comment(pull["number"], body)
            else:
                calls().update_comment(number, body)
        except NotFound:  # somebody has deleted it
            sender.store.change_pull(*where, remote_id=None, mark="")
            raise
        done = {"told": told, "remote_id": number, "tries": 0, "due": 0.0, "problem": ""}
        sender.store.change_pull(*where, **done)

    def _read(self, pull: RowMapping) -> RowMapping:
        found = self._sender.store.pull(pull["repository_id"], pull["number"])
        assert found is not None  # noqa: S101 - rows of pull requests are never removed
        return found

    # --- the API ----------------------------------------------------------------------------------------

    @contextmanager
    def _calls(self, connection: Connection, needs: Mapping[str, str]) -> Iterator[Callable[[], Calls]]:
        """The calls, of a token that is made when the first is wanted, so that silence costs nothing."""
        opened: list[Calls] = []
        with ExitStack() as later:

            def calls() -> Calls:
                if not opened:
                    repository = later.enter_context(asking(self._sender, connection, needs))
                    opened.append(Calls(repository, connection.full_name))
                self._asked = True
                return opened[0]

            yield calls


def _stage(report: Report) -> str:
    """What is told at once; other changes are gathered for a while."""
    return f"{report.state}{'-stopping' * report.stopping}{'-publishing' * report.publishing}"


def _moment(row: RowMapping) -> object:
    """What a job is told by, as far as its row shows it: while it is the same there is nothing to tell."""
    names = (
        "id",
        "version",
        "state",
        "ending",
        "attempt",
        "stop_requested",
        "result_commit",
        "gates",
        "waiting",
    )
    return str([row[name] for name in names])


def _rests(told: RowMapping, report: Report, now: float) -> bool:
    return bool(told["due"] > now and (told["tries"] or told["told"].startswith(f"{_stage(report)}:")))


def _first_line(mark: str) -> str:
    """Of a pull request's comment: nobody can have written it before it was drawn."""
    return MARKER.replace("trainforge:", f"trainforge {mark}:", 1)
