"""One node of a job, from its first order to its last: the phases, called in order.

Everything that matters is in the node's folder, so a node that is built again over the same folder, after
whatever killed the executor, goes on where it was: a phase that is done leaves something that says so.

    orders.jsonl      accepted orders             journal.jsonl, acknowledged   what was said
    work/             the checkout                environment.json              the chosen Python
    run/              the supervisor's folder     output/                       TRAINFORGE_OUTPUT_DIR
    collected.json    artifacts/                  record.json                   ready to be published
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TypeVar

from trainforge.config.disk import is_full
from trainforge.config.errors import ManifestError, NodeFailed, TrainForgeError
from trainforge.config.failpoints import failpoint
from trainforge.config.manifest import Manifest
from trainforge.config.messages import (
    AnswerOrder,
    Ended,
    FencingToken,
    ForgetOrder,
    LaunchOrder,
    NodeKey,
    NodePhase,
    Note,
    Order,
    Phase,
    PublishOrder,
    RunOrder,
    Started,
    StopOrder,
)
from trainforge.executor import budget, capabilities, launch, parameters
from trainforge.executor.barrier import Barrier
from trainforge.executor.checkpoints import SETTLE_S
from trainforge.executor.commands import Interrupted, Setup
from trainforge.executor.deadline import deadline
from trainforge.executor.follow import Follower
from trainforge.executor.isolating import Walls
from trainforge.executor.job_gpus import JobGpus
from trainforge.executor.job_secrets import JobSecrets
from trainforge.executor.journal import Journal
from trainforge.executor.keeping import Keeping
from trainforge.executor.limits import Limits
from trainforge.executor.metrics import Patterns
from trainforge.executor.orders import OrderBook
from trainforge.executor.preparation import Preparation, Prepared
from trainforge.executor.publishing import Publishing
from trainforge.executor.seen import DiskUse
from trainforge.executor.services import Services
from trainforge.executor.spool import Spool
from trainforge.executor.supervise import Around, Supervised
from trainforge.executor.telling import told
from trainforge.executor.training import Watch

log = logging.getLogger(__name__)

SETUP_S = 3600.0  # until the manifest, which may say otherwise, has been read

Body = TypeVar("Body")


class Closing(Exception):  # noqa: N818
    """The executor is going away; the node stays as it is for the next one."""


class Node(threading.Thread):
    """Runs one node in a thread of its own. `wake` after its orders have changed."""

    def __init__(self, key: NodeKey, book: OrderBook, services: Services) -> None:
        super().__init__(name=f"node-{key}", daemon=True)
        self.key = key
        self.book = book
        self.services = services
        self.folder = book.folder(key)
        self.journal = Journal(self.folder / "journal.jsonl", services.said)
        self.supervised = Supervised(self.folder / "run")
        self.walls = Walls(self.folder, services.settings)
        self.secrets = JobSecrets(key, self.token, services.secrets, services.own_secrets)
        self.journal.mask = self.secrets.record
        self.follower = Follower(self.journal, masked=lambda: self.secrets.settle() and self.secrets.known)
        self.acknowledged = self._read_acknowledged()
        self.forgotten = False
        self.begun = self.spoken = time.monotonic()
        self._inbox = threading.Event()
        self._closing = False
        self._abandoned = False
        self._local_stop: StopOrder | None = None
        self._orders: list[Order] = book.read(key)
        self.preparation = Preparation(
            self.key, self.folder, self.order, services, self.secrets, self.walls, self._phase
        )
        self.gpus = JobGpus(self.order.gpus, self.folder / "gpus.json")
        self.keeping = Keeping(services.data_dir, key, self.order, self._warn)
        self.barrier = Barrier(self.key.rank, self.journal, services.advertise, self._phase)

    # --- what others may call --------------------------------------------------------------------------

    def wake(self) -> None:
        self._inbox.set()

    def close(self) -> None:
        """End the thread soon; training goes on."""
        self._closing = True
        self._inbox.set()

    def stop(self, code: str, reason: str) -> None:
        self._local_stop = StopOrder(code=code, reason=reason)
        self._inbox.set()

    def abandon(self) -> None:
        """The sender no longer counts this node as ours: end it and remove it."""
        failpoint("23.executor.given_up")
        self._abandoned = True
        self.stop("superseded", "the sender gave this node to another executor")

    def token(self) -> FencingToken:
        return self._orders[-1].token

    @property
    def order(self) -> RunOrder:
        first = self._orders[0].body
        assert isinstance(first, RunOrder)  # noqa: S101 - nothing else opens a node
        return first

    @property
    def fenced(self) -> bool:
        """Whether the sender has stopped listening to this node."""
        return self._abandoned or self.forgotten

    @property
    def active(self) -> bool:
        """Whether it still takes one of the executor's places."""
        return self.is_alive() and self.journal.find("ended") is None

    def acknowledge(self, number: int) -> None:
        """The sender knows up to where it has the journal; less than before after it was restored."""
        if number != self.acknowledged:
            self.acknowledged = min(number, self.journal.last)
            aside = self.folder / ".acknowledged"
            aside.write_text(str(self.acknowledged))
            aside.replace(self.folder / "acknowledged")

    def _read_acknowledged(self) -> int:
        try:
            return min(int((self.folder / "acknowledged").read_text()), self.journal.last)
        except (OSError, ValueError):
            return 0

    # --- the whole -------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            if self.journal.find("ended") is None:
                self._say_ended(self._until_ended())
            self._after()
        except Closing:
            pass
        except Exception:  # the process boundary of one node: the others go on
            log.exception("%s failed", told(self.key))
        finally:
            self.barrier.close()
            self.secrets.close()
            if self._abandoned:
                self._forget()
            self.journal.close()

    def _until_ended(self) -> Ended:
        try:
            prepared = self._prepare()
            return Ended(exit_code=0) if self.order.prepare else self._train(prepared, self._meet(prepared))
        except Closing:
            raise
        except Interrupted:
            stop = self._stop_order()
            return Ended(code=stop.code, reason=stop.reason) if stop else Ended(code="stopped")
        except ManifestError as error:
            return Ended(code="manifest_invalid", reason=str(error)[:2000])
        except NodeFailed as error:
            return Ended(code=error.code, reason=str(error)[:2000], tail=error.message[-8000:])
        except Exception as error:
            full = is_full(error)
            log.log(logging.ERROR, "%s: %s", told(self.key), error, exc_info=not full)
            if not full and self.supervised.adopt_again():
                raise  # this thread ends, and another one finds the training where it is
            self.supervised.end()
            return Ended(code="disk_full" if full else "internal", reason=str(error)[:2000])

    def _say_ended(self, ended: Ended) -> None:
        self.walls.remove()
        self.gpus.release()
        if ended.code == "disk_full":  # what nobody needs any more makes room for what is still to be said
            shutil.rmtree(self.folder / "work", ignore_errors=True)
        while self.supervised.begun and not self.secrets.settle() and not self._abandoned:
            self._wait(1)  # metrics are not journalled before they can be masked
        while True:
            try:
                self.follower.drain()
                if self.supervised.begun and self.secrets.refused:
                    self._warn(f"metrics that could not be masked are not kept: {self.secrets.refused}")
                self.journal.append("ended", ended)
                self.journal.sync()
                how = f"{ended.code}: {ended.reason}".removesuffix(": ") if ended.code else "well"
                log.info("%s: ended %s", told(self.key), how)
            except OSError as error:  # a full disk, mostly: said as soon as there is room for it
                log.error("%s cannot write its journal: %s", told(self.key), error)  # noqa: TRY400
                self._wait(5)
            else:
                return

    def _phase(self, phase: NodePhase, detail: str = "") -> None:
        last = self.journal.find("phase")
        if last is None or (last.data["phase"], last.data["detail"]) != (phase, detail):
            self.journal.append("phase", Phase(phase=phase, detail=detail))
            log.info("%s: %s", told(self.key), f"{phase}, {detail}" if detail else phase)

    # --- orders ----------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        """Until an order comes or the time is over."""
        if self._inbox.wait(seconds):
            self._inbox.clear()
            self._orders = self.book.read(self.key)
        if self._closing:
            raise Closing

    def _newest(self, kind: type[Body]) -> Body | None:
        return next((order.body for order in reversed(self._orders) if isinstance(order.body, kind)), None)

    def _stop_order(self) -> StopOrder | None:
        return self._local_stop or self._newest(StopOrder)

    def _stop_if_asked(self) -> None:
        if self._stop_order() is not None:
            raise Interrupted

    def _tick(self) -> bool:
        """Looked at often while preparing: whether to stop."""
        if self._inbox.is_set() or self._closing:
            self._wait(0)
        if (said := self._newest(AnswerOrder)) is not None:
            self.services.acceptance.hear(self.folder, said)
        self.follower.step()
        return self._stop_order() is not None

    # --- preparing -------------------------------------------------------------------------------------

    def _prepare(self) -> Prepared:
        if self.supervised.begun:  # a training that may be running is adopted, nothing is prepared again
            manifest = self.preparation.kept_manifest()
            self.secrets.names = manifest.secrets
            return Prepared(manifest, "", Path())
        lease = functools.partial(budget.lease, self.folder)
        most = Limits.of(self.services.settings).disk
        disk = DiskUse([str(self.folder)], most) if most else None
        end = time.monotonic() + SETUP_S
        setup = Setup(self.folder / "setup.log", end, self._tick, lease=lease, disk=disk)
        self.follower.add(setup.log, -1, "setup")
        if not self.order.prepare:
            self.gpus.take()
        prepared = self.preparation.run(setup)
        self.keeping.store(prepared.manifest)  # what cannot be opened is to be known before the training
        return prepared

    # --- the barrier -----------------------------------------------------------------------------------

    def _meet(self, prepared: Prepared) -> launch.Meeting | None:
        """Ready, and for several nodes: where they meet, once everybody is known to get there."""
        if self.supervised.begun:
            return None
        if self.order.nodes == 1:
            self.barrier.ready()
            return None
        self.barrier.open(prepared.manifest.distributed.port or 0, self.keeping.resumable(prepared.manifest))
        while (order := self._newest(LaunchOrder)) is None:
            self._stop_if_asked()
            self.barrier.probe(self._orders)
            self._wait(30)
        return self.barrier.meeting(order)

    # --- training --------------------------------------------------------------------------------------

    def _train(self, prepared: Prepared, meeting: launch.Meeting | None) -> Ended:
        manifest = prepared.manifest
        if not self.supervised.begun:
            self._launch(prepared, meeting)
        failpoint("26.executor.launch")
        if not self.supervised.started:
            self.secrets.require(self._stop_if_asked, self._wait)
            self.gpus.take()
            self.supervised.start(self.secrets.private(), self.gpus.descriptors)
        failpoint("26.executor.training")
        if self.journal.find("started") is None:
            self._phase("training")
            spec = self.supervised.spec()
            argv = [str(part)[:1000] for part in spec["commands"][0]["argv"]]
            pid = self.supervised.pid() or 0
            self.journal.append("started", Started(argv=argv, processes=int(spec["processes"]), pid=pid))
        self.follower.patterns = Patterns.of(manifest.metrics.patterns)
        self.follower.add(self.folder / "run" / "metrics.jsonl", 0, "metrics")
        self.follower.add_ranks(self.folder / "run" / "logs")
        watch = Watch(
            self.supervised,
            self.follower,
            self.journal,
            wait=self._wait,
            stopping=self._stop_order,
            out_of_memory=self.walls.out_of_memory,
            gpus=self.gpus,
        )
        return self._keeping(manifest, watch)

    def _keeping(self, manifest: Manifest, watch: Watch) -> Ended:
        """Until the training has ended, with its checkpoints sealed and stored as they appear."""
        since = (self.folder / "run" / "spec.json").stat().st_mtime
        keeper = self.keeping.keeper(manifest, since, self.folder / "run")
        keeper.start()
        try:
            ended = watch.until_ended()
        finally:
            keeper.close()
        done = self.supervised.exit()
        if ended.code and done is not None:
            keeper.end(done.ended - SETTLE_S if done.killed or done.lost else time.time())
        return ended

    def _warn(self, text: str) -> None:
        self.journal.append("note", Note(level="warning", text=text))

    def _launch(self, prepared: Prepared, meeting: launch.Meeting | None) -> None:
        manifest, order = prepared.manifest, self.order
        if meeting is None and not launch.has_launcher(manifest) and launch.processes(manifest, order) > 1:
            meeting = self.barrier.alone(manifest.distributed.port or 0)
        resume = meeting.resume if meeting and order.nodes > 1 else self.keeping.newest(manifest)
        if resume:
            self.journal.append("note", Note(text=f"goes on from checkpoint {resume} (attempt/name)"))
        folders = self._folders(manifest, prepared.data, resume)
        grace = manifest.timeout.grace
        run_limit, warning = manifest.timeout.run, manifest.timeout.warning
        sessions = (order.session_ends, capabilities.session_ends(self.services.settings))
        first = min(filter(None, sessions), default=0.0)
        end = deadline(time.time(), run=run_limit, session_ends=first, grace=grace, warning=warning)
        planned = launch.plan_launch(
            launch.Plan(
                manifest=manifest,
                node=self.key,
                order=order,
                folders=folders,
                python=prepared.python,
                inherited=self.walls.environment(os.environ),
                meeting=meeting,
                deadline=end.at,
            )
        )
        limits = Limits.of(self.services.settings)
        around = self._around(prepared, folders)
        self.supervised.prepare(
            planned, timeout_s=run_limit, grace_s=grace, limits=limits, end=end, around=around
        )
        self.journal.append("note", Note(text=self.walls.words()))

    def _around(self, prepared: Prepared, folders: launch.Folders) -> Around:
        """What the training may change, and what else it sees."""
        write = [folders.work, folders.output, folders.checkpoint, *self.supervised.make_folders()]
        if self.secrets.values:
            write.append(folders.run / "streams")
            write[-1].mkdir(exist_ok=True)
        self.walls.hand_over(write)
        read = [folders.run, folders.data, *prepared.reads, *self.preparation.git_objects()]
        cwd = self.preparation.working_folder(prepared.manifest)
        before = self.walls.before(cwd, write=write, read=read)
        taken = (folders.work, folders.output, folders.checkpoint, *self.walls.scratch())
        remove = tuple(self.walls.end(before))
        return Around(tuple(before), self.walls.apart, self.walls.user, remove, taken)

    def _folders(self, manifest: Manifest, data_folder: Path, resume: str) -> launch.Folders:
        run, output = self.folder / "run", self.folder / "output"
        kept = self.keeping.here().files
        for folder in (run, output, kept):
            folder.mkdir(parents=True, exist_ok=True)
        usual = self.preparation.working_folder(manifest) / manifest.checkpoint.dir
        if not usual.exists() and usual.resolve().is_relative_to((self.folder / "work").resolve()):
            usual.parent.mkdir(parents=True, exist_ok=True)
            usual.symlink_to(kept)
        params_file, params = run / "params.json", self._params(manifest)
        params_file.write_text(json.dumps(params, indent=2) + "\n")
        return launch.Folders(
            work=self.folder / "work",
            run=run,
            output=output,
            checkpoint=kept,
            data=data_folder,
            metrics_file=run / "metrics.jsonl",
            params_file=params_file,
            params=params,
            resume_from=self.keeping.here().path(resume),
        )

    def _params(self, manifest: Manifest) -> parameters.Params:
        """This node's parameters, laid over the config file as well, where the manifest names one."""
        world = launch.processes(manifest, self.order) * self.order.nodes
        params = parameters.of_node(self.order, self.key.rank, world)
        if name := manifest.training.config:
            folder = self.preparation.working_folder(manifest)
            path = (folder / name).resolve()
            if not path.is_relative_to((self.folder / "work").resolve()):
                raise NodeFailed(f"training.config: {name} leads out of the commit", code="manifest_invalid")
            parameters.write_config(path, params, name)
        return params

    # --- after the end ---------------------------------------------------------------------------------

    def _after(self) -> None:
        """Publish when told to, until told to forget."""
        while not self._abandoned:
            if self._newest(ForgetOrder) is not None:
                self._forget()
                return
            order = self._newest(PublishOrder)
            if order is not None and not self._settled():
                self._publish(order)
            else:
                self._wait(30)

    def _settled(self) -> bool:
        return self.journal.find("published") is not None or self.journal.find("finished") is not None

    def _publish(self, order: PublishOrder) -> None:
        manifest: Manifest | None = None
        with contextlib.suppress(OSError, TrainForgeError):
            manifest = self.preparation.kept_manifest()
            self.secrets.names = manifest.secrets
        publishing = Publishing(
            key=self.key,
            folder=self.folder,
            order=self.order,
            publish=order,
            manifest=manifest,
            journal=self.journal,
            services=self.services,
            secrets=self.secrets,
            walls=self.walls,
            mine=lambda: not self.fenced,
        )
        over = lambda: self.fenced or self._newest(ForgetOrder) is not None  # noqa: E731
        publishing.run(phase=self._phase, wait=self._wait, over=over)
        published = self.journal.find("published")
        if published is not None:
            branch, commit = published.data["branch"], published.data["commit"][:7]
            log.info("%s: result on the branch %s, commit %s", told(self.key), branch, commit)

    def _forget(self) -> None:
        published = self.journal.find("published")
        if published is not None and published.data["outcome"] == "completed":  # others may be resumed
            manifest: Manifest | None = None
            with contextlib.suppress(OSError, TrainForgeError):
                manifest = self.preparation.kept_manifest()
            self.keeping.clear(manifest)
        self.walls.remove()
        # A sender that does not know the node any more may still ask for what it published.
        if published is not None or not self._abandoned:
            Spool(self.services.data_dir).keep(self.key, self.folder)
        self.book.forget(self.key)
        self.forgotten = True
