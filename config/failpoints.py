"""Named places where a test can make either program fail; off unless `TRAINFORGE_FAILPOINT` names one.

executor.launch    everything is ready, the training is about to start
executor.publish   the result is gathered, git is about to begin
executor.push      the result is a commit, right before each push of it
executor.pushed    the remote has it, nobody has been told yet
sender.push        the sender is about to publish where no executor can
sender.pushed      the remote has that, the sender has not noted it yet
"""

from __future__ import annotations

import os
import signal
import time
from typing import Literal

_STALL_S = 5.0

Failpoint = Literal[
    "executor.launch",
    "executor.publish",
    "executor.push",
    "executor.pushed",
    "sender.push",
    "sender.pushed",
]


def failpoint(name: Failpoint) -> None:
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
