"""Commits a job's result: the sender's record and this node's artifacts, at most once, whatever crashes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainforge.config.errors import Forbidden, NotFound, TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.config.manifest import Manifest
from trainforge.config.messages import (
    Finished,
    GitCredential,
    NodeKey,
    NodePhase,
    Note,
    Published,
    PublishOrder,
    PublishWaiting,
    RunOrder,
)
from trainforge.config.reasons import REASONS
from trainforge.config.result import Artifact, JobRecord, commit_message, result_files
from trainforge.config.result_index import shared_files
from trainforge.executor import collect, data, environment, images, supervisor
from trainforge.executor.isolating import Walls
from trainforge.executor.job_secrets import JobSecrets
from trainforge.executor.journal import Journal
from trainforge.executor.services import Services
from trainforge.executor.spool import KEEP_S
from trainforge.hooks.addresses import largest_file
from trainforge.hooks.git import AddressRefused, GitAuthFailed, GitBlocked, GitNotFound
from trainforge.hooks.result_queue import LOOK_S
from trainforge.hooks.results import Entry, Outcome, Read, Written, write_results

log = logging.getLogger(__name__)

COLLECTED = "collected.json"
BLOCKED = "blocked.json"
REFUSALS = 5
LEAST = 2
TURN = "its turn: results of a repository at GitHub are pushed together, as often as GitHub recommends"


class _Over(Exception):  # noqa: N818
    """Somebody else's result stands, or the sender has no more use for this one."""


class LeaseEnded(TrainForgeError):  # noqa: N818
    """The sender has not been heard of for too long: another executor may be publishing by now."""

    code = "lease_ended"


class Gathered(BaseModel):
    """What was collected, as it stands on disk beside the copies."""

    artifacts: list[Artifact]
    copies: dict[str, str]  # path in the result -> file name below the node's artifacts folder
    warnings: list[str]


class Blocked(BaseModel):
    """The remote's words, and how much less is offered: 1 no artifacts, 2 no logs either."""

    level: int
    words: str


def reduced(
    record: JobRecord, gathered: Gathered, blocked: Blocked, spool: Path
) -> tuple[JobRecord, Gathered]:
    """The result of a job whose own the remote refuses: it failed for that, and says where the rest is."""
    pointer = "left on the executor: the remote refused the result"
    artifacts = [
        artifact.model_copy(update={"stored": pointer}) if artifact.stored == "git" else artifact
        for artifact in gathered.artifacts
    ]
    kept = f"what the remote refused is kept for {int(KEEP_S / 86_400)} days below {spool} on the executor"
    changes: dict[str, Any] = {
        "outcome": "failed", "code": "publish_blocked", "reason": blocked.words[:2000],
        "hint": REASONS["publish_blocked"].hint, "notices": [*record.notices, kept],
    }  # fmt: skip
    if blocked.level >= LEAST:
        changes |= {"logs": {}, "environment": {}}
    return record.model_copy(update=changes), gathered.model_copy(
        update={"artifacts": artifacts, "copies": {}}
    )


def mirror_path(data_dir: Path, url: str) -> Path:
    """Where a repository's results branch is kept."""
    return data_dir / "results" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.git"


def gather(folder: Path, manifest: Manifest | None, secrets: JobSecrets, url: str) -> Gathered:
    """Collect artifacts once; a second call, after a crash too, gives what the first one found.

    `url` is where they go: what is too large for a push to there stays here.
    """
    done = folder / COLLECTED
    if done.exists():
        return Gathered.model_validate_json(done.read_bytes())
    into = folder / "artifacts"
    shutil.rmtree(into, ignore_errors=True)
    work = folder / "work"
    patterns: list[str] = []
    max_size = 100 * 2**20
    if manifest is not None:
        work, patterns = work / manifest.training.working_dir, list(manifest.artifacts.paths)
        max_size = int(manifest.artifacts.max_size)
    max_size = min(max_size, largest_file(url) or max_size)
    found = collect.collect(folder / "output", work, patterns, into, max_size=max_size)
    _withhold(found, secrets)
    copies = {path: copy.name for path, copy in found.files.items()}
    gathered = Gathered(artifacts=found.artifacts, copies=copies, warnings=found.warnings)
    aside = done.with_suffix(".aside")
    aside.write_text(gathered.model_dump_json())
    aside.replace(done)
    return gathered


def _withhold(found: collect.Collected, secrets: JobSecrets) -> None:
    """Take out what holds a secret, or cannot be searched for one any more."""
    found.warnings = [secrets.text(warning) for warning in found.warnings]
    for index, artifact in enumerate(found.artifacts):
        path = secrets.text(artifact.path)
        copy = found.files.get(artifact.path)
        if path == artifact.path and (copy is None or (secrets.known and not secrets.found_in(copy))):
            continue
        why = f"cannot be searched for secrets ({secrets.refused})" if secrets.refused else "holds a secret"
        found.warnings.append(f"secret_in_artifact: {path!r} is not published, it {why}")
        stored = "left on the executor: secret_in_artifact"
        found.artifacts[index] = artifact.model_copy(update={"path": path, "sha256": "", "stored": stored})
        if copy is not None:
            del found.files[artifact.path]
            copy.unlink()


@dataclass(frozen=True)
class Publishing:
    """One node's result and the way to the remote. It waits on disk for as long as the remote is down."""

    key: NodeKey
    folder: Path  # the node's
    order: RunOrder
    publish: PublishOrder
    manifest: Manifest | None
    journal: Journal
    services: Services
    secrets: JobSecrets
    walls: Walls
    mine: Callable[[], bool] = lambda: True  # whether the sender has not said otherwise

    def run(
        self,
        *,
        phase: Callable[[NodePhase], None],
        wait: Callable[[float], None],
        over: Callable[[], bool],
    ) -> None:
        """Until the result is on the remote, or cannot get there, or is `over` because somebody else's is."""

        def rest(seconds: float) -> None:
            wait(seconds)
            if over():
                raise _Over

        failpoint("29.executor.gather")
        with contextlib.suppress(_Over):
            phase("collecting")
            gathered = self._gather(rest)
            phase("publishing")
            self._until_published(gathered, rest)

    def _until_published(self, gathered: Gathered, rest: Callable[[float], None]) -> None:
        refused, said = 0, ""
        for number in itertools.count():
            try:
                published = self._once(gathered, rest)
            except (GitBlocked, AddressRefused) as error:
                if not self._reduce(error):
                    return
                continue
            except (GitAuthFailed, GitNotFound, NotFound, Forbidden) as error:
                refused += 1
                if refused > REFUSALS:
                    self._give_up("internal", error.message)
                    return
                reason = error.message
            except (TrainForgeError, OSError) as error:
                reason = str(error)
            else:
                self.journal.append("published", published)
                self.journal.sync()
                failpoint("37.executor.published")
                return
            pause = self._waits(number, reason, news=reason != said)
            said = reason
            rest(pause)

    def again(self) -> Published:
        """Publish once more what lies in the spool. Raises TrainForgeError when that cannot be done now."""
        gathered = Gathered.model_validate_json((self.folder / COLLECTED).read_bytes())
        return self._once(gathered, time.sleep)

    def _until_turn(self, seconds: float, rest: Callable[[float], None]) -> None:
        """A little of the wait for the turn, of which it is said once; another's push may end it."""
        last = self.journal.find("publish_waiting")
        if seconds > LOOK_S and (last is None or last.data["reason"] != TURN):
            waiting = PublishWaiting(reason=TURN, next_try=time.time() + seconds)
            self.journal.append("publish_waiting", waiting)
        rest(min(seconds, LOOK_S))

    def _waits(self, number: int, reason: str, *, news: bool) -> float:
        """Say why the result waits; gives for how long."""
        pause = min(60.0, 2.0 ** min(number, 6)) * random.uniform(0.7, 1.3)  # noqa: S311 - jitter
        if news:
            log.warning("job %s: the result waits: %s", self.key.job[:8], reason)
        waiting = PublishWaiting(reason=reason[:2000], next_try=time.time() + pause)
        self.journal.append("publish_waiting", waiting)
        failpoint("35.executor.remote_down")
        return pause

    def _gather(self, rest: Callable[[float], None]) -> Gathered:
        """What was left behind, searched for secrets: once they are known."""
        while not (self.folder / COLLECTED).exists() and not self.secrets.settle():
            rest(1)
        gathered = gather(self.folder, self.manifest, self.secrets, self.order.repository.url)
        for warning in gathered.warnings:
            if warning.startswith("secret_in_artifact"):
                self.journal.append("note", Note(level="warning", text=warning))
        return gathered

    def _give_up(self, code: str, reason: str) -> None:
        log.warning("job %s: the result cannot be published: %s", self.key.job[:8], reason)
        self.journal.append("finished", Finished(state="failed", code=code, reason=reason[:8000]))
        self.journal.sync()

    def _reduce(self, error: GitBlocked | AddressRefused) -> bool:
        """Offer less from now on; False when the least that can be offered has been refused."""
        failpoint("34.executor.blocked")
        words, before = error.message, self._blocked()
        level = before.level + 1 if before else 1
        if level > LEAST or isinstance(error, AddressRefused):
            self._give_up("publish_blocked", words)
            return False
        blocked = Blocked(level=level, words=before.words if before else words)
        supervisor.write_atomically(self.folder / BLOCKED, blocked.model_dump())
        text = f"the remote refuses the result, so less of it is offered: {words}"
        self.journal.append("note", Note(level="warning", text=text[:4000]))
        return True

    def _blocked(self) -> Blocked | None:
        try:
            return Blocked.model_validate_json((self.folder / BLOCKED).read_bytes())
        except FileNotFoundError:
            return None

    def _once(self, gathered: Gathered, rest: Callable[[float], None]) -> Published:
        record = self._record(gathered)
        if blocked := self._blocked():
            record, gathered = reduced(record, gathered, blocked, self.services.data_dir / "spool")
        files: dict[str, bytes | Path] = dict(result_files(record, gathered.artifacts))
        for path, name in gathered.copies.items():
            files[f"artifacts/{path}"] = self.folder / "artifacts" / name
        self._still_mine()
        entry = Entry(
            record.path,
            files,
            commit_message(record),
            lambda read: self._shared(record, read),
            self._before_push,
        )
        queue = self.services.results.of(self.order.repository.url, self.order.results_branch)
        written = queue.write(
            entry,
            self._push,
            turn=lambda: self.services.push_turn(self.key),
            wait=lambda seconds: self._until_turn(seconds, rest),
        )
        if not written.already:
            failpoint("32.executor.pushed")
        return Published(
            branch=self.order.results_branch, path=record.path, commit=written.commit, outcome=record.outcome
        )

    def _push(self, entries: Sequence[Entry]) -> tuple[Written, list[Outcome]]:
        """This result, and those of other jobs here that go along."""
        url = self.order.repository.url
        mirror = mirror_path(self.services.data_dir, url)
        mirror.parent.mkdir(parents=True, exist_ok=True)
        return write_results(
            mirror, url, self.order.results_branch, *entries,
            credential=self._credential(), allow_file=self.services.allow_file,
        )  # fmt: skip

    def _shared(self, record: JobRecord, read: Read) -> Mapping[str, bytes]:
        failpoint("31.executor.commit")
        return shared_files(record, read)

    def _credential(self) -> GitCredential | None:
        """Made now, for this push: one of an hour ago may have expired."""
        failpoint("36.executor.credential")
        return self.services.credential(self.key)

    def _before_push(self) -> None:
        self._still_mine()
        failpoint("31.executor.push")

    def _still_mine(self) -> None:
        """A push is only for who holds the lease: past it another executor may be running the job."""
        if not self.mine():
            raise LeaseEnded("the sender counts this node as given up")
        if not self.services.trusted():
            raise LeaseEnded("the sender was not heard of for too long to publish")

    def _record(self, gathered: Gathered) -> JobRecord:
        """The sender's record of the job, kept on disk, with what only this machine knows added."""
        kept = self.folder / "record.json"
        if kept.exists():
            return JobRecord.model_validate_json(kept.read_bytes())
        record = self.services.record(self.key)
        record = record.model_copy(
            update={
                "notices": [*record.notices, *gathered.warnings],
                "environment": {**record.environment, **self._environment()},
                "data": data.recorded(self.folder),
            }
        )
        aside = kept.with_suffix(".aside")
        aside.write_text(record.model_dump_json())
        aside.replace(kept)
        return record

    def _environment(self) -> dict[str, str]:
        try:
            chosen = json.loads((self.folder / "environment.json").read_text())
        except (OSError, ValueError):
            return {}
        chosen |= {"isolation": self.walls.told()}
        files = {"environment.json": self.secrets.text(json.dumps(chosen, indent=2)) + "\n"}
        names = ("python", "mode", "key", "base")
        built = environment.Environment(**{name: chosen[name] for name in names if name in chosen})
        with contextlib.suppress(OSError, ValueError):
            machine = json.loads((self.folder / environment.MACHINE).read_text())
            files["machine.json"] = json.dumps(machine, indent=2) + "\n"
        if self.walls.contained:
            packages = self.secrets.text(images.packages(self.services.data_dir / images.CACHE, self.folder))
        else:
            packages = self.secrets.text(environment.freeze(built, os.environ, self.walls))
        return files | ({"requirements.lock.txt": packages} if packages else {})
