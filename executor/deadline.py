"""When a training has to have ended, and when it is warned of that. Pure."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_WARNING_S = 120.0
SHARE = 0.1  # of the time there is


@dataclass(frozen=True)
class Deadline:
    """Unix seconds, 0 for never. `why` is the supervisor's word for it: timeout_run or session_end."""

    at: float = 0.0
    why: str = ""
    warn_at: float = 0.0

    @property
    def words(self) -> str:
        return "timeout.run" if self.why == "timeout_run" else "the end of the machine's session"


def deadline(
    now: float, *, run: float | None, session_ends: float, grace: float, warning: float | None
) -> Deadline:
    """The earlier of both ends. Before a session's there is left the time that a stop may take."""
    ends = [(now + run, "timeout_run")] if run else []
    if session_ends:
        ends.append((max(now, session_ends - grace), "session_end"))
    if not ends:
        return Deadline()
    at, why = min(ends)
    before = warning if warning is not None else min(LONGEST_WARNING_S, (at - now) * SHARE)
    return Deadline(at, why, max(now, at - before))
