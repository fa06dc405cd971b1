"""Adding lines to git's answer to a push, in the form that the pusher's git prints as `remote: ...`."""

from __future__ import annotations

from trainforge.hooks.gitrun import sanitise

FLUSH = b"0000"
PROGRESS = b"\x02"


class LineInserter:
    """Passes a receive-pack answer on and puts lines in front of its closing flush packet.

    Only an answer in side-band packets has a place for them; any other passes unchanged.
    """

    def __init__(self) -> None:
        self.seen = False
        self._start = b""
        self._held = b""

    def pass_on(self, chunk: bytes) -> bytes:
        """What of the answer may go out now; the last four bytes are always held back."""
        self.seen = True
        if len(self._start) < 5:
            self._start = (self._start + chunk)[:5]
        data = self._held + chunk
        self._held = data[-4:]
        return data[:-4]

    def finish(self, lines: list[str]) -> bytes:
        side_band = len(self._start) == 5 and self._start[4] in (1, 2, 3)
        if not (side_band and self._held == FLUSH):
            return self._held
        return b"".join(map(_packet, lines)) + FLUSH


def _packet(line: str) -> bytes:
    data = PROGRESS + sanitise(line, 1000).replace("\n", " ").encode()[:4000] + b"\n"
    return f"{len(data) + 4:04x}".encode() + data
