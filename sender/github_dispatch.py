"""What is started from outside at GitHub: `repository_dispatch`, and workflows that somebody starts by hand.

GitHub tells Apps alone of both, and takes a `repository_dispatch` only of who may write to the repository:
that is what lets it start a job. What is signed by another secret than the App's starts none.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from trainforge.config.errors import Conflict, ManifestError, NotFound, TrainForgeError, Unreachable
from trainforge.config.manifest import RESULTS_BRANCH
from trainforge.hooks import triggers
from trainforge.hooks.addresses import AddressRefused, validate_ref
from trainforge.hooks.github_deliveries import Delivery, RepositoryDispatch, WorkflowDispatch
from trainforge.hooks.github_dispatch import EVENT_TYPE, TrainRequest, read_request
from trainforge.hooks.github_text import flat
from trainforge.sender import events
from trainforge.sender.context import Sender
from trainforge.sender.github_hooks import Source
from trainforge.sender.notify import EVENTS, GITHUB
from trainforge.sender.store_commands import DISPATCH, Asked
from trainforge.sender.store_events import REPOSITORY_DISPATCH, NewEvent, NewJob, Repo

log = logging.getLogger(__name__)
LONGEST = 600  # characters of a reason
MOST_PROBLEMS = 3
NOT_BY_APP = (
    "it did not come by the App that the repository is connected by, and GitHub tells Apps alone of this"
)
TOO_MANY = "it is noted already, or too many requests of this repository wait"


def note(sender: Sender, source: Source, repo: Repo, delivery: Delivery) -> tuple[str, str]:
    """Write down what a delivery asks for, in a worker thread, before GitHub is answered; how it is answered.

    What starts nothing is an event at once, what may start a job becomes one by `start`.
    """
    about = delivery.about
    event = NewEvent(delivery.event, repo.id, repo.name, "ignored")
    if isinstance(about, WorkflowDispatch):
        return _nothing(sender, _by_hand(event, about, delivery.sender))
    assert isinstance(about, RepositoryDispatch)  # noqa: S101 - nothing else is handed over
    if about.event_type != EVENT_TYPE:
        words = f"the event type is {flat(about.event_type, 100)}; {EVENT_TYPE} alone starts a job"
        return _nothing(sender, replace(event, reason=words))
    event = replace(event, decision="refused")
    if source.app is None:
        return _nothing(sender, replace(event, reason=NOT_BY_APP))
    try:
        request = read_request(about.payload, about.branch)
    except TrainForgeError as error:
        return _nothing(sender, replace(event, reason=str(error)))
    asked = Asked(repo.id, f"{DISPATCH}:{delivery.id}", delivery.sender, request.model_dump_json())
    if not sender.store.add_command(asked, sender.now()):
        return _nothing(sender, replace(event, reason=TOO_MANY, ref=request.ref))
    sender.bell.ring(GITHUB)
    return "accepted", f"{flat(request.manifest, 200)} at {flat(request.commit or request.ref, 200)} is noted"


def _by_hand(event: NewEvent, about: WorkflowDispatch, login: str) -> NewEvent:
    ref = ""
    with contextlib.suppress(AddressRefused):
        ref = validate_ref(about.ref)
    who = f" by {flat(login, 60)}" if login else ""
    words = (
        f"{flat(about.workflow, 200)} was started by hand{who}; a workflow trains by itself, with the action"
    )
    return replace(event, ref=ref, reason=words)


def _nothing(sender: Sender, event: NewEvent) -> tuple[str, str]:
    sender.store.record_event(event, sender.now())
    sender.bell.ring(EVENTS)
    return "ignored", event.reason


def start(sender: Sender, asked: Asked) -> None:
    """Make the jobs that a `repository_dispatch` asks for, or an event that says why there are none.

    By the rules for a job that a person submits: `on.push` is not asked, the commit has to be on a branch or
    tag of the repository itself. Written together with that it was done, so done once.

    Raises:
        Unreachable: not now.
    """
    request = TrainRequest.model_validate_json(asked.words)
    repo = sender.store.repository(asked.repository_id)
    jobs: list[NewJob] = []
    try:
        event, jobs = _draft(sender, repo, request, asked)
    except Unreachable:
        raise
    except TrainForgeError as error:
        event = NewEvent(
            REPOSITORY_DISPATCH, repo.id, repo.name, "refused", _words(error), request.ref,
            new=request.commit or "",
        )  # fmt: skip
    if sender.store.record_asked(asked, event, jobs, sender.now()):
        log.info("repository_dispatch by %s: %s", flat(asked.author, 60), event.reason)
        events.announce(sender, jobs)


def _draft(sender: Sender, repo: Repo, request: TrainRequest, asked: Asked) -> tuple[NewEvent, list[NewJob]]:
    sender.disk.refuse_when_low()
    if words := events.too_often(sender, repo):
        raise Conflict(words)
    commit = request.commit or ""
    if request.ref:
        head = _head(sender, repo, request.ref)
        commit = commit or head
    event, jobs = events.draft_jobs(
        sender, repo.id, commit, manifest_path=request.manifest, ref=request.ref, overrides=request.set,
        executors=request.executors, rerun=asked.origin if request.rerun else "", source=REPOSITORY_DISPATCH,
    )  # fmt: skip
    known = {row["id"] for row in sender.store.jobs_at(repo.id, commit)}
    if known.issuperset(job.id for job in jobs):
        words = f"job {jobs[0].id[:8]} is the same; `rerun` trains it again"
        return replace(event, decision="ignored", reason=words), []
    return replace(event, reason=f"asked for by {flat(asked.author, 60)}"), jobs


def _head(sender: Sender, repo: Repo, ref: str) -> str:
    """Where a branch or tag is now. Raises Conflict for one that never starts jobs, NotFound for none."""
    results = {RESULTS_BRANCH, *sender.store.results_branches(repo.id)}
    if why_not := triggers.ignored_ref(ref, results):
        raise Conflict(f"nothing is trained from {ref}: {why_not}")
    commit = events.place_of(sender, repo).refs().get(ref)
    if commit is None:
        raise NotFound(f"{repo.name} has no {ref}", hint="push it first")
    return commit


def _words(error: TrainForgeError) -> str:
    problems = error.problems[:MOST_PROBLEMS] if isinstance(error, ManifestError) else [error]
    return flat("; ".join(map(str, problems)), LONGEST)
