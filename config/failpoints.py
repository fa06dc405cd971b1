"""Named places where a test can make either program fail; off unless `TRAINFORGE_FAILPOINT` names one."""

from __future__ import annotations

import os
import signal
import time

_STALL_S = 5.0


def failpoint(name: str) -> None:
    """Fail here if `TRAINFORGE_FAILPOINT` is `name:kill`, `name:error` or `name:stall`.

    Raises:
        RuntimeError: for `error`.
    """
    wanted, _, action = os.environ.get("TRAINFORGE_FAILPOINT", "").partition(":")
    if wanted != name:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stall":
        time.sleep(_STALL_S)
    else:
        raise RuntimeError(f"failpoint {name}")
