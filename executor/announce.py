"""Tells a repository where this executor is reached, on the branch `trainforge-executors`.

All that is said is the endpoint file: no key but the public one, no token. A remote that is down is tried
again, with what is newest by then.
"""

from __future__ import annotations

import logging
import threading

from trainforge.config.errors import TrainForgeError
from trainforge.config.messages import Endpoint, GitCredential
from trainforge.config.settings import ExecutorSettings
from trainforge.hooks.branch_files import write_files
from trainforge.hooks.triggers import EXECUTORS_BRANCH

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 300.0
README = b"""\
# Executors

Where this project's TrainForge executors are reached: one file each in `executors/`, written by the
executor itself whenever its address changes. `public_key` is what it proves itself with; nothing is secret.
"""


class Announcer(threading.Thread):
    """Commits the newest endpoint it was told; `tell` returns at once."""

    def __init__(self, settings: ExecutorSettings) -> None:
        super().__init__(name="announcer", daemon=True)
        self.settings = settings
        self._newest: Endpoint | None = None
        self._told = threading.Event()
        self._closing = False

    def tell(self, endpoint: Endpoint) -> None:
        self._newest = endpoint
        self._told.set()

    def close(self) -> None:
        self._closing = True
        self._told.set()
        if self.is_alive():
            self.join(5)

    def run(self) -> None:
        pause: float | None = None
        failed = ""
        while True:
            self._told.wait(pause)
            self._told.clear()
            if self._closing:
                return
            try:
                self._commit()
            except (TrainForgeError, OSError) as error:
                if str(error) != failed:
                    log.warning("cannot announce the address: %s; it is tried again", error)
                failed = str(error)
                pause = min((pause or 1.0) * 2, LONGEST_PAUSE_S)
            else:
                pause, failed = None, ""
                log.info("announced on the branch %s", EXECUTORS_BRANCH)

    def _commit(self) -> None:
        endpoint, settings = self._newest, self.settings
        if endpoint is None:
            return
        token = settings.git_token.get_secret_value()
        text = endpoint.model_dump_json(indent=2) + "\n"
        write_files(
            settings.data_dir / "announced.git",
            settings.endpoint_repository,
            EXECUTORS_BRANCH,
            {"README.md": README, f"executors/{endpoint.name}.json": text.encode()},
            message=f"{endpoint.name} is at {endpoint.public_url}\n\n[skip ci]\n",
            credential=GitCredential(username=settings.git_username, password=token) if token else None,
            allow_file=True,  # the owner of this machine has named it
        )
