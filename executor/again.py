"""What a process becomes that torchrun has started again, before it is the script once more.

Run by path with the job's own Python (`python again.py RUN_DIR RESTART COMMAND...`). The first process of
each node asks the executor what the node could go on from (`restarts.py` answers) and agrees with the other
nodes on the newest that all have, at the address where the training will meet. All become the script again
with that in TRAINFORGE_RESUME_FROM.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

PATIENCE_S = 600.0  # the executor may have a checkpoint to fetch; none may run at all


def main(argv: list[str]) -> None:
    run, restart, command = Path(argv[1]), argv[2], argv[3:]
    folder = run / "restarts"
    folder.mkdir(exist_ok=True)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        (folder / f"{restart}.asked").touch()
        offers = read(folder / f"{restart}.offers")
        key = next(iter(agree(list(offers))), "")
        aside = folder / f"{restart}.aside"
        aside.write_text(json.dumps({"key": key, "path": offers.get(key, "")}))
        aside.replace(folder / f"{restart}.agreed")
    agreed = read(folder / f"{restart}.agreed")
    os.environ["TRAINFORGE_RESUME_FROM"] = agreed.get("path", "")
    begin = f"from checkpoint {agreed['key']}" if agreed.get("key") else "from the beginning"
    sys.stdout.write(f"restart {restart} in place, {begin}\n")
    sys.stdout.flush()
    os.execvp(command[0], command)  # noqa: S606 - an argument list, no shell


def read(answer: Path) -> dict[str, str]:
    """What stands there, once it does; nothing if it never comes."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if answer.exists():
            found: dict[str, str] = json.loads(answer.read_text())
            return found
        time.sleep(0.05)
    return {}


def agree(keys: list[str]) -> list[str]:
    """Those that every node has, in the order of the first one."""
    nodes, node = int(os.environ.get("GROUP_WORLD_SIZE", "1")), int(os.environ.get("GROUP_RANK", "0"))
    if nodes == 1:
        return keys
    from datetime import timedelta  # noqa: PLC0415 - torch takes seconds to import, and one node needs neither

    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415

    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(
        *place, is_master=node == 0, timeout=timedelta(seconds=PATIENCE_S), wait_for_workers=False
    )
    store.set(f"has/{node}", json.dumps(keys))
    said = [json.loads(store.get(f"has/{other}")) for other in range(nodes)]
    store.set(f"read/{node}", "")
    if node == 0:  # the store is gone with this process, and its port free for the training's own
        store.wait([f"read/{other}" for other in range(nodes)])
    return [key for key in said[0] if all(key in each for each in said)]


if __name__ == "__main__":
    main(sys.argv)
