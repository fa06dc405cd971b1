"""One sender for one repository: who works for it stands on its branch `trainforge/meta`.

The branch is changed by compare-and-swap alone, and lies outside any backup of the sender's database. So a
second sender finds the first one there and only reads; and a sender whose database is an older copy finds
a later note of its own there: what it gave out since is unknown, so its incarnation goes up. Where this
sender may not push, nothing is noted, and it works all the same: a job's result is still published once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainforge.config.errors import Conflict
from trainforge.config.failpoints import failpoint
from trainforge.config.result import moment
from trainforge.hooks.branch_files import read_file, swap_files
from trainforge.hooks.gitrun import GitError, GitRejected, GitUnreachable
from trainforge.hooks.triggers import BRANCH, META_BRANCH
from trainforge.sender.context import Sender

if TYPE_CHECKING:
    from trainforge.sender.events import Place

log = logging.getLogger(__name__)
REF = f"{BRANCH}{META_BRANCH}"
FILE = "sender.json"


def settle(sender: Sender, place: Place, refs: Mapping[str, str]) -> None:
    """See that this sender is the one that works for the repository, and say so there once per start.

    Raises:
        Conflict: another one does. GitUnreachable: the remote cannot be asked now.
    """
    at, mine = refs.get(REF), sender.led.get(place.repo.id)
    if place.builtin or (mine is not None and mine == (at or "")):
        return
    said = _read(sender, place) if at else {}
    if said and said["sender"] != sender.id:
        sender.led.pop(place.repo.id, None)
        sender.led_by_others[place.repo.id] = (
            f"another sender ({said['sender'][:12]}, {said['url']}) works for {place.repo.name} since "
            f"{moment(float(said['since']))}, so this one only reads it"
        )
        refuse_others(sender, place)
    if said and at not in {sender.store.get_meta(_key(place)), sender.store.get_meta(_key(place, "next"))}:
        log.warning("%s was worked for with a later database than this one", place.repo.name)
        if sender.fence is not None:
            sender.fence.raise_above(int(said["incarnation"]))
    _note(sender, place, at)


def refuse_others(sender: Sender, place: Place) -> None:
    """Raises Conflict where another sender is known to work for the repository."""
    if words := sender.led_by_others.get(place.repo.id):
        hint = f"`trainforge sender watch {place.url} --take-over` has this one work for it"
        raise Conflict(words, hint=hint)


def take_over(sender: Sender, place: Place) -> None:
    """Work for the repository from now on, whoever did before. Raises GitError."""
    if not place.builtin:
        _note(sender, place, place.refs().get(REF))


def _read(sender: Sender, place: Place) -> dict[str, Any]:
    data = read_file(
        _mirror(sender, place), place.url, META_BRANCH, FILE,
        credential=place.credential, allow_file=place.local,
    )  # fmt: skip
    try:
        said = json.loads(data or b"")
        return {name: said[name] for name in ("sender", "url", "since", "incarnation")}
    except (ValueError, KeyError, TypeError):
        return {}


def _note(sender: Sender, place: Place, at: str | None) -> None:
    about = {
        "sender": sender.id, "url": sender.base_url, "since": sender.now(),
        "incarnation": sender.fence.incarnation if sender.fence else 1,
    }  # fmt: skip
    noted: list[str] = []

    def note(commit: str) -> None:
        """Before the push: a hook of the remote may have this very sender look while that goes on."""
        noted.append(commit)
        sender.store.set_meta(_key(place, "next"), commit)
        sender.led[place.repo.id] = commit

    try:
        commit = swap_files(
            _mirror(sender, place), place.url, META_BRANCH, at,
            {FILE: json.dumps(about, indent=2).encode() + b"\n"},
            message="Note which TrainForge sender works for this repository\n\n[skip ci]\n",
            credential=place.credential, allow_file=place.local,
            before_push=note,
        )  # fmt: skip
    except (GitRejected, GitUnreachable):  # somebody else was faster, or nobody answers
        if sender.led.get(place.repo.id) in noted:
            del sender.led[place.repo.id]  # the next look tells
        raise
    except GitError as error:
        log.info("that this sender works for %s cannot be noted there: %s", place.repo.name, error.message)
        sender.led[place.repo.id] = at or ""
        return
    failpoint("43.sender.meta_ref")
    sender.store.set_meta(_key(place), commit)
    sender.led[place.repo.id] = commit
    sender.led_by_others.pop(place.repo.id, None)


def _mirror(sender: Sender, place: Place) -> Path:
    return sender.mirrors / f"meta-{place.mirror.name}"


def _key(place: Place, part: str = "at") -> str:
    return f"leading.{part}:{place.repo.id}"
