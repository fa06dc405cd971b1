"""What every process of a training starts as: notes who it is, sends its output to files, becomes the script.

Run by path with any interpreter (`python -I -S rank.py RUN_DIR NODE_RANK`), so it uses the standard library
alone. What to run stands in the file `RUN_DIR/command`, its arguments ended by NUL: torchrun's parser
stumbles over script options that resemble its own (`--n`), and never sees them this way. It ends in `exec`:
the script keeps its own `__main__`, traceback and process id.

SIGUSR1 warns of a known end. Its default would kill a script that knows nothing of it, so it is ignored here,
which `exec` preserves, until the script handles it.

A process that finds a note of its local rank is one that torchrun started again: `again.py` comes before it.
"""

from __future__ import annotations

import os
import signal
import sys

AGAIN = "again.py"


def main(argv: list[str]) -> None:
    run, node_rank = argv[1], argv[2]
    with open(f"{run}/command", "rb") as file:  # noqa: PTH123 - pathlib would double the start-up cost
        command = file.read().split(b"\0")[:-1]
    environ = os.environ
    rank, local_rank = int(environ.get("RANK", node_rank)), int(environ.get("LOCAL_RANK", "0"))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    restart = _earlier(f"{run}/ranks/{local_rank}.json") + 1
    note = (
        f'{{"rank": {rank}, "world_size": {int(environ.get("WORLD_SIZE", "1"))}, "local_rank": {local_rank}, '
        f'"pid": {os.getpid()}, "restart": {restart}}}\n'
    )
    aside = f"{run}/ranks/.{local_rank}.{os.getpid()}"
    with open(aside, "w") as file:  # noqa: PTH123
        file.write(note)
    os.replace(aside, f"{run}/ranks/{local_rank}.json")  # noqa: PTH105
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    folder = "streams" if os.path.exists(f"{run}/streams") else "logs"  # noqa: PTH110
    if folder == "streams":
        _announce(f"{run}/streams", rank)
    for descriptor, stream in ((1, "stdout"), (2, "stderr")):
        log = os.open(f"{run}/{folder}/{rank}.{stream}", flags, 0o644)
        os.dup2(log, descriptor)
        os.close(log)
    if restart:
        again = os.path.join(os.path.dirname(os.path.abspath(__file__)), AGAIN)  # noqa: PTH100, PTH118, PTH120
        command = [command[0], os.fsencode(again), os.fsencode(run), str(restart).encode(), *command]
    try:
        os.execvp(command[0], command)  # noqa: S606 - an argument list, no shell
    except OSError as error:
        sys.stderr.write(f"{os.fsdecode(command[0])}: {error.strerror}\n")
        raise SystemExit(127) from None


def _earlier(note: str) -> int:
    """The number of this process's last restart; -1 before its first start."""
    try:
        with open(note) as file:  # noqa: PTH123
            return int(file.read().rpartition(":")[2].rstrip("}\n"))
    except FileNotFoundError:
        return -1


def _announce(streams: str, rank: int) -> None:
    """Make the pipes that lead through `masking.py` to this rank's logs, and have them opened."""
    for stream in ("stdout", "stderr"):
        if not os.path.exists(f"{streams}/{rank}.{stream}"):  # noqa: PTH110
            os.mkfifo(f"{streams}/{rank}.{stream}", 0o600)
    with open(f"{streams}/register", "w") as file:  # noqa: PTH123
        file.write(f"{rank}\n")


if __name__ == "__main__":
    main(sys.argv)
