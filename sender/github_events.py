"""What GitHub's deliveries lead to, beside pushes: written down before they are answered, acted on later.

`webhooks.py` hands over what it has authenticated and read. A delivery may come again after a crash, so
noting the same one twice must change nothing.
"""

from __future__ import annotations

from trainforge.hooks.github_commands import find_command
from trainforge.hooks.github_deliveries import CheckRun, CheckSuite, Comment, Delivery, PullRequest
from trainforge.hooks.github_report import RETRY, STOP
from trainforge.sender.context import Sender
from trainforge.sender.notify import GITHUB
from trainforge.sender.store_commands import BUTTON, COMMENT, SUITE, Asked
from trainforge.sender.store_events import Repo
from trainforge.sender.store_reports import Pull

IGNORED = "nothing follows from this event"


def note(sender: Sender, repo: Repo, delivery: Delivery) -> str:
    """Write down what a delivery asks for, in a worker thread, before GitHub is answered.

    Quick, without network; whatever it takes long is done by the loops that look at what is written here.
    Gives words on what follows (`IGNORED` for nothing).
    """
    about = delivery.about
    if sender.store.connection(repo.id) is None:
        return IGNORED  # nobody could be asked or told
    match about:
        case PullRequest():
            pull = Pull(
                repo.id, about.number, head_sha=about.head_sha, head_ref=about.head_ref,
                base_ref=about.base_ref, base_sha=about.base_sha, fork=about.fork, open=about.open,
            )  # fmt: skip
            sender.store.hint_pull(pull, sender.now())
            words = f"pull request {about.number} is looked at"
        case Comment(action="created", pull=True, bot=False):
            words = _command(sender, repo, about)
        case CheckRun(action="rerequested" | "requested_action"):
            words = _button(sender, repo, about, delivery)
        case CheckSuite(action="rerequested"):
            words = _suite(sender, repo, about, delivery)
        case _:
            words = IGNORED
    if words != IGNORED:
        sender.bell.ring(GITHUB)
    return words


def _command(sender: Sender, repo: Repo, said: Comment) -> str:
    line = find_command(said.body)
    if not line or not said.author:
        return IGNORED
    asked = Asked(
        repo.id, f"{COMMENT}:{said.comment}", said.author, line, comment_id=said.comment, number=said.number
    )
    if sender.store.add_command(asked, sender.now()):
        return f"{line[:80]} is noted"
    return "this command is known, or there are too many"


def _button(sender: Sender, repo: Repo, run: CheckRun, delivery: Delivery) -> str:
    """Of our App's own check runs alone; another App's may bear any id."""
    verb = RETRY if run.action == "rerequested" else run.identifier
    if verb not in {STOP, RETRY} or not run.external_id or not _is_ours(sender, repo, run.app, delivery):
        return IGNORED
    origin = f"{BUTTON}:{delivery.id}"
    asked = Asked(repo.id, origin, delivery.sender, f"/trainforge {verb}", job=run.external_id)
    sender.store.add_command(asked, sender.now())
    return f"{verb} of job {run.external_id[:8]} is noted"


def _suite(sender: Sender, repo: Repo, suite: CheckSuite, delivery: Delivery) -> str:
    """GitHub's "Re-run all checks"."""
    if not _is_ours(sender, repo, suite.app, delivery):
        return IGNORED
    asked = Asked(repo.id, f"{SUITE}:{delivery.id}", delivery.sender, suite.head_sha)
    sender.store.add_command(asked, sender.now())
    return f"all checks of {suite.head_sha[:10]} again is noted"


def _is_ours(sender: Sender, repo: Repo, app: int | None, delivery: Delivery) -> bool:
    """Whether a check is of the App that the repository is connected by, and somebody asks for something."""
    connection = sender.store.connection(repo.id)
    return connection is not None and app is not None and app == connection.app_id and bool(delivery.sender)
