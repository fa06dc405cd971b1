"""What the GitHub Action does: ask a sender for a plan or a job, follow it, and tell the runner of it.

The same reporting serves `mode: direct`, whose sender is part of the process (`direct.py`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from trainforge.ci_summary import plan_summary, state_words, summary
from trainforge.client import Client
from trainforge.config.errors import Forbidden, ManifestError, SettingsError, TrainForgeError, Unreachable
from trainforge.config.messages import OUTCOMES
from trainforge.config.views import JobDetail, JobSummary, LogLine
from trainforge.runner import Runner

T = TypeVar("T")
LOG_WAIT_S = 20.0
LOOK_EVERY_S, LOOK_AGAIN_S = 2.0, 0.2
PATIENCE_S = 600.0  # for how long a sender may be away while a job is followed
PAUSE_S = 5.0
LINGER_S = 6.0
RENEW_BEFORE_S = 60.0
MAX_LINE = 2000
MANIFEST = "trainforge.yaml"
_PLACE = re.compile(r"([^:]+):([0-9]{1,9})(?::[0-9]+)?\Z")


class TimedOut(TrainForgeError):  # noqa: N818 - reads as the finding it is
    """The job is not at its end when this workflow has to be."""

    code = "timeout"


@dataclass(frozen=True)
class Asked:
    """`timeout` is for the whole step, in seconds; `stop` says whether the job ends with the step, and
    `linger` for how long it is then given to end."""

    manifest: str = MANIFEST
    overrides: Mapping[str, Any] = field(default_factory=dict)
    executors: Sequence[str] = ()
    wait: bool = True
    timeout: float = 6 * 3600.0
    stop: bool = True
    linger: float = LINGER_S


class RunClient(Client):
    """The sender's API for one workflow run: its token lives for minutes, and is renewed as needed."""

    def __init__(self, url: str, runner: Runner) -> None:
        super().__init__(url, "")
        self._runner = runner
        self._until = 0.0
        self.admitted: dict[str, Any] = {}

    def admit(self) -> dict[str, Any]:
        """Show GitHub's token, and get the sender's for this run.

        Raises:
            SettingsError: the workflow lacks `id-token: write`. NotTrusted, Forbidden: the sender's words.
        """
        shown = self._runner.id_token(self.url)
        headers = {"Authorization": f"Bearer {shown}"}
        given = super()._ask("POST", "/api/workflows/token", headers=headers)
        self._runner.hide(str(given["token"]))
        self._http.headers["Authorization"] = f"Bearer {given['token']}"
        self._until = float(given["expires"])
        self.admitted = given
        return given

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        if time.time() > self._until - RENEW_BEFORE_S:
            self.admit()
        return super()._ask(method, path, **options)


# --- plan -----------------------------------------------------------------------------------------------


def plan(client: RunClient, runner: Runner, asked: Asked) -> int:
    """Say where the manifest of this checkout would train; waiting for machines is no failure."""
    file = Path(runner.get("GITHUB_WORKSPACE") or ".") / asked.manifest
    try:
        manifest = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{asked.manifest} cannot be read: {error}", hint="check the repository out before this step"
        ) from error
    answer = client.plan(manifest, dict(asked.overrides), asked.executors)
    runner.summary(plan_summary(answer, asked.manifest))
    runner.output("plan", json.dumps(answer))
    runner.output("state", "planned" if answer.get("plan") else "waiting")
    runner.group("TrainForge plan")
    runner.lines(json.dumps(answer, indent=2).splitlines())
    runner.end_group()
    return 0


# --- run ------------------------------------------------------------------------------------------------


def run(client: RunClient, runner: Runner, asked: Asked) -> int:
    """Have the run's commit trained; 0 when every job of it completed and met its gates."""
    given = client.admit()
    if not given["run"]:
        raise Forbidden("this workflow run may plan, and not train", hint="use `mode: plan` on pull requests")
    request = {
        "repository": given["repository"],
        "commit": given["commit"],
        "ref": given["ref"],
        "manifest_path": asked.manifest,
        "overrides": dict(asked.overrides),
        "executors": list(asked.executors),
        "rerun": is_rerun(runner),
    }
    return follow_to_end(client, runner, client.submit(request), asked, shown_at=client.url)


def is_rerun(runner: Runner) -> bool:
    """Whether somebody has asked for the run once more, which asks for the training once more."""
    attempt = runner.get("GITHUB_RUN_ATTEMPT")
    return attempt.isascii() and attempt.isdigit() and int(attempt) > 1


def follow_to_end(
    client: Client, runner: Runner, first: JobDetail, asked: Asked, *, shown_at: str = ""
) -> int:
    """Follow a job, or all of its matrix, and report; the exit code. `shown_at` is a sender's address."""
    jobs: list[JobSummary] = [first]
    if first.matrix:
        jobs = client.jobs(matrix=first.matrix, limit=1000)[::-1]
    runner.output("job-id", first.id)
    for job in jobs:
        link = f" at {shown_at}/jobs/{job.id}" if shown_at else ""
        runner.say(f"TrainForge: job {job.id}{link}")
    if not asked.wait:
        report(client, runner, [client.job(job.id) for job in jobs], shown_at)
        return 0
    deadline = time.monotonic() + asked.timeout
    ended: list[JobDetail] = []
    try:
        for job in jobs:
            ended.append(follow(client, runner, job.id, deadline))
    except (TimedOut, KeyboardInterrupt) as error:
        runner.end_group()
        left = [job.id for job in jobs[len(ended) :]]
        if asked.stop:
            why = error.message if isinstance(error, TimedOut) else cancelled(runner)
            stop_all(client, runner, left, why)
            linger(client, runner, left, asked.linger)
        details = [client.job(job) for job in left]
        for job in details if asked.stop else []:
            if job.state not in OUTCOMES:
                runner.say(f"TrainForge: job {job.id[:8]} is told to stop, not at its end: {unfinished(job)}")
        report(client, runner, [*ended, *details], shown_at)
        raise
    report(client, runner, ended, shown_at)
    return 0 if all(well(job) for job in ended) else 1


def well(job: JobDetail) -> bool:
    return job.state == "completed" and all(gate.passed for gate in job.gates)


def stop_all(client: Client, runner: Runner, jobs: Sequence[str], why: str) -> None:
    """As far as that is possible: the step ends in any case."""
    for job in jobs:
        try:
            client.stop(job, why)
        except TrainForgeError as error:
            runner.say(f"TrainForge: job {job[:8]} cannot be stopped: {error.message}")


def cancelled(runner: Runner) -> str:
    return "the workflow run was cancelled" if runner.inside else "interrupted by who ran it"


def linger(client: Client, runner: Runner, jobs: Sequence[str], seconds: float) -> None:
    """GitHub leaves a cancelled step some seconds, in which the jobs may still come to their end."""
    until = time.monotonic() + seconds
    with suppress(KeyboardInterrupt):  # as GitHub sends one before it kills
        runner.say(f"TrainForge: stopping, for at most {seconds:.0f} s; a second signal ends it at once")
        for job in jobs:
            while client.job(job).state not in OUTCOMES:
                if time.monotonic() > until:
                    return
                time.sleep(LOOK_AGAIN_S)


def unfinished(job: JobDetail) -> str:
    """What a job that was stopped still waits for."""
    nodes = job.attempts[-1].nodes if job.attempts else []
    busy = [f"{node.executor_name} ({node.phase or node.state})" for node in nodes if node.ended is None]
    return ", ".join([*busy, *sorted(set(job.waiting.values()))]) or "its result is not on its branch yet"


def follow(client: Client, runner: Runner, job: str, deadline: float) -> JobDetail:
    """Print a job's log in groups until it has ended.

    Raises:
        TimedOut: it has not by the deadline (monotonic). TrainForgeError: the sender refuses.
    """
    said = ""
    with _steady(runner) as steady:
        after, ended = 0, False
        while not ended:
            _check_time(deadline, job)
            wait = min(LOG_WAIT_S, max(0.0, deadline - time.monotonic()))
            lines, after, ended = steady(partial(client.logs, job, after=after, wait=wait))
            _print(runner, lines)
            if not lines and not ended:
                said = _say_waiting(runner, steady(lambda: client.job(job)), said)
        runner.end_group()
        while (detail := steady(lambda: client.job(job))).state not in OUTCOMES:
            _check_time(deadline, job)
            said = _say_waiting(runner, detail, said)
            time.sleep(LOOK_EVERY_S)
    return detail


def _check_time(deadline: float, job: str) -> None:
    if time.monotonic() >= deadline:
        raise TimedOut(f"job {job[:8]} has not ended in the time that the step has", hint="raise `timeout`")


@contextmanager
def _steady(runner: Runner) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Asks again for a while when the sender does not answer: it may be on its way back."""

    def ask(request: Callable[[], T]) -> T:
        begun = time.monotonic()
        told = False
        while True:
            try:
                return request()
            except Unreachable as error:
                if time.monotonic() - begun > PATIENCE_S:
                    raise
                if not told:
                    runner.say(f"TrainForge: {error.message}; trying again")
                    told = True
                time.sleep(PAUSE_S)

    yield ask


def _print(runner: Runner, lines: Sequence[LogLine]) -> None:
    """One group for what prepares an attempt and one for its training."""
    block: list[str] = []
    title = ""
    for line in lines:
        stage = "preparing" if line.stream == "setup" or line.rank < 0 else "training"
        wanted = f"{stage}, attempt {line.attempt}"
        if wanted != title:
            runner.lines(block)
            block, title = [], wanted
            runner.group(title)
        prefix = f"[{line.rank}] " if line.rank > 0 else ""
        block.append(prefix + line.text[:MAX_LINE])
    runner.lines(block)


def _say_waiting(runner: Runner, job: JobDetail, said: str) -> str:
    words = "; ".join(sorted(set(job.waiting.values())))
    now = f"{job.state}: {words}" if words else str(job.state)
    if now != said:
        runner.say(f"TrainForge: job {job.id[:8]} {now}")
    return now


# --- report ---------------------------------------------------------------------------------------------


def report(client: Client, runner: Runner, jobs: Sequence[JobDetail], shown_at: str) -> None:
    """Outputs of the first job, `jobs` for all of a matrix; a summary and what went wrong of each."""
    first = jobs[0]
    runner.output("state", first.state)
    runner.output("metrics", json.dumps(first.metrics))
    runner.output("gates", json.dumps([gate.model_dump() for gate in first.gates]))
    runner.output("result-branch", first.result_branch)
    runner.output("result-path", first.result_path if first.result_commit else "")
    runner.output("result-commit", first.result_commit)
    told = [
        {"id": job.id, "state": job.state, "parameters": job.cell, "metrics": job.metrics} for job in jobs
    ]
    runner.output("jobs", json.dumps(told))
    for job in jobs:
        points = client.metrics(job.id) if job.state in OUTCOMES else []
        runner.summary(summary(job, points, links(runner, job, shown_at)) + "\n")
        if job.state in OUTCOMES and not well(job):
            runner.error(f"job {job.id[:8]} {state_words(job)}. {job.reason}".strip())
        runner.say(f"TrainForge: job {job.id[:8]} {job.state} {json.dumps(job.metrics)}")
        if job.result_commit:
            runner.say(f"TrainForge: its result is on {job.result_branch} in {job.result_path}")
        for gate in job.gates:
            runner.say(f"TrainForge: gate {'met' if gate.passed else 'missed'}: {gate.words}")


def links(runner: Runner, job: JobDetail, shown_at: str) -> dict[str, str]:
    found = {"job": f"{shown_at}/jobs/{job.id}"} if shown_at else {}
    server, repository = runner.get("GITHUB_SERVER_URL"), runner.get("GITHUB_REPOSITORY")
    if job.result_commit and server.startswith("https://") and repository:
        where = quote(f"{repository}/tree/{job.result_branch}/{job.result_path}")
        found["result"] = f"{server}/{where}"
    return found


def annotate(runner: Runner, error: TrainForgeError, manifest: str = "") -> None:
    """What was refused, as annotations of the run; those of a manifest at their lines."""
    problems = error.problems if isinstance(error, ManifestError) else [error]
    for problem in problems:
        words = problem.message + (f"; {problem.hint}" if problem.hint else "")
        place = _PLACE.match(str(problem.place or ""))
        if place is None:
            runner.error(f"{problem.place}: {words}" if problem.place else words)
        else:
            file = manifest if place[1] == MANIFEST and manifest else place[1]
            runner.error(words, file, int(place[2]))
