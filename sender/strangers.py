"""Doors that anybody can knock at: who knocks wrongly too often waits, and is not even read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from trainforge.config.errors import TooMany
from trainforge.sender.context import Sender
from trainforge.sender.throttle import network


@contextmanager
def strangers(request: Request) -> Iterator[None]:
    """Around reading and checking what somebody sends who is not known yet; errors count against them.

    Raises:
        TooMany: they have to wait.
    """
    sender: Sender = request.app.state.sender
    who, now = network(request.client.host if request.client else ""), time.monotonic()
    wait = sender.strangers.wait(who, now)
    if wait > 0:
        raise TooMany("too many requests that were refused", retry_after=wait, hint=f"wait {wait:.0f} s")
    sender.strangers.start(who, now)
    yield
    sender.strangers.take_back(who)
