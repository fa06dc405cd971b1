"""Outgoing notifications: how jobs ended, that they recovered, or wait for long; each told once.

What is to be told is written down before it is sent, one row for each job, occasion and target, and sent
until that succeeds: at least once, and not again after a restart. A manifest names targets; where they are
is the sender's settings' to say, so that no commit can have the sender call an address of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence

from sqlalchemy.engine import RowMapping

from trainforge.config.manifest import Manifest
from trainforge.sender import publisher, text
from trainforge.sender.context import Sender
from trainforge.sender.notify import JOBS
from trainforge.sender.store_notices import Due, Notice

log = logging.getLogger(__name__)
LOOK_EVERY_S = 10.0
FIRST_REST_S, LONGEST_REST_S = 15.0, 3600.0
GIVE_UP_AFTER_S = 86_400.0
LONGEST = 500
_WORDS = {
    "completed": "completed",
    "failed": "failed",
    "cancelled": "was cancelled",
    "recovered": "works again",
    "waiting": "still waits for machines",
}


async def run(sender: Sender) -> None:
    """Until the sender stops."""
    if not sender.settings.notify:
        await sender.bell.wait("end", LONGEST_REST_S)
        return
    teller = Teller(sender)
    await asyncio.to_thread(teller.begin)
    while not sender.stopping:
        with sender.bell.listen(JOBS) as listener:
            await asyncio.to_thread(teller.look)
            await listener.wait(LOOK_EVERY_S)


class Teller:
    """Everything here runs in a worker thread."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._told_to_wait: set[str] = set()

    def begin(self) -> None:
        """What ended before anybody was to be told stays untold."""
        self._sender.store.begin_notices(self._sender.now())

    def look(self) -> None:
        """Note what is to be told now, and send what is due."""
        sender, now = self._sender, self._sender.now()
        sender.store.begin_notices(now)  # also follows a clock that was set back
        for row, recovered in sender.store.ended_untold(now):
            kind = "recovered" if recovered and row["state"] == "completed" else row["state"]
            self._note(row, "end", kind, now)
        sender.store.told_until(now)
        overdue = sender.store.waiting_since(now - sender.settings.notify_waiting_after)
        for row in overdue:
            if row["id"] not in self._told_to_wait:
                self._note(row, "waiting", "waiting", now)
        self._told_to_wait = {row["id"] for row in overdue}
        for due in sender.store.due_notices(now):
            if sender.stopping:
                return
            self._send(due)

    def _note(self, row: RowMapping, occasion: str, kind: str, now: float) -> None:
        manifest = publisher.manifest_of(row)
        known = self._sender.settings.notify
        wanted = list(wanted_targets(manifest, kind)) if manifest is not None else []
        wanted += [name for name, target in known.items() if target.always and told_of(kind, target.on)]
        for name in dict.fromkeys(wanted):
            problem = "" if name in known else "this sender's settings have no such target under notify"
            self._sender.store.add_notice(Notice(row["id"], occasion, name, kind, problem), now)

    def _send(self, due: Due) -> None:
        sender = self._sender
        target = sender.settings.notify.get(due.notice.target)
        now = sender.now()
        if target is None:
            sender.store.give_up_notice(due.notice, "the target is no longer in the settings")
            return
        title, body = words_of(due, sender.base_url)
        if deliver(target.url.get_secret_value(), title, body):
            sender.store.sent_notice(due.notice, now)
        elif now - due.created > GIVE_UP_AFTER_S:
            sender.store.give_up_notice(due.notice, f"{due.notice.target} could not be reached for a day")
        else:
            rest = min(FIRST_REST_S * 2.0**due.tries, LONGEST_REST_S)
            log.warning("%s could not be told of job %s yet", due.notice.target, due.notice.job)
            sender.store.rest_notice(due.notice, now + rest)


def wanted_targets(manifest: Manifest, kind: str) -> Iterator[str]:
    for entry in manifest.notify:
        if told_of(kind, entry.on):
            yield entry.to


def told_of(kind: str, on: Sequence[str]) -> bool:
    """Who is told of completions is told of a recovery too: it is one."""
    return kind in on or (kind == "recovered" and "completed" in on)


def words_of(due: Due, base_url: str) -> tuple[str, str]:
    """Title and text."""
    project = due.project or "A job"
    title = f"{project} {_WORDS[due.notice.kind]}"
    by = f" by {due.author}" if due.author else ""
    lines = [f"Job {due.notice.job[:8]} of {due.repository}", f"{due.commit[:10]} {due.subject}{by}"]
    if due.reason and due.notice.kind in {"failed", "cancelled"}:
        lines.append(f"{due.code}: {due.reason}" if due.code else due.reason)
    lines.append(f"{base_url}/jobs/{due.notice.job}")
    return text.plain(title)[:LONGEST], "\n".join(text.plain(line)[:LONGEST] for line in lines)


def deliver(url: str, title: str, body: str) -> bool:
    """Whether it was taken there. Nothing of this says the URL, which may hold a password."""
    import apprise  # noqa: PLC0415 - hundreds of services, of which a sender without targets needs none

    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    service = apprise.Apprise()
    if not service.add(url):
        return False
    return bool(service.notify(title=title, body=body, body_format=apprise.NotifyFormat.TEXT))
