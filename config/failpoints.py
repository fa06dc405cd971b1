"""Named places where a test can make either program fail; off unless `TRAINFORGE_FAILPOINT` is set.

The number is the fault's in docs/reliability.md, where each has its required outcome. The variable holds
`name:action`, and fires once in each process; or `@file`, a file with `name:action` in it that whoever
fires removes, so that programs that run already can be told, and one of them fires.

    kill     the process is gone, as by `kill -9`      stall    nothing moves for five seconds
    error    an exception that nobody expects          enospc   the disk is full
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Literal, get_args

VARIABLE = "TRAINFORGE_FAILPOINT"
STALL_S = 5.0

Failpoint = Literal[
    "01.sender.look",  # about to ask a repository for its heads
    "02.sender.start",  # the database is open, nothing runs yet
    "03.sender.webhook",  # a delivery is read and its signature holds, nothing is written
    "04.sender.delivery_noted",  # it is noted, and not answered
    "05.sender.delivery_answered",  # it is answered, and not looked at
    "06.sender.push_stored",  # a push and its jobs are committed, nobody has been told
    "07.sender.delivery_known",  # the same delivery has come again
    "08.sender.nothing_new",  # a hint that tells nothing new
    "09.sender.change",  # one of the changes of a repository is about to be handled
    "10.sender.forced",  # a branch was rewritten
    "11.sender.branch_gone",  # a branch was deleted
    "12.executor.commit_gone",  # the remote does not have the job's commit any more
    "13.sender.diff",  # about to compare two commits in the sender's own mirror
    "14.sender.planned",  # a plan is made, and not stored
    "15.sender.manifest_refused",  # a manifest that cannot be used is about to become a failed job
    "16.sender.order_stored",  # an order is in the outbox, and not sent
    "17.executor.order_stored",  # an order is on disk, and its acceptance not told
    "18.executor.order_known",  # an order has come a second time
    "19.executor.refuses",  # the machine's owner does not allow a job, the sender is not told yet
    "20.sender.endpoint_moved",  # an executor says that it has another address
    "21.sender.prove",  # about to ask who answers at an executor's address
    "22.executor.heartbeat",  # about to renew the leases
    "23.executor.given_up",  # the sender does not count this node as ours any more
    "24.executor.fetch",  # the mirror is there, the commit is not
    "25.executor.environment",  # an environment is built aside, and not in its place
    "26.executor.launch",  # everything is ready, the training is about to start
    "26.executor.training",  # the training runs
    "27.executor.adopt",  # started again, about to look for what still runs
    "28.executor.exited",  # the training has ended, and nothing is said of it
    "29.executor.gather",  # about to collect what the training left
    "30.executor.pack",  # a file is about to be copied into the result
    "31.executor.commit",  # the result's contents are stored in git, the commit is not made
    "31.executor.push",  # the result is a commit, right before each push of it
    "31.sender.push",  # the sender is about to publish where no executor can
    "32.executor.pushed",  # the remote has the result, nothing is noted
    "32.sender.pushed",  # the remote has the sender's, the sender has not noted it
    "33.git.moved",  # the branch moved, about to try again on its new tip (either program)
    "34.executor.blocked",  # the remote refuses the result
    "35.executor.remote_down",  # the remote cannot be reached, the result waits
    "36.executor.credential",  # about to ask for a credential to push with
    "37.executor.published",  # published and noted, and not told
    "38.sender.look_at_result",  # told that a result is published, about to look
    "39.executor.disk",  # about to write a work tree
    "40.sender.write",  # about to begin a transaction that writes
    "41.sender.check",  # about to check the database file
    "42.sender.recognise",  # about to find out whether the database is an older copy
    "43.sender.meta_ref",  # about to note on the remote that this sender works for it
    "44.executor.stop",  # about to end a training that was stopped
    "45.sender.stop_stored",  # a stop is stored, and nobody told
    "46.sender.revoked",  # an executor is removed, and nobody told
    "47.sender.rotated",  # the sender has a new key, and nobody told
    "48.sender.clock",  # leases are about to be given their time again after a start
    "49.sender.result_missing",  # results that were on the remote are not there any more
    "50.sender.journal_stored",  # a journal batch is stored, and not acknowledged
    "51.sender.migrate",  # the schema is changed, and not committed
    "52.sender.shutdown",  # asked to end, about to close
]
POINTS: tuple[Failpoint, ...] = get_args(Failpoint)
_fired: set[str] = set()


def failpoint(name: Failpoint) -> None:
    """Fail here, if that is asked for.

    Raises:
        RuntimeError: for `error`. OSError: for `enospc`.
    """
    if (asked := os.environ.get(VARIABLE)) and (action := _action(name, asked)):
        _fail(name, action)


def _action(name: Failpoint, asked: str) -> str:
    """What is to happen here now; empty for nothing."""
    if asked.startswith("@"):
        file = Path(asked[1:])
        try:
            wanted, _, action = file.read_text().partition(":")
            if wanted != name:
                return ""
            file.replace(f"{file}.fired")  # whoever succeeds is the one that fires
        except OSError:
            return ""
        return action.strip()
    wanted, _, action = asked.partition(":")
    if wanted != name or name in _fired:
        return ""
    _fired.add(name)
    return action


def _fail(name: Failpoint, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stall":
        time.sleep(STALL_S)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    else:
        raise RuntimeError(f"failpoint {name}")
