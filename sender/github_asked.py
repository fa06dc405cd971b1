"""Does what comments, buttons and re-runs on GitHub ask for. For worker threads.

Who asks must be able to push to the repository, which the API is asked each time. A fork's commit runs only
when its whole id is named: who names it has seen it, and what the fork pushes next is another commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import RowMapping

from trainforge.config.errors import Conflict, NotFound, TrainForgeError, Unreachable
from trainforge.config.manifest import RESULTS_BRANCH
from trainforge.config.messages import OUTCOMES
from trainforge.hooks import git, triggers
from trainforge.hooks.github_calls import Calls, PullFacts, Reaction
from trainforge.hooks.github_commands import Command, parse_command
from trainforge.hooks.github_text import code
from trainforge.hooks.reachable import approve, approved_ref
from trainforge.sender import events
from trainforge.sender.context import Sender
from trainforge.sender.drafts import ManifestFile, read_commit
from trainforge.sender.github_plans import plan_pull, pull_ref
from trainforge.sender.github_reports import is_green, is_told
from trainforge.sender.notify import EVENTS, JOBS, job_key
from trainforge.sender.store_commands import SUITE, Asked
from trainforge.sender.store_events import NewEvent
from trainforge.sender.store_github import Connection
from trainforge.sender.store_reports import Pull

log = logging.getLogger(__name__)
SOURCE = "github"
MOST_JOBS = 50


@dataclass(frozen=True)
class Answer:
    reaction: Reaction
    words: str = ""  # Markdown


@dataclass(frozen=True)
class Order:
    """A command together with what it is about, read from the API just now."""

    asked: Asked
    command: Command
    pull: PullFacts

    @property
    def actor(self) -> str:
        return f"github:{self.asked.author}"


def act(sender: Sender, connection: Connection, calls: Calls, asked: Asked) -> Answer:
    """Do it, or say why not. Doing it again after a crash makes nothing twice.

    Raises:
        Unreachable: not now. GitHubForbids, NotTrusted: the connection may not ask who may do what.
    """
    if not calls.may_write(asked.author):
        return Answer("-1")  # seen and refused; a stranger is given no way to have this write at length
    try:
        return _suite(sender, asked) if asked.kind == SUITE else _obey(sender, calls, asked)
    except Unreachable:
        raise
    except TrainForgeError as error:
        hint = f"\n\n{code(error.hint, 300)}" if error.hint else ""
        return Answer("confused", f"{code(error.message, 600)}{hint}")


def _obey(sender: Sender, calls: Calls, asked: Asked) -> Answer:
    command = parse_command(asked.words)
    if command.problem or command.verb is None:
        return Answer("confused", command.problem)
    if asked.job:
        return _button(sender, asked, command)
    if asked.number is None:
        return Answer("confused")
    pull = calls.pull(asked.number)
    note_pull(sender, asked.repository_id, pull)
    if not pull.open and command.verb != "stop":
        return Answer("confused", "this pull request is not open")
    return _VERBS[command.verb](sender, Order(asked, command, pull))


def note_pull(sender: Sender, repository_id: str, pull: PullFacts) -> None:
    row = Pull(
        repository_id, pull.number, head_sha=pull.head_sha, head_ref=pull.head_ref, base_ref=pull.base_ref,
        base_sha=pull.base_sha, fork=pull.fork, open=pull.open,
    )  # fmt: skip
    sender.store.put_pull(row, sender.now())


# --- buttons ----------------------------------------------------------------------------------------------


def _button(sender: Sender, asked: Asked, command: Command) -> Answer:
    row = sender.store.job(asked.job)
    if row["repository_id"] != asked.repository_id:
        raise NotFound("this job is of another repository")
    if command.verb == "stop":
        _stop(sender, row, asked)
    else:
        _again(sender, row, asked)
    return Answer("+1")


def _stop(sender: Sender, row: RowMapping, asked: Asked) -> None:
    reason, actor = f"stopped by {asked.author} on GitHub", f"github:{asked.author}"
    sender.store.request_stop(row["id"], "stopped", reason, sender.now(), actor)
    sender.wake(row["id"])
    sender.bell.ring(job_key(row["id"]), JOBS)


def _again(sender: Sender, row: RowMapping, asked: Asked) -> str:
    """The job that does the same; the same one, however often this is asked by one comment."""
    again = events.retry_job(sender, row["id"], SOURCE, rerun=f"{row['id']}:{asked.origin}")
    actor = f"github:{asked.author}"
    sender.store.audit(actor, "job.retried", row["id"], {"as": again}, now=sender.now())
    return again


# --- all checks of a commit ------------------------------------------------------------------------------


def _suite(sender: Sender, asked: Asked) -> Answer:
    """Runs those jobs of a commit again that have a check run and have ended: what failed, else all."""
    jobs = [row for row in sender.store.jobs_at(asked.repository_id, asked.words) if is_told(row)]
    ended = _newest_ended(jobs)
    chosen = [row for row in ended if not is_green(row)] or ended
    for row in chosen[:MOST_JOBS]:
        _again(sender, row, asked)
    if not chosen:
        repo = sender.store.repository(asked.repository_id)
        words = f"{asked.author} asked for all checks again, and no job of this commit has ended"
        nothing = NewEvent(SOURCE, repo.id, repo.name, "ignored", words, new=asked.words)
        sender.store.record_event(nothing, sender.now())
        sender.bell.ring(EVENTS)
    return Answer("+1")


def _newest_ended(jobs: Sequence[RowMapping]) -> list[RowMapping]:
    """The newest job of each manifest and cell, where it has ended."""
    newest = {(row["manifest_path"], str(row["cell"])): row for row in jobs}
    return [row for row in newest.values() if row["state"] in OUTCOMES]


# --- comments ---------------------------------------------------------------------------------------------


def _plan(sender: Sender, order: Order) -> Answer:
    where = (order.asked.repository_id, order.pull.number)
    sender.store.change_pull(*where, planned="", asked=True)
    return Answer("+1")


def _run(sender: Sender, order: Order) -> Answer:
    pull, named = order.pull, order.command.commit
    if pull.fork and not named:
        return Answer(
            "confused",
            "This comes from a fork: what runs has to be named, once you have read it.\n\n"
            f"```\n/trainforge run {pull.head_sha}\n```",
        )
    if named and named != pull.head_sha:
        return Answer(
            "confused", f"The head of this pull request is `{pull.head_sha}` now; look at it again."
        )
    row = sender.store.pull(order.asked.repository_id, pull.number)
    assert row is not None  # noqa: S101 - noted just now
    paths = _wanted(sender, row)
    ref = f"{triggers.BRANCH}{pull.head_ref}"
    if pull.fork:
        ref = _approve(sender, row, paths, order)
    for path in paths:
        events.request_job(
            sender, row["repository_id"], pull.head_sha, manifest_path=path, ref=ref, source=SOURCE
        )
    sender.bell.ring(JOBS)
    return Answer("rocket")


def _wanted(sender: Sender, pull: RowMapping) -> Sequence[str]:
    """The manifests that differ from the base; where none does, all there are.

    Raises:
        NotFound: there are none.
    """
    plan, _ = plan_pull(sender, pull)
    paths = [manifest.path for manifest in plan.manifests]
    paths = paths or [file.path for file in _files(sender, pull)]
    if not paths:
        raise NotFound(f"there is no {triggers.MANIFEST} at {pull['head_sha'][:12]}")
    return paths[:MOST_JOBS]


def _files(sender: Sender, pull: RowMapping) -> list[ManifestFile]:
    place = events.place_of(sender, sender.store.repository(pull["repository_id"]))
    return read_commit(place.mirror, pull["head_sha"])[1]


def _approve(sender: Sender, pull: RowMapping, paths: Sequence[str], order: Order) -> str:
    """Put the commit where only who may push can put one; executors take it from there.

    Raises:
        Conflict: its results would go elsewhere than this repository's do. GitError: as git says.
    """
    known = {RESULTS_BRANCH, *sender.store.results_branches(pull["repository_id"])}
    for file in _files(sender, pull):
        own = file.manifest.results.branch if file.manifest is not None else RESULTS_BRANCH
        if file.path in paths and own not in known:
            raise Conflict(
                f"{file.path} of the fork names {own} as its results branch",
                hint="results of forks go where this repository's own go",
            )
    place = events.place_of(sender, sender.store.repository(pull["repository_id"]))
    head = git.fetch_ref(
        place.mirror, place.url, pull_ref(pull["number"]), credential=place.credential, allow_file=place.local
    )
    if head != order.pull.head_sha:
        raise Conflict("the pull request has moved on meanwhile", hint="look at it again")
    approve(place.mirror, place.url, head, credential=place.credential, allow_file=place.local)
    said = {"commit": head, "pull": pull["number"]}
    sender.store.audit(order.actor, "github.fork_approved", pull["repository_id"], said, now=sender.now())
    return approved_ref(head)


def _stop_all(sender: Sender, order: Order) -> Answer:
    jobs = sender.store.jobs_at(order.asked.repository_id, order.pull.head_sha)
    running = [row for row in jobs if row["state"] not in OUTCOMES and row["ending"] is None]
    for row in running:
        _stop(sender, row, order.asked)
    return Answer("+1") if running else Answer("confused", "no job of this pull request is under way")


def _retry_all(sender: Sender, order: Order) -> Answer:
    """A fork's commit was approved for what ran before."""
    ended = _newest_ended(sender.store.jobs_at(order.asked.repository_id, order.pull.head_sha))
    for row in ended[:MOST_JOBS]:
        _again(sender, row, order.asked)
    return Answer("rocket") if ended else Answer("confused", "no job of this pull request has ended")


_VERBS: dict[str, Callable[[Sender, Order], Answer]] = {
    "plan": _plan,
    "run": _run,
    "stop": _stop_all,
    "retry": _retry_all,
}
