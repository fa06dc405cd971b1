"""What TrainForge promises, watched at every transaction, push, start and answer, and once more at rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from simulator.manifests import REPO, manifest_file
from simulator.remote import Remote
from simulator.world import World
from trainforge.config.identity import job_id
from trainforge.config.messages import OUTCOMES, FencingToken, ForgetOrder, NodeKey
from trainforge.hooks.triggers import MANIFEST
from trainforge.sender import lifecycle as life

if TYPE_CHECKING:
    from simulator.executor import SimExecutor, SimNode
    from simulator.sender import SimSender

LIVE = {"offered", "accepted", "running"}
# Chains of legal steps: one transaction may take several.
_FORWARD = ["pending", "planning", "dispatching", "running"]


def _reachable(old: str, new: str) -> bool:
    if old in OUTCOMES or old == new:
        return old == new
    return (
        new in OUTCOMES
        or (old, new) == ("running", "dispatching")
        or _FORWARD.index(old) < _FORWARD.index(new)
    )


class Promises:
    def __init__(self, world: World, remote: Remote) -> None:
        self.world, self.remote = world, remote
        self.acknowledged_pushes: dict[str, dict[str, float]] = {}  # sender -> commit -> when
        self._states: dict[str, dict[str, tuple[str, str]]] = {}
        self._starts: dict[tuple[Any, ...], str] = {}
        self._tries: dict[tuple[str, str, int], str] = {}
        self.revoked: set[str] = set()
        self.clock_set = False
        self.deleted = False  # somebody removed the results branch

    # --- at every transaction ---------------------------------------------------------------------------

    def look(self, sender: SimSender) -> None:
        seen = self._states.setdefault(sender.name, {})
        for job, now in sender.store.states().items():
            before = seen.get(job)
            if before == now:
                continue
            seen[job] = now
            self.world.note(sender.name, f"{job[:6]} is {now[0]} {now[1]}")
            self.world.mark(now[0], sender.name, job)
            if before is not None and not _reachable(before[0], now[0]):
                self.world.broken(f"job {job} went from {before[0]} to {now[0]}")
            if now[0] in OUTCOMES and (before is None or before[0] not in OUTCOMES):
                self._ended(job, *now)

        self._attempts(sender)

    def _attempts(self, sender: SimSender) -> None:
        """Whole gangs, one after the other, and none given up that was silent for a moment only."""
        for key, (code, reason, nodes) in sender.store.attempts_now().items():
            before = self._tries.get((sender.name, *key))
            self._tries[sender.name, *key] = code
            if before is None:
                self._placed(sender, key, len(nodes))
            if before != code == "lost" and "not heard" in reason:
                silence = self.world.now + sender.skew - min(node["lease_until"] for node in nodes)
                if silence < sender.settings.lost_after:
                    self.world.broken(f"attempt {key} was given up after {silence:.0f} s of silence")

    def _placed(self, sender: SimSender, key: tuple[str, int], size: int) -> None:
        job, number = key
        wanted = 2 if "nodes: 2" in sender.store.job(job)["manifest_text"] else 1
        if size != wanted:
            self.world.broken(f"attempt {key} got {size} of {wanted} machines")
        for node in sender.store.attempts_now().get((job, number - 1), ("", "", []))[2]:
            trains = node["begun"] is not None and node["outcome"] is None and node["finished"] is None
            heard = sender.now() <= node["lease_until"] and node["executor_id"] not in self.revoked
            if trains and heard and not self.clock_set:
                self.world.broken(
                    f"attempt {key} was placed while rank {node['rank']} of the one before trains"
                )

    def _ended(self, job: str, state: str, code: str) -> None:
        if code == "publish_blocked" and self.remote.blocked:
            return
        if state not in self.remote.ever.get(job, set()):
            self.world.broken(f"job {job} is {state}, but the remote never said so")

    def restored(self, sender: SimSender, when: float) -> None:
        """What was acknowledged after the backup may be forgotten."""
        self._states[sender.name] = dict(sender.store.states())
        self._tries = {key: state for key, state in self._tries.items() if key[0] != sender.name}
        for key, (code, _, _) in sender.store.attempts_now().items():
            self._tries[sender.name, *key] = code
        acked = self.acknowledged_pushes.get(sender.name, {})
        for commit, moment in list(acked.items()):
            if moment >= when:
                del acked[commit]

    def push_acknowledged(self, sender: SimSender, commit: str) -> None:
        self.acknowledged_pushes.setdefault(sender.name, {}).setdefault(commit, self.world.now)

    # --- leases, tokens, starts -------------------------------------------------------------------------

    def leases(self, sender: SimSender, executor: str, before: Mapping[Any, float]) -> None:
        """After a heartbeat."""
        for key, until in sender.store.leases().items():
            if until > before.get(key, until):
                attempt = sender.store.attempt_of(key[0], key[1])
                if attempt["state"] not in LIVE:
                    self.world.broken(f"a heartbeat extended the lease of {key}, which is {attempt['state']}")

    def spoken(
        self, sender: SimSender, key: NodeKey, token: FencingToken, before: Mapping[Any, float]
    ) -> None:
        """After a journal batch that was taken."""
        attempt = sender.store.attempt_of(key.job, key.attempt)
        own = (attempt["token_incarnation"], attempt["token_number"])
        if (token.incarnation, token.number) != own or attempt["state"] in {"lost", "superseded"}:
            self.world.broken(f"{key} was heard with a stale token {token}, the attempt has {own}")

    def acknowledged(self, executor: SimExecutor, node: SimNode, reached: int) -> None:
        """What is acknowledged is stored: each line once, in order, and none before it is missing."""
        home = executor.home
        attempt = home.store.attempt_of(node.key.job, node.key.attempt)
        if attempt is None or attempt["token_number"] != node.token.number:
            return
        stored = home.store.lines_of((node.key.job, node.key.attempt, node.key.rank))
        said = [text for _, text in node.texts]
        least = sum(number <= reached for number, _ in node.texts)
        if stored != said[: len(stored)]:
            self.world.broken(f"the log of {node.key} is stored as {stored}, and was {said}")
        row = home.store.nodes_row(node.key)
        if len(stored) < least and row is not None and row["acknowledged"] >= reached:
            self.world.broken(
                f"{reached} records of {node.key} are acknowledged, {len(stored)} lines of {least} stored"
            )

    def started(self, executor: SimExecutor, node: SimNode) -> None:
        token = node.token
        key = (executor.home.name, *node.key.model_dump().values(), token.incarnation, token.number)
        other = self._starts.setdefault(key, executor.name)
        if other != executor.name or node.training is not None:
            self.world.broken(f"{node.key} with {token} was started on {other} and on {executor.name}")

    def published(self, executor: SimExecutor, node: SimNode, before: set[str]) -> None:
        """A result comes from who holds the lease and was not told otherwise, and of no attempt given up."""
        silence = self.world.now - executor.heard
        if silence > executor.home.settings.lease_ttl:
            self.world.broken(f"{node.key} was published {silence:.0f} s after the sender was heard last")
        if node.abandoned or node.newest(ForgetOrder) is not None:
            self.world.broken(f"{node.key} was published although {executor.name} was told to give it up")
        attempt = executor.home.store.attempt_of(node.key.job, node.key.attempt)
        if attempt is None or executor.name in self.revoked or self.deleted:
            return
        own = (attempt["token_incarnation"], attempt["token_number"]) == (
            node.token.incarnation,
            node.token.number,
        )
        if own and attempt["state"] not in LIVE:
            self.world.broken(
                f"{node.key} was published by {executor.name} after it was given up as {attempt['state']}"
            )

    # --- at rest ----------------------------------------------------------------------------------------

    def at_rest(self, sender: SimSender) -> bool:
        known = sender.store.heads(REPO.id)
        handled = not self.remote.main or known.get("refs/heads/main") == self.remote.main[-1]
        return handled and all(state in OUTCOMES for state, _ in sender.store.states().values())

    def final(self, sender: SimSender) -> None:
        states = sender.store.states()
        for job, (state, code) in states.items():
            if state not in OUTCOMES:
                self.world.broken(f"job {job} is still {state} long after the faults stopped")
            said = self.remote.outcome(job)
            if said != state and not self.deleted and code != "publish_blocked":
                self.world.broken(f"job {job} is {state}, the remote says {said or 'nothing'}")
        for commit in self.acknowledged_pushes.get(sender.name, {}):
            job = self.job_of(commit)
            if job not in states and job not in self.remote.ever:
                self.world.broken(f"the push of {commit[:8]} was acknowledged and led to nothing")

    def job_of(self, commit: str) -> str:
        file = manifest_file(self.remote.manifests[commit])
        return job_id(REPO.id, commit, MANIFEST, file.blob)


assert all(_reachable(old, new) for old in life.LEGAL for new in life.LEGAL[old])
