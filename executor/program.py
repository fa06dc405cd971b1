"""The executor as a program: one in each data directory, until it is told to end or is removed."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from trainforge.config.errors import SettingsError, TrainForgeError
from trainforge.config.settings import ExecutorSettings
from trainforge.config.trust import SigningKey
from trainforge.executor.abilities import check as check_isolation
from trainforge.executor.agent import Agent
from trainforge.executor.join import join
from trainforge.executor.link import SenderLink
from trainforge.executor.rotation import finish_rotation
from trainforge.executor.telling import tell_the_terminal
from trainforge.hooks.git import check_version

log = logging.getLogger(__name__)
LOOK_S = 1.0


@contextlib.contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """No two agents in one data directory.

    Raises:
        SettingsError: another one runs.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data_dir / "agent.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(
                f"an executor already runs in {data_dir}",
                hint="stop it first, or name another --data-dir",
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def run_executor(settings: ExecutorSettings, *, stop_jobs: bool = False) -> None:
    """Serve the sender until SIGTERM or SIGINT. Running training goes on, unless `stop_jobs`.

    Raises:
        SettingsError: not joined yet, an executor already runs in this data directory, an address is to
            be announced that it will not have, or the machine lacks what `isolation` demands.
        Forbidden: the sender has removed this executor. GitTooOld: no usable git.
    """
    check_version()
    if settings.endpoint_repository and settings.connection == "pull":
        raise SettingsError(
            "endpoint_repository goes with connection: push; who asks for work has no address",
            hint="start it with --connection push, or leave endpoint_repository out",
        )
    tell_the_terminal(debug=settings.debug)
    check_isolation(settings)
    with only_one(settings.data_dir):
        with contextlib.suppress(TrainForgeError):  # the old key is good until the sender says otherwise
            finish_rotation(settings)
        agent = Agent(settings)
        if not agent.identity.sender_url and settings.connection != "push":
            raise SettingsError(
                "an executor for one-shot senders has to be reached: connection must be push",
                hint="start it with --connection push, and a tunnel where it is not on the internet",
            )
        _serve(agent, stop_jobs=stop_jobs)


def run_visitor(settings: ExecutorSettings, token: str) -> None:
    """Join, serve until SIGTERM or SIGINT, and leave: the key never touches a disk, nothing stays.

    Raises:
        TrainForgeError: as `join` and `run_executor`.
    """
    tell_the_terminal(debug=settings.debug)
    with tempfile.TemporaryDirectory(prefix="trainforge-visitor-") as folder:
        settings = settings.model_copy(update={"data_dir": Path(folder)})
        key = SigningKey.generate()
        identity = join(settings.sender_url, token, settings, key)
        try:
            _serve(Agent(settings, identity, key), stop_jobs=True)
        finally:
            link = SenderLink(identity, key)
            with contextlib.suppress(TrainForgeError):  # then the sender notices by itself
                link.leave()
            link.close()


def _serve(agent: Agent, *, stop_jobs: bool) -> None:
    stopping = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    settings, standing = agent.settings, agent.standing
    try:
        agent.start()
        log.info("executor %s, data in %s", settings.name, settings.data_dir)
        while not stopping.wait(LOOK_S):
            if standing.removed.is_set() and not any(node.is_alive() for node in agent.nodes.values()):
                raise standing.why
    finally:
        agent.close(stop_jobs=stop_jobs)
        for number, handler in before.items():
            signal.signal(number, handler)
