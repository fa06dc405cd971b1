"""A thousand executors and ten thousand queued jobs on one sender: is any job lost or placed twice?

    python tests/benchmarks/fleet.py --executors 1000 --jobs 10000 --seconds 900

The sender is the real program; the executors are simulated in this process, each with its own key, and
speak the real protocol over loopback: signed heartbeats, long polls, journals, and results committed to
the built-in repository, by one writer for all of them. They come within ten seconds, and a job trains for
0 to 300 seconds. It ends when all jobs have ended, or after so many seconds. Printed: jobs queued and
ended per second, how late heartbeats were answered beside a bare request to /health at the same moment,
the sender's processor time and memory, and what must be nothing: jobs placed twice, failed or lost, and
errors. 10,000 jobs are queued in three minutes or more.
What a single request costs the sender is measured by `requests.py`; docs/planning.md has figures of both.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import sqlite3
import ssl
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil
from programs import sender_in

from trainforge.config.messages import (
    Capabilities,
    Claim,
    ClaimReply,
    Heartbeat,
    JoinRequest,
    Load,
    NodeKey,
    Order,
    RunOrder,
)
from trainforge.config.result import JobRecord, commit_message, result_files
from trainforge.config.trust import SigningKey, executor_id, sign_request, verify_order

MANIFEST = "project: {name: load}\ntraining: {script: train.py, launcher: python}\n"
MACHINE = Capabilities(hostname="box", cpu_count=4, memory_bytes=8 * 2**30, disk_free_bytes=2**40)
CHALLENGE = "c" * 24
HEARTBEAT_S = 10.0


class Run:
    """What is counted while the fleet runs."""

    def __init__(self, url: str, token: str, folder: Path, options: argparse.Namespace) -> None:
        self.url, self.token, self.folder = url, token, folder
        self.jobs, self.longest = options.jobs, options.longest
        self.secured = ssl.create_default_context()  # unused, but making one for each client takes long
        self.client = self.new_client()
        self.sender = ""
        self.sender_key: dict[str, str] = {}
        self.started: Counter[str] = Counter()
        self.ended = 0
        self.heartbeats: list[float] = []
        self.health: list[float] = []
        self.errors: Counter[str] = Counter()
        self.results: asyncio.Queue[tuple[JobRecord, asyncio.Future[str]]] = asyncio.Queue()
        self.over = asyncio.Event()
        self.states: dict[str, int] = {}

    def new_client(self) -> httpx2.AsyncClient:
        """Each executor has its own: a request looks at all connections of its client."""
        return httpx2.AsyncClient(base_url=self.url, timeout=60, verify=self.secured, trust_env=False)

    async def api(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = await self.client.request(method, path, json=body, headers=headers)
        answer.raise_for_status()
        return answer.json()


class Simulated:
    """One executor: takes jobs, lets some time pass, reports them, and commits their results."""

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.name = run, f"box-{number:04}"
        self.client = run.new_client()
        self.key = SigningKey.generate()
        self.id = executor_id(self.key.public)
        self.nodes: dict[str, NodeKey] = {}
        self.written: dict[str, int] = {}
        self.runs: dict[str, Order] = {}
        self.training: set[asyncio.Task[None]] = set()

    async def send(self, method: str, path: str, message: Any = None) -> Any:
        body = (
            message if isinstance(message, bytes) else message.model_dump_json().encode() if message else b""
        )
        proof = sign_request(
            self.key,
            subject=self.id,
            audience=self.run.sender,
            method=method,
            path=path,
            body=body,
            now=time.time(),
        )
        answer = await self.client.request(method, path, content=body, headers={"Authorization": proof})
        answer.raise_for_status()
        return answer.json()

    async def join(self) -> None:
        token = (await self.run.api("POST", "/api/join-tokens"))["token"]
        wish = JoinRequest(token=token, name=self.name, public_key=self.key.public, capabilities=MACHINE)
        self.run.sender_key = (await self.send("POST", "/v1/join", wish))["sender_key"]

    async def beat(self) -> None:
        await self.arrive()
        while not self.run.over.is_set():
            began = time.monotonic()
            said = Heartbeat(capabilities=MACHINE, load=Load(), nodes=list(self.nodes.values()))
            try:
                await self.send("POST", "/v1/heartbeat", said)
                self.run.heartbeats.append(time.monotonic() - began)
            except httpx2.HTTPError as error:
                self.run.errors[f"heartbeat: {type(error).__name__}"] += 1
            await _pause(self.run.over, HEARTBEAT_S)

    async def arrive(self) -> None:
        """Machines are not all switched on in the same second."""
        await _pause(self.run.over, random.uniform(0, HEARTBEAT_S))  # noqa: S311

    async def work(self) -> None:
        await self.arrive()
        accepted: list[str] = []
        while not self.run.over.is_set():
            claim = Claim(challenge=CHALLENGE, wait_s=20, accepted=accepted)
            try:
                reply = ClaimReply.model_validate(await self.send("POST", "/v1/claims", claim))
                accepted = []
                for token in reply.orders:
                    order = self.read(token)
                    await self.obey(order)
                    accepted.append(order.id)
            except httpx2.HTTPError as error:
                self.run.errors[f"claim: {type(error).__name__} {str(error)[:60]}"] += 1
                await _pause(self.run.over, 1)

    def read(self, token: str) -> Order:
        sender, keys = self.run.sender, {self.run.sender: self.run.sender_key}
        return verify_order(
            token, sender=sender, keys=keys, executor=self.id, now=time.time(), challenge=CHALLENGE
        )

    async def obey(self, order: Order) -> None:
        node, kind = order.node, order.body.kind
        if kind == "run" and str(node) not in self.runs:
            self.run.started[str(node)] += 1
            self.nodes[str(node)], self.runs[str(node)] = node, order
            self.written[str(node)] = 0
            started = {"argv": ["python"], "processes": 1, "pid": 1}
            await self.journal(order, ("started", started))
            task = asyncio.create_task(self.train(order))
            self.training.add(task)
            task.add_done_callback(self.training.discard)
        elif kind == "publish":
            await self.publish(order)
        elif kind == "forget":
            self.nodes.pop(str(node), None)

    async def train(self, order: Order) -> None:
        await _pause(self.run.over, random.uniform(0, self.run.longest))  # noqa: S311
        log = {"rank": 0, "text": "trained\n"}
        try:
            await self.journal(order, ("log", log), ("ended", {"exit_code": 0}))
        except httpx2.HTTPError as error:
            self.run.errors[f"journal: {type(error).__name__} {str(error)[:60]}"] += 1

    async def publish(self, order: Order) -> None:
        node, run = order.node, self.runs[str(order.node)].body
        assert isinstance(run, RunOrder)
        path = f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}/record"
        record = JobRecord.model_validate(await self.send("GET", path))
        commit: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        await self.run.results.put((record, commit))
        folder = record.path
        said = {"branch": record.results_branch, "path": folder, "commit": await commit}
        await self.journal(order, ("published", said | {"outcome": record.outcome}))
        self.run.ended += 1
        if self.run.ended == self.run.jobs:
            self.run.over.set()

    async def journal(self, order: Order, *records: tuple[str, dict[str, Any]]) -> None:
        node = order.node
        after = self.written[str(node)]
        rows = [
            {"n": after + i, "time": time.time(), "kind": kind, "data": data}
            for i, (kind, data) in enumerate(records, start=1)
        ]
        batch = {"token": order.token.model_dump(), "after": after, "records": rows}
        path = f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}/journal"
        await self.send("POST", path, json.dumps(batch).encode())
        self.written[str(node)] = after + len(records)


async def _commit_results(run: Run) -> None:
    """A thousand machines push their results themselves; here one process commits what has come up."""
    repository = run.folder / "sender" / "git" / "load.git"
    while True:
        results = [await run.results.get()]
        while not run.results.empty() and len(results) < 50:
            results.append(run.results.get_nowait())
        commit = await asyncio.to_thread(_fast_import, repository, [record for record, _ in results])
        for _, waiting in results:
            waiting.set_result(commit)


def _fast_import(repository: Path, records: list[JobRecord]) -> str:
    git = ["git", "-C", str(repository), "-c", "fastimport.unpackLimit=100000"]
    branch = f"refs/heads/{records[0].results_branch}"
    known = subprocess.run([*git, "rev-parse", "-q", "--verify", branch], check=False, capture_output=True)
    message = commit_message(records[0]).encode()
    said = [b"commit %s\ncommitter Load <load@example.org> %d +0000\n" % (branch.encode(), int(time.time()))]
    said.append(b"data %d\n%s\n" % (len(message), message))
    if known.returncode == 0:
        said.append(b"from %s\n" % known.stdout.strip())
    for record in records:
        folder = record.path
        for name, data in dict(result_files(record, [])).items():
            assert isinstance(data, bytes)
            said.append(b"M 644 inline %s\ndata %d\n%s\n" % (f"{folder}/{name}".encode(), len(data), data))
    subprocess.run([*git, "fast-import", "--quiet"], input=b"".join(said), check=True)
    done = subprocess.run([*git, "rev-parse", branch], check=True, capture_output=True, text=True)
    return done.stdout.strip()


async def _pause(over: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(over.wait(), seconds)
    except TimeoutError:
        return


async def _ask_health(run: Run) -> None:
    while not run.over.is_set():
        began = time.monotonic()
        await run.client.get("/health")
        run.health.append(time.monotonic() - began)
        await _pause(run.over, 0.5)


async def _in_turn(tasks: list[Any], side_by_side: int) -> None:
    gate = asyncio.Semaphore(side_by_side)

    async def one(task: Any) -> None:
        async with gate:
            await task

    await asyncio.gather(*(one(task) for task in tasks))


async def measure(options: argparse.Namespace, folder: Path, sender: subprocess.Popen[bytes]) -> bool:
    about = json.loads((folder / "sender" / "sender.json").read_text())
    token = json.loads((folder / "home" / "trainforge" / "client.json").read_text())["token"]
    run = Run(about["url"].rstrip("/"), token, folder, options)
    run.sender = (await run.client.get("/health")).json()["sender"]
    commit = _push(folder, run)
    began = time.monotonic()
    wish = {"repository": "load", "commit": commit, "ref": "refs/heads/main", "rerun": True}
    await _in_turn([run.api("POST", "/api/jobs", wish) for _ in range(options.jobs - 1)], 8)
    queued = time.monotonic() - began
    fleet = [Simulated(run, number) for number in range(options.executors)]
    await _in_turn([executor.join() for executor in fleet], 8)
    process = psutil.Process(sender.pid)
    began, computed = time.monotonic(), _computed(process)
    loops = [asyncio.create_task(e.beat()) for e in fleet] + [asyncio.create_task(e.work()) for e in fleet]
    loops.append(asyncio.create_task(_ask_health(run)))
    writer = asyncio.create_task(_commit_results(run))
    await _pause(run.over, options.seconds)
    seconds, computed = time.monotonic() - began, _computed(process) - computed
    memory = process.memory_info().rss / 2**20
    run.over.set()
    for ended in await asyncio.gather(*loops, return_exceptions=True):
        if isinstance(ended, Exception):
            run.errors[f"{type(ended).__name__}: {str(ended)[:60]}"] += 1
    writer.cancel()
    run.states = await _count_states(run, folder)
    print(f"queued {options.jobs} jobs at {options.jobs / queued:.0f}/s")
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    print(f"{options.executors} executors; load of this machine's {os.cpu_count()} cores: {load}")
    return _report(run, seconds, computed, memory)


def _computed(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


async def _count_states(run: Run, folder: Path) -> dict[str, int]:
    """How many jobs the sender has in each state, once those that have a result have got their end."""
    rows = sqlite3.connect(f"file:{folder / 'sender' / 'trainforge.db'}?mode=ro", uri=True)
    deadline = time.monotonic() + 60
    with contextlib.closing(rows):
        while True:
            states = dict(rows.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
            if states.get("completed", 0) >= run.ended or time.monotonic() > deadline:
                return states
            await asyncio.sleep(0.5)


def _report(run: Run, seconds: float, computed: float, memory: float) -> bool:
    twice = sum(count > 1 for count in Counter(key.split(".")[0] for key in run.started).values())
    lost = run.jobs - sum(run.states.values())
    unseen = max(run.ended - run.states.get("completed", 0), 0)
    failed = run.states.get("failed", 0)
    worst = max(run.heartbeats)
    late = statistics.quantiles(run.heartbeats, n=100)[98]
    print(
        f"ended {run.ended} jobs in {seconds:.0f} s, {run.ended / seconds:.1f}/s, {len(run.started)} started"
    )
    median, bare = statistics.median(run.heartbeats), statistics.median(run.health)
    print(
        f"heartbeats: {len(run.heartbeats)}, half of them within {median * 1000:.0f} ms, 99 % within", end=" "
    )
    print(f"{late * 1000:.0f} ms, the worst {worst * 1000:.0f} ms")
    print(f"  {median / bare:.1f} times a bare request to /health ({bare * 1000:.0f} ms)")
    print(f"sender: {computed / seconds:.0%} of one core, {memory:.0f} MiB; jobs {run.states}")
    print(f"results that the sender has not looked at a minute later: {unseen}")
    print(f"placed twice: {twice}; failed: {failed}; lost: {lost}; errors: {dict(run.errors) or 'none'}")
    wrong = twice or failed or lost or run.errors
    return not wrong and worst < HEARTBEAT_S and memory < 300 and run.ended > 0


def _push(folder: Path, run: Run) -> str:
    project = folder / "load"
    project.mkdir()
    (project / "trainforge.yaml").write_text(MANIFEST)
    (project / "train.py").write_text("print('trained')\n")
    who = ["-c", "user.name=Load", "-c", "user.email=load@example.org"]
    auth = f"Authorization: Basic {_basic(run.token)}"
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        [*who, "commit", "-q", "-m", "Load"],
        ["-c", f"http.extraHeader={auth}", "push", "-q", f"{run.url}/git/load.git", "main"],
    ):
        subprocess.run(["git", *command], cwd=project, check=True, capture_output=True)
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _basic(token: str) -> str:
    return base64.b64encode(f"load:{token}".encode()).decode()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executors", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--longest", type=float, default=300, help="seconds that a job trains at most")
    options = parser.parse_args()
    with sender_in("fleet") as (folder, sender):
        good = asyncio.run(measure(options, folder, sender))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
