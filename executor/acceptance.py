"""Asking the machine's owner whether it may run a job: on the terminal, by `trainforge executor accept`, or
through the sender.

A node that waits for an answer has `asked.json` in its folder, an answered one `answer` too. Whoever answers
writes that file, so that any shell on the machine can, and a restarted executor still knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainforge.config.errors import Conflict, Forbidden, NodeFailed, NotFound
from trainforge.config.failpoints import failpoint
from trainforge.config.manifest import Manifest
from trainforge.config.messages import OWNER_ASKED, AnswerOrder, NodeKey, RunOrder
from trainforge.config.policy import Asked, Policy, asked_of, refusal
from trainforge.executor.commands import Setup
from trainforge.executor.orders import OrderBook
from trainforge.executor.supervisor import write_atomically

ASKED, ANSWER = "asked.json", "answer"
LOOK_S = 0.2
_terminal = threading.Lock()  # one question at a time


class OrderRefused(Forbidden):
    """An order that this machine will never take; the sender is told so."""

    def __init__(self, order: str, why: Forbidden) -> None:
        super().__init__(why.message, hint=why.hint, code=why.code)
        self.order = order


@dataclass(frozen=True)
class Acceptance:
    """Whether this executor asks (`ask`), for how long, whom the sender is told about, and its rules.

    With `here`, only who is at this machine may answer, and not who is at the sender.
    """

    ask: bool
    timeout: float
    name: str
    policy: Policy | None = None
    here: bool = False

    @property
    def asking(self) -> str:
        """What the sender is told meanwhile."""
        return f"{OWNER_ASKED}, on that machine" if self.here else OWNER_ASKED

    def hear(self, folder: Path, said: AnswerOrder) -> None:
        """Take an answer that came through the sender, unless there is one, or it does not count here."""
        if not self.here and waits(folder):
            _write(folder, yes=said.accept)

    def check_order(self, order: RunOrder) -> None:
        """What can be told before anything is fetched.

        Raises:
            Forbidden: a rule of the policy forbids it.
        """
        asked = Asked(repository=order.repository.id, url=order.repository.url, ref=order.ref)
        if why := refusal(self.policy, asked):
            raise Forbidden(why, hint="ask the machine's owner", code="policy_refused")

    def check_manifest(self, manifest: Manifest, order: RunOrder) -> None:
        """Raises NodeFailed when a rule of the policy forbids what the manifest asks for."""
        asked = asked_of(
            manifest,
            repository=order.repository.id,
            url=order.repository.url,
            ref=order.ref,
            gpus=len(order.gpus),
            nodes=order.nodes,
        )
        if why := refusal(self.policy, asked):
            raise NodeFailed(f"{self.name}: {why}", code="policy_refused")

    def settle(self, folder: Path, order: RunOrder, node: NodeKey, setup: Setup) -> None:
        """Return once the job may run here.

        Raises:
            NodeFailed: somebody said no, or nobody said anything in time. Interrupted: the job is stopped.
        """
        asked = folder / ASKED
        if not asked.exists():
            write_atomically(asked, _facts(order, node) | {"until": time.time() + self.timeout})
        until = float(json.loads(asked.read_text())["until"])
        while not (said := _answer(folder)) and time.time() < until:
            setup.check()
            _ask_on_the_terminal(folder, until, setup)
        if said != "accept":
            failpoint("19.executor.refuses")
            why = (
                "its owner rejected it" if said else f"its owner did not accept it within {self.timeout:g} s"
            )
            raise NodeFailed(f"{self.name}: {why}", code="policy_refused")


def _facts(order: RunOrder, node: NodeKey) -> dict[str, Any]:
    return {
        "job": node.job, "project": order.project, "repository": order.repository.url, "ref": order.ref,
        "commit": order.commit, "nodes": order.nodes, "processes": order.processes_per_node,
    }  # fmt: skip


def waits(folder: Path) -> bool:
    """Whether a node waits for its owner's answer."""
    return (folder / ASKED).exists() and not _answer(folder)


def answer(data_dir: Path, job: str, *, yes: bool) -> str:
    """Answer for the waiting nodes of the one job that begins so; returns its id.

    Raises:
        NotFound: no such job waits here. Conflict: several do.
    """
    book = OrderBook(data_dir)
    waiting = [key for key in book.known() if key.job.startswith(job) and waits(book.folder(key))]
    if not waiting:
        raise NotFound(
            f"no job {job} waits for an answer here", hint="`trainforge executor status` lists jobs"
        )
    if len({key.job for key in waiting}) > 1:
        raise Conflict(f"several waiting jobs begin with {job}", hint="give more of its id")
    for key in waiting:
        _write(book.folder(key), yes=yes)
    return waiting[0].job


def _answer(folder: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return (folder / ANSWER).read_text().strip()
    return ""


def _write(folder: Path, *, yes: bool) -> None:
    aside = folder / f".{ANSWER}"
    aside.write_text("accept" if yes else "reject")
    aside.replace(folder / ANSWER)


# --- the terminal ---------------------------------------------------------------------------------------


def _ask_on_the_terminal(folder: Path, until: float, setup: Setup) -> None:
    """Ask until there is an answer or no time left; without a terminal, or behind another question, wait."""
    if not _has_terminal() or not _terminal.acquire(blocking=False):
        time.sleep(LOOK_S)
        return
    try:
        _say(question(json.loads((folder / ASKED).read_text()), until - time.time()))
        while not _answer(folder) and time.time() < until:
            setup.check()
            if select.select([sys.stdin], [], [], LOOK_S)[0]:
                line = sys.stdin.readline()
                if line.strip().lower() in {"y", "yes", "n", "no"}:
                    _write(folder, yes=line.strip().lower().startswith("y"))
                elif line:
                    _say("yes or no? ")
                else:  # the end of input: only the command can answer now
                    time.sleep(LOOK_S)
    finally:
        _terminal.release()


def _has_terminal() -> bool:
    try:
        return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (AttributeError, OSError, ValueError):  # closed, or none at all
        return False


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def question(facts: dict[str, Any], seconds: float) -> str:
    """What the owner is asked; the words come from others, so that nothing in them may steer the terminal."""
    clean = {key: "".join(c for c in str(value) if c.isprintable()) for key, value in facts.items()}
    return (
        f"\nJob {clean['job'][:8]} of {clean['project']} wants to train here:\n"
        f"  repository  {clean['repository']}\n"
        f"  commit      {clean['commit'][:12]} of {clean['ref']}\n"
        f"  size        {clean['nodes']} node(s) x {clean['processes']} process(es)\n"
        f"Accept it? Without an answer it is refused in {max(0, seconds):.0f} s. [y/n] "
    )
