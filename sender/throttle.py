"""How often somebody may try: some times freely, then after a pause that doubles. Pure but for its table.

The table is bounded and lives in memory: a restart forgets it, which nobody outside can bring about.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from trainforge.config.errors import TooMany

MAX_KEYS = 20_000


@dataclass
class _Tries:
    count: int
    last: float
    until: float


class Throttle:
    """`free` tries, then pauses of 1, 2, 4, ... seconds up to `longest`; forgotten after `forget_s`.

    A try counts as failed from its start, so that many at once are not more than one after the other.
    """

    def __init__(self, free: int, longest: float, forget_s: float) -> None:
        self._free, self._longest, self._forget_s = free, longest, forget_s
        self._tries: OrderedDict[str, _Tries] = OrderedDict()

    def wait(self, key: str, now: float) -> float:
        """For how many seconds nothing may be tried."""
        tries = self._tries.get(key)
        return 0.0 if tries is None or now - tries.last > self._forget_s else max(tries.until - now, 0.0)

    def start(self, key: str, now: float) -> None:
        tries = self._tries.pop(key, None)
        count = 1 if tries is None or now - tries.last > self._forget_s else tries.count + 1
        beyond = min(count - self._free, 30)
        pause = min(2.0 ** (beyond - 1), self._longest) if beyond > 0 else 0.0
        self._tries[key] = _Tries(count, now, now + pause)
        while len(self._tries) > MAX_KEYS:
            self._tries.popitem(last=False)

    def take_back(self, key: str) -> None:
        """The try that was started was a good one."""
        if (tries := self._tries.get(key)) is not None:
            tries.count, tries.until = max(tries.count - 1, 0), 0.0

    def forget(self, key: str) -> None:
        self._tries.pop(key, None)


class LoginThrottles:
    """Per account, wherever from, and per address, whatever account.

    An account's pause is short enough that wrong guesses of others do not keep its owner out for long, and
    one-time links are not throttled at all: they cannot be guessed.
    """

    def __init__(self) -> None:
        self._accounts = Throttle(free=5, longest=60, forget_s=3600)
        self._addresses = Throttle(free=20, longest=900, forget_s=3600)

    def start(self, account: str, address: str, now: float) -> None:
        """Begin a try, or refuse it without counting it. An empty account is throttled by address alone.

        Raises:
            TooMany: not yet.
        """
        where = network(address)
        wait = max(self._addresses.wait(where, now), self._accounts.wait(account, now) if account else 0.0)
        if wait > 0:
            raise TooMany(
                "too many logins failed",
                retry_after=wait,
                hint=f"try again in {wait:.0f} s, or by a link that `trainforge user link NAME` prints",
            )
        self._addresses.start(where, now)
        if account:
            self._accounts.start(account, now)

    def succeeded(self, account: str, address: str) -> None:
        """Good logins between bad ones do not give an address its free tries anew."""
        self._addresses.take_back(network(address))
        if account:
            self._accounts.forget(account)


def network(address: str) -> str:
    """One household's addresses of version 6 count as one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
