"""Fencing tokens that only ever go up, also when the database is restored from a backup.

A file beside the database repeats the last token given out. If the database is behind the file, or the
file is missing, this may be an older copy of the database, whose next numbers may have been used: the
incarnation goes up, and with it every token from then on.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from trainforge.config.failpoints import failpoint
from trainforge.config.messages import FencingToken
from trainforge.sender.store import Store

_KEY = "fence_incarnation"
RESTORED = "restored"  # when this was last recognised as an older copy
RESTORE_S = 4.0  # no two restores are as close as this; a 32-bit column holds such numbers until 2242


def recognise(known: int | None, number: int, file: tuple[int, int] | None, now: float) -> tuple[int, bool]:
    """The incarnation of a sender whose database says (known, number) and whose file says `file`.

    Also whether this may be an older copy of the database. Without the file nothing tells which
    incarnations were used since that copy was made, so the clock gives one that was not.
    """
    if known is None and file is None:
        return 1, False
    if known is not None and file is not None and file <= (known, number):
        return known, False
    last = file[0] if file is not None else int(now // RESTORE_S)
    return max(known or 0, last) + 1, True


class Fence:
    def __init__(self, store: Store, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._store, self._path, self._clock = store, path, clock
        self._lock = threading.Lock()
        self.incarnation = self._recognise()

    def next(self) -> FencingToken:
        """A new token, on disk in both places before anybody hears of it."""
        with self._lock:
            token = self._store.next_token(self.incarnation)
            self._write(token.number)
        return token

    @property
    def restored(self) -> bool:
        """Whether this database was an older copy once: jobs that it does not know may have ended."""
        return self._restored

    def raise_above(self, incarnation: int) -> None:
        """Tokens up to this incarnation may have been given out by a later copy of the database."""
        now = self._clock()
        with self._lock:
            self.incarnation = max(self.incarnation, incarnation) + 1
            self._store.set_meta(_KEY, str(self.incarnation))
            self._store.set_meta(RESTORED, str(now))
            self._restored = True
            self._write(int(self._store.get_meta("fence_number") or 0))
        self._store.audit_restored(self.incarnation, now)

    def _recognise(self) -> int:
        failpoint("42.sender.recognise")
        known = self._store.get_meta(_KEY)
        number = int(self._store.get_meta("fence_number") or 0)
        file = self._read()
        now = self._clock()
        incarnation, restored = recognise(None if known is None else int(known), number, file, now)
        if restored:
            self._store.audit_restored(incarnation, now)
            self._store.set_meta(RESTORED, str(now))
        self._restored = self._store.get_meta(RESTORED) is not None
        self._store.set_meta(_KEY, str(incarnation))
        self.incarnation = incarnation
        self._write(number)
        return incarnation

    def _read(self) -> tuple[int, int] | None:
        try:
            data = json.loads(self._path.read_text())
            return int(data["incarnation"]), int(data["number"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write(self, number: int) -> None:
        aside = self._path.with_suffix(".new")
        with aside.open("w") as file:
            json.dump({"incarnation": self.incarnation, "number": number}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)
