"""What happens to deadlines when the clock is set: they move along, for no time has passed.

Leases, offers, rests and time limits are stored in wall-clock time, which can jump: somebody sets it, a
network time server corrects it, a machine wakes from sleep. A steady clock beside it tells a jump from
time that passed. While no sender runs, nobody can be heard: a start gives every lease its time again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from trainforge.config.failpoints import failpoint
from trainforge.sender.context import Sender

log = logging.getLogger(__name__)
JUMP_S = 5.0


class Jumps:
    """Asked before every decision; `wall` and `steady` are the machine's two clocks."""

    def __init__(
        self,
        sender: Sender,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sender, self._wall, self._steady = sender, wall, steady
        self._lock = threading.Lock()
        self._offset = wall() - steady()

    def begin(self) -> None:
        """At start: whoever is alive has its whole lease to say so."""
        failpoint("48.sender.clock")
        sender = self._sender
        ttl = sender.settings.lease_ttl
        sender.store.renew_leases(sender.now() + ttl)
        sender.store.move_deadlines(0.0, sender.now(), ttl)

    def settle(self) -> None:
        """Move the deadlines along, if the clock was set since the last call."""
        with self._lock:
            offset = self._wall() - self._steady()
            jump, self._offset = offset - self._offset, offset
            if abs(jump) < JUMP_S:
                return
            log.warning("the clock was set %+.0f s; leases and time limits move along", jump)
            self._sender.store.move_deadlines(jump, self._sender.now(), self._sender.settings.lease_ttl)
