"""Machines: executors under the first API's name, and those that are expected but have not joined."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pynvml

from trainforge import __version__
from trainforge.config.errors import Conflict, NotFound, TrainForgeError
from trainforge.config.views import ExecutorView
from trainforge.hooks.outward import guarded_client
from trainforge.sender import actions
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.dispatch import prove
from trainforge.sender.notify import EXECUTORS, orders_key, seen_key
from trainforge.sender.store_audit import SENDER

KIND = "machine"
PENDING = "pending-"
ANSWER_S = 5.0
LOOK_S = 1.0
BEATS = 1.5  # an executor that does not ask for work still reports this often
AT_ONCE = 64
SCARCE = 0.95
LITTLE_DISK = 5 * 2**30
START = "is `trainforge executor start` running there?"


_STATUS = {"draining": "busy", "revoked": "offline", "pending": "offline"}  # in the first API's words


# --- showing --------------------------------------------------------------------------------------------


def machine(view: ExecutorView, expected: dict[str, Any] | None = None) -> dict[str, Any]:
    """The first API's `Machine`; what is beyond it helps people. Sizes are bytes."""
    has, load = view.capabilities, view.load
    endpoint = urlsplit(view.endpoint)
    told = expected or {}
    return {
        "id": view.id,
        "name": view.name,
        "host": told.get("host") or endpoint.hostname or has.hostname,
        "port": told.get("port") or endpoint.port or 0,
        "status": _STATUS.get(view.status, view.status),
        "capabilities": {
            "gpu_count": len(has.gpus),
            "gpu_memory": sum(gpu.memory_bytes for gpu in has.gpus),
            "cpu_count": has.cpu_count,
            "memory": has.memory_bytes,
            "disk_space": has.disk_free_bytes,
        },
        "current_load": {
            "cpu_usage": load.cpu_percent,
            "memory_usage": 100 * load.memory_bytes / has.memory_bytes if has.memory_bytes else 0.0,
            "gpu_usage": load.gpu_percent,
        },
        "pending": False,
        "draining": view.status == "draining",
        "connection": view.connection,
        "last_seen": view.last_seen,
        "jobs": view.jobs,
        "max_jobs": has.max_jobs,
        "gpus": [gpu.model_dump() for gpu in has.gpus],
        "labels": has.labels,
        "host_id": has.host_id,
    }


def _expected(name: str, told: dict[str, Any]) -> dict[str, Any]:
    nothing = {"gpu_count": 0, "gpu_memory": 0, "cpu_count": 0, "memory": 0, "disk_space": 0}
    return {
        "id": PENDING + name,
        "name": name,
        "host": told["host"],
        "port": told["port"],
        "status": "offline",
        "capabilities": nothing,
        "current_load": {"cpu_usage": 0.0, "memory_usage": 0.0, "gpu_usage": []},
        "pending": True,
        "hint": "it has not joined yet: run its join line there, or add it again for a new one",
    }


def members(sender: Sender) -> list[ExecutorView]:
    return [view for view in sender.queries.executors(sender.now()) if view.status != "revoked"]


def everything(sender: Sender) -> list[dict[str, Any]]:
    expected, joined = sender.store.documents(KIND), members(sender)
    names = {view.name for view in joined}
    return [machine(view, expected.get(view.name)) for view in joined] + [
        _expected(name, told) for name, told in expected.items() if name not in names
    ]


def find(sender: Sender, which: str) -> dict[str, Any]:
    """By id, name or address. Raises NotFound, or Conflict for an address of several."""
    known = everything(sender)
    name = which.removeprefix(PENDING)
    for keys in (("id",), ("name",), ("host",)):
        found = [one for one in known if any(one[key] in {which, name} for key in keys)]
        if len(found) > 1:
            several = ", ".join(one["name"] for one in found[:5])
            raise Conflict(f"several machines are at {which[:80]}: {several}", hint="say which by name")
        if found:
            return found[0]
    raise NotFound(f"there is no machine {which[:80]}", hint="`trainforge executor list` lists them")


def joined(sender: Sender, which: str) -> ExecutorView:
    """The same of those that have joined. Raises NotFound, Conflict."""
    found = find(sender, which)
    if found["pending"]:
        raise Conflict(f"{found['name']} has not joined yet", hint=found["hint"])
    return sender.queries.executor(found["id"], sender.now())


async def arrival(sender: Sender, which: str, wait: float) -> dict[str, Any]:
    """The machine as it is once it has joined and reports, or when so many seconds are over.

    Raises:
        NotFound, Conflict: as `find`.
    """
    end = time.monotonic() + wait
    with sender.bell.listen(EXECUTORS) as listener:
        while True:
            found = await in_thread(find, sender, which)
            left = end - time.monotonic()
            if left <= 0 or sender.stopping or (not found["pending"] and found["status"] != "offline"):
                return found
            await listener.wait(min(left, LOOK_S))


# --- adding and removing --------------------------------------------------------------------------------


def add(sender: Sender, name: str, host: str, port: int) -> dict[str, Any]:
    """Expect a machine. It must prove its key, so it joins by the line given here, once.

    Raises:
        Conflict: one of this name has joined already.
    """
    invitation = expect(sender, name, host, port)
    told = {"host": host, "port": port}
    line = f"{invitation['command']} --name {name} && trainforge executor start"
    hint = f"run the join line on {host} before {_clock(invitation['expires'])}; it works once"
    return _expected(name, told) | {
        "join_command": line,
        "expires": invitation["expires"],
        "hint": hint,
    }


def expect(
    sender: Sender, name: str, host: str = "", port: int = 0, actor: str = SENDER, **kind: Any
) -> dict[str, Any]:
    """Note that a machine is to come; gives the invitation for it, `kind` as `registry.create_join_token`.

    Raises:
        Conflict: one of this name has joined already.
    """
    if any(view.name == name for view in members(sender)):
        raise Conflict(f"a machine called {name} has joined already", hint="give this one another name")
    sender.store.put_document(KIND, name, {"host": host, "port": port}, sender.now())
    sender.bell.ring(EXECUTORS)
    return actions.invite(sender, actor, **kind)


def _clock(moment: float) -> str:
    return time.strftime("%H:%M UTC", time.gmtime(moment))


def remove(sender: Sender, which: str) -> dict[str, Any]:
    """Raises NotFound."""
    found = find(sender, which)
    sender.store.drop_document(KIND, found["name"])
    if not found["pending"]:
        actions.remove_executor(sender, found["id"])
    sender.bell.ring(EXECUTORS)
    return {"removed": found["id"], "name": found["name"]}


# --- asking ---------------------------------------------------------------------------------------------


async def ping(sender: Sender, view: ExecutorView, wait: float | None = None) -> dict[str, Any]:
    """Have the executor prove that it is there: at its endpoint, or by what it says next."""
    begun = time.monotonic()
    why = await _prove(sender, view) if view.endpoint else await _listen(sender, view, wait)
    now = await in_thread(sender.queries.executor, view.id, sender.now())
    return {
        "machine_id": view.id,
        "name": view.name,
        "reachable": not why,
        "status": machine(now)["status"],
        "latency_ms": None if why else round(1000 * (time.monotonic() - begun), 1),
        "asked": view.endpoint or "the executor's own connection",
        "last_seen": now.last_seen,
        "error": why,
    }


async def _prove(sender: Sender, view: ExecutorView) -> str:
    member = await in_thread(sender.store.member, view.id)
    if member is None:
        return f"{view.name} was removed"
    try:
        private = sender.settings.allow_private_endpoints
        async with guarded_client(allow_private=private, timeout=ANSWER_S) as client:
            await prove(sender, client, member)
    except (httpx2.HTTPError, httpx2.InvalidURL, TrainForgeError) as error:
        return f"{view.endpoint} does not answer as {view.name}: {error or type(error).__name__}"
    return ""


async def _listen(sender: Sender, view: ExecutorView, wait: float | None) -> str:
    """An executor that pulls is always waiting for an answer: it gets an empty one, and asks again."""
    alive = view.status != "offline"
    patience = wait or (max(ANSWER_S, BEATS * sender.settings.heartbeat_every) if alive else ANSWER_S)
    with sender.bell.listen(seen_key(view.id)) as listener:
        sender.asked.add(view.id)
        sender.bell.ring(orders_key(view.id))
        heard = await listener.wait(patience)
        sender.asked.discard(view.id)
    return "" if heard else f"{view.name} was not heard of for {patience:.0f} s"


async def health_check(sender: Sender) -> dict[str, Any]:
    """Ask every machine, and say of each what is wrong and what to do."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def check(view: ExecutorView) -> dict[str, Any]:
        async with gate:
            answer = await ping(sender, view)
        problems = diagnose(view, answer, sender.now())
        return {**answer, "healthy": answer["reachable"] and not problems, "problems": problems}

    views = await in_thread(members, sender)
    checked = list(await asyncio.gather(*map(check, views)))
    waiting = [one for one in await in_thread(everything, sender) if one["pending"]]
    checked += [
        {"machine_id": one["id"], "name": one["name"], "reachable": False, "status": "offline",
         "healthy": False, "problems": [one["hint"]]}
        for one in waiting
    ]  # fmt: skip
    healthy = sum(bool(one["healthy"]) for one in checked)
    return {"healthy": healthy, "unhealthy": len(checked) - healthy, "machines": checked}


def diagnose(view: ExecutorView, answer: dict[str, Any], now: float) -> list[str]:
    """In words a person can act on."""
    has, load = view.capabilities, view.load
    problems = []
    if not answer["reachable"]:
        ago = f"{now - view.last_seen:.0f} s ago" if view.last_seen else "never"
        doing = "it still reports, but is not reached there" if view.status != "offline" else START
        problems.append(f"{answer['error']} (last heard of {ago}); {doing}")
    if view.status == "draining":
        problems.append("draining: it takes no new jobs; `trainforge executor undrain` ends that")
    if has.disk_free_bytes < LITTLE_DISK:
        problems.append(f"only {has.disk_free_bytes / 2**30:.1f} GiB of disk are free")
    if has.memory_bytes and load.memory_bytes > SCARCE * has.memory_bytes:
        problems.append(f"{100 * load.memory_bytes / has.memory_bytes:.0f}% of its memory are in use")
    if not has.torch:
        problems.append("has no torch: jobs need requirements that install it")
    if has.trainforge and has.trainforge != __version__:
        problems.append(f"runs TrainForge {has.trainforge}, this sender {__version__}")
    return problems


# --- all together ---------------------------------------------------------------------------------------


def status(sender: Sender) -> dict[str, Any]:
    """The fleet in one answer."""
    known = everything(sender)
    there = [one for one in known if one["status"] != "offline"]
    sums = {key: sum(_once_per_host(there, key)) for key in _SUMMED}
    gpus = [used for one in there for used in one["current_load"]["gpu_usage"]]
    jobs = sender.queries.jobs(state="active", limit=5000)
    return {
        "total_machines": len(known),
        **{state: sum(one["status"] == state for one in known) for state in ("online", "busy", "offline")},
        "pending": sum(one["pending"] for one in known),
        "capabilities": sums,
        "current_load": {
            "cpu_usage": _mean([one["current_load"]["cpu_usage"] for one in there]),
            "memory_usage": _mean([one["current_load"]["memory_usage"] for one in there]),
            "gpu_usage": _mean(gpus),
        },
        "jobs": {
            "running": sum(job.state in {"running", "dispatching"} for job in jobs),
            "waiting": sum(job.state in {"pending", "planning"} for job in jobs),
        },
        "machines": known,
    }


def _once_per_host(machines: list[dict[str, Any]], key: str) -> list[int]:
    """Executors on one host offer the same things: the most that any of them does."""
    hosts: dict[str, int] = {}
    for one in machines:
        host = one["host_id"] or one["id"]
        hosts[host] = max(hosts.get(host, 0), one["capabilities"][key])
    return list(hosts.values())


_SUMMED = ("gpu_count", "gpu_memory", "cpu_count", "memory", "disk_space")


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 1) if values else 0.0


def here(sender: Sender) -> list[ExecutorView]:
    """Executors on this sender's own host."""
    host = socket.gethostname()
    return [view for view in members(sender) if view.capabilities.hostname == host]


def host_capabilities(sender: Sender) -> dict[str, Any]:
    """What the sender's host has, whether or not an executor runs on it."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(sender.data_dir))
    sizes, used = _gpus()
    return {
        "name": socket.gethostname(),
        "capabilities": {
            "gpu_count": len(sizes),
            "gpu_memory": sum(sizes),
            "cpu_count": psutil.cpu_count() or 1,
            "memory": memory.total,
            "disk_space": disk.free,
        },
        "current_load": {
            "cpu_usage": psutil.cpu_percent(0.1),
            "memory_usage": memory.percent,
            "gpu_usage": used,
        },
        "executors": [view.name for view in here(sender)],
    }


def _gpus() -> tuple[list[int], list[float]]:
    """Memory and utilisation of each."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        sizes = [int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles]
        return sizes, [float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) for handle in handles]
    except pynvml.NVMLError:
        return [], []
