"""The sender's disk: what is taken on while it is low, and a reserve to end well with what was taken on.

Below the mark nothing new is acknowledged: webhooks, pushes and what people ask for are answered 503, pages
can still be read, and jobs that run go on. Should the disk fill up all the same, the reserve is given up, so
that what running jobs still have to say can be stored.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from trainforge.config import disk
from trainforge.config.errors import StorageFull

log = logging.getLogger(__name__)
RESERVE_BYTES = 16 * disk.MIB
LOOK_EVERY_S = 1.0
READING = frozenset({"GET", "HEAD", "OPTIONS"})
GOES_ON = ("/v1/", "/git/", "/login", "/logout")  # the git server asks by itself: results go on, too

Refuse = Callable[[Request, Exception], Awaitable[Response]]


class TakesNothingNewWhenLow:
    """Middleware: who wants something changed is answered 503; reading, logging in and executors go on."""

    def __init__(self, app: ASGIApp, disk: Disk, refuse: Refuse) -> None:
        self._app, self._disk, self._refuse = app, disk, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http" or scope["method"] in READING or scope["path"].startswith(GOES_ON)
        ) or not self._disk.low:
            await self._app(scope, receive, send)
            return
        response = await self._refuse(Request(scope, receive), self._disk.refusal())
        await response(scope, receive, send)


class Disk:
    """Of one data directory; `mark` 0 looks at nothing."""

    def __init__(self, data_dir: Path, mark: int) -> None:
        self._folder, self._mark = data_dir, mark
        self._reserve = data_dir / "reserve"
        self._looked, self._low = -LOOK_EVERY_S, ""

    @property
    def low(self) -> str:
        """Why nothing new is taken on; empty while there is room."""
        now = time.monotonic()
        if self._mark and now - self._looked >= LOOK_EVERY_S:
            before, self._low, self._looked = self._low, disk.low(self._folder, self._mark), now
            if self._low and not before:
                log.error("nothing new is taken on: %s", self._low)
            if not self._low:
                self._keep_reserve()
                if before:
                    log.warning("there is room on the disk again")
        return self._low

    def refuse_when_low(self) -> None:
        """Raises StorageFull while nothing new is taken on."""
        if self.low:
            raise self.refusal()

    def refuse_without(self, size: int) -> None:
        """Raises StorageFull where the disk would be low with so many bytes more."""
        if self._mark and (words := disk.low(self._folder, self._mark + size)):
            raise StorageFull(f"there is no room for that much: {words}", hint="free space on that disk")

    def refusal(self) -> StorageFull:
        return StorageFull(f"this sender takes nothing new: {self._low}", hint="free space on that disk")

    def give_up_reserve(self) -> None:
        """The disk is full: what is already taken on has more need of the space."""
        with contextlib.suppress(FileNotFoundError):
            self._reserve.unlink()
            log.error("the disk is full; the reserve of %d MiB is given up", RESERVE_BYTES // disk.MIB)

    def _keep_reserve(self) -> None:
        if self._reserve.exists():
            return
        aside = self._reserve.with_suffix(".new")
        try:
            with aside.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
            aside.replace(self._reserve)
        except OSError as error:
            aside.unlink(missing_ok=True)
            log.warning("no reserve can be kept on the disk: %s", error)
