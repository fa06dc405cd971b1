"""Five hundred open pages of one job that says 10,000 lines a second: does the sender still hear its machine?

    python tests/benchmarks/viewers.py --viewers 500 --lines 10000 --seconds 30

The sender is the real program; one simulated executor (as in `fleet.py`) trains, and its journal brings the
lines. Each viewer holds the stream that a page holds, over loopback. Printed: the lines that were stored a
second, how old the newest line is when a viewer has it, how long a viewer waited for news at most, how late
heartbeats were answered, and the sender's processor time with and without viewers. docs/dashboard.md has
figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import fleet
import psutil
from programs import sender_in

from trainforge.config.messages import Heartbeat, Load, Order

TICK_S = 0.1
HEARTBEAT_S = 1.0


class Chatty(fleet.Simulated):
    """Says so many lines a second; each names the moment at which it was said."""

    said = 0
    lines = 0

    def __init__(self, run: fleet.Run, number: int) -> None:
        super().__init__(run, number)
        self.talking = asyncio.Event()

    async def train(self, order: Order) -> None:
        self.talking.set()
        due = time.monotonic()
        while not self.run.over.is_set():
            count = int(self.lines * TICK_S)
            line = f"step loss=0.1234 rate=0.001 samples/s=1234 at={time.time():.3f}"
            await self.journal(order, ("log", {"rank": 0, "text": f"{line}\n" * count}))
            self.said += count
            due += TICK_S
            await fleet._pause(self.run.over, max(due - time.monotonic(), 0))

    async def beat(self) -> None:
        while not self.run.over.is_set():
            began = time.monotonic()
            said = Heartbeat(capabilities=fleet.MACHINE, load=Load(), nodes=list(self.nodes.values()))
            await self.send("POST", "/v1/heartbeat", said)
            self.run.heartbeats.append(time.monotonic() - began)
            await fleet._pause(self.run.over, HEARTBEAT_S)


class Viewer:
    def __init__(self) -> None:
        self.ages: list[float] = []
        self.longest = 0.0
        self.bytes = 0

    async def watch(self, url: str, token: str, job: str) -> None:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
        writer.write(
            f"GET /api/jobs/{job}/logs?page=1 HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Bearer {token}\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        heard = time.monotonic()
        with contextlib.closing(writer):
            while chunk := await reader.read(2**18):
                self.bytes += len(chunk)
                at = chunk.rfind(b"at=")
                moment = chunk[at + 3 : at + 17]
                if at >= 0 and len(moment) == 14:
                    now = time.monotonic()
                    self.ages.append(time.time() - float(moment))
                    self.longest, heard = max(self.longest, now - heard), now


async def measure(options: argparse.Namespace, folder: Path, sender: subprocess.Popen[bytes]) -> None:
    about = json.loads((folder / "sender" / "sender.json").read_text())
    token = json.loads((folder / "home" / "trainforge" / "client.json").read_text())["token"]
    asked = argparse.Namespace(jobs=1, longest=0)
    run = fleet.Run(about["url"].rstrip("/"), token, folder, asked)
    run.sender = (await run.client.get("/health")).json()["sender"]
    fleet._push(folder, run)
    (job,) = [one["id"] for one in (await run.api("GET", "/api/jobs"))["jobs"]]
    machine = Chatty(run, 1)
    machine.lines = options.lines
    await machine.join()
    loops = [asyncio.create_task(machine.beat()), asyncio.create_task(machine.work())]
    await machine.talking.wait()
    process = psutil.Process(sender.pid)
    without = await _during(process, machine, options.seconds / 2)
    viewers = [Viewer() for _ in range(options.viewers)]
    watching = [asyncio.create_task(one.watch(run.url, token, job)) for one in viewers]
    await asyncio.sleep(3)  # until all are there
    run.heartbeats.clear()
    with_all = await _during(process, machine, options.seconds)
    ages = sorted(age for one in viewers for age in one.ages[len(one.ages) // 4 :])
    gone = sum(task.done() for task in watching)
    run.over.set()
    for task in (*watching, *loops):
        task.cancel()
    await asyncio.gather(*watching, *loops, return_exceptions=True)
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    print(f"load of this machine's {os.cpu_count()} cores: {load}")
    print(f"without viewers: {without[0]:.0f} lines/s, sender {without[1]:.0%} of one core")
    print(f"{options.viewers} viewers: {with_all[0]:.0f} lines/s, sender {with_all[1]:.0%} of one core")
    if ages:
        print(f"newest line: {statistics.median(ages):.2f} s old, 99 % {ages[len(ages) * 99 // 100]:.2f} s")
        longest, got = max(one.longest for one in viewers), statistics.median(one.bytes for one in viewers)
        print(f"a viewer waited {longest:.2f} s for news at most; {gone} were cut off")
        print(f"each got {got / options.seconds / 1024:.0f} KiB/s")
    beats = run.heartbeats
    half, worst = statistics.median(beats), max(beats)
    print(f"{len(beats)} heartbeats, half within {half:.3f} s, the worst {worst:.3f} s")


async def _during(process: psutil.Process, machine: Chatty, seconds: float) -> tuple[float, float]:
    """Lines a second, and the share of one core that the sender took."""
    began, said, computed = time.monotonic(), machine.said, fleet._computed(process)
    await asyncio.sleep(seconds)
    passed = time.monotonic() - began
    return (machine.said - said) / passed, (fleet._computed(process) - computed) / passed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--viewers", type=int, default=500)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with sender_in("viewers") as (folder, sender):
        asyncio.run(measure(options, folder, sender))


if __name__ == "__main__":
    main()
