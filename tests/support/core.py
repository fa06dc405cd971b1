"""A sender's core over real HTTP on a real database, and executors that a test plays by signed requests."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from support.databases import prepared
from support.repositories import Project
from support.waiting import wait_for
from trainforge.config.errors import TrainForgeError
from trainforge.config.messages import (
    Capabilities,
    Claim,
    ClaimReply,
    FencingToken,
    Heartbeat,
    JoinReply,
    JoinRequest,
    Load,
    NodeKey,
    Order,
)
from trainforge.config.result import JobRecord, commit_message, result_files
from trainforge.config.settings import SenderSettings
from trainforge.config.trust import SigningKey, executor_id, sign_request, verify_order
from trainforge.hooks.git import init_bare
from trainforge.hooks.results import Entry, write_results
from trainforge.sender import events, executor_api, registry
from trainforge.sender.context import Sender
from trainforge.sender.door import make_door
from trainforge.sender.keys import SenderKeys
from trainforge.sender.loops import core_loops
from trainforge.sender.people import People
from trainforge.sender.problems import problem_response
from trainforge.sender.queries import Queries
from trainforge.sender.schema import metadata
from trainforge.sender.store import Store
from trainforge.sender.store_events import Repo

MANIFEST = "project: {name: digits}\ntraining: {script: train.py}\n"
MACHINE = Capabilities(hostname="box", cpu_count=4, memory_bytes=8 * 2**30, disk_free_bytes=2**40)


def make_sender(folder: Path, **settings: Any) -> Sender:
    usual = {"data_dir": folder / "sender", "heartbeat_every": 30, "lease_ttl": 90}
    settings = usual | {"allow_private_endpoints": True} | settings
    chosen = SenderSettings(**settings)
    store = Store.open(chosen.database_url, prepared(Path(chosen.data_dir)))
    keys = SenderKeys.load(Path(chosen.data_dir))
    return Sender(chosen, store, keys, People(store), Queries(store))


def _application(sender: Sender) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        async with core_loops(sender):
            yield

    async def refuse(request: Request, error: Exception) -> Response:
        return problem_response(error)

    app = Starlette(routes=executor_api.routes, lifespan=lifespan, exception_handlers={Exception: refuse})
    app.add_exception_handler(TrainForgeError, refuse)
    app.state.sender, app.state.door = sender, make_door(sender)
    return app


class Core:
    """A running sender, as a test sees it: over HTTP, and its store."""

    def __init__(self, sender: Sender, url: str) -> None:
        self.sender, self.url = sender, url
        self.executors: list[PlayedExecutor] = []

    def add_project(self, folder: Path, name: str = "digits", manifest: str = MANIFEST) -> Project:
        """A work tree with one commit, pushed to a repository that the built-in server holds."""
        bare = init_bare(self.sender.git_root / f"{name}.git")
        repo = Repo(f"builtin:{name}", name, "", "builtin")
        self.sender.store.add_repository(repo, self.sender.now())
        project = Project(folder / name)
        project.git("remote", "add", "origin", str(bare))
        project.commit({"trainforge.yaml": manifest, "train.py": "print('hello')\n"}, "Start")
        project.git("push", "--quiet", "origin", "main")
        return project

    def announce(self, name: str = "digits") -> list[str]:
        return events.handle_hint(self.sender, name, "push")

    def push_job(self, folder: Path, manifest: str = MANIFEST, name: str = "digits") -> str:
        self.add_project(folder, name, manifest)
        self.announce(name)
        return self.jobs()[-1]

    def jobs(self) -> list[str]:
        with self.sender.store.read() as c:
            return list(c.execute(sa.text("SELECT id FROM jobs ORDER BY created, id")).scalars())

    def job(self, job: str) -> Any:
        return self.sender.store.job(job)

    def wait_state(self, job: str, *states: str, timeout: float = 20) -> Any:
        def reached() -> Any:
            row = self.job(job)
            return row if row["state"] in states else None

        return wait_for(f"job in {states}", reached, timeout, lambda: str(dict(self.job(job))))

    def executor(self, name: str, **capabilities: Any) -> PlayedExecutor:
        token, _ = registry.create_join_token(self.sender)
        executor = PlayedExecutor(self, name, MACHINE.model_copy(update=capabilities))
        executor.join(token.text)
        executor.heartbeat()
        return executor

    def dump(self) -> dict[str, list[Any]]:
        """Everything that the database holds."""
        with self.sender.store.read() as c:
            return {
                name: [tuple(row) for row in c.execute(sa.select(table))]
                for name, table in metadata.tables.items()
            }


class PlayedExecutor:
    """Speaks the executor's side of the protocol, one message at a time."""

    def __init__(self, core: Core, name: str, capabilities: Capabilities) -> None:
        self.core, self.name, self.capabilities = core, name, capabilities
        self.key = SigningKey.generate()
        self.id = executor_id(self.key.public)
        self.client = httpx2.Client(base_url=core.url, timeout=40)
        core.executors.append(self)
        self.accepted: list[str] = []
        self.written: dict[str, int] = {}
        self.tokens: dict[str, FencingToken] = {}

    def request(self, method: str, path: str, body: bytes, **changes: Any) -> httpx2.Response:
        said: dict[str, Any] = {"method": method, "path": path, "body": body} | changes
        proof = sign_request(
            self.key, subject=self.id, audience=self.core.sender.id, now=self.core.sender.now(), **said
        )
        return self.client.request(method, path, content=body, headers={"Authorization": proof})

    def send(self, method: str, path: str, message: Any = None) -> Any:
        body = message.model_dump_json().encode() if message is not None else b""
        response = self.request(method, path, body)
        assert response.is_success, response.text
        return response.json()

    def join(self, token: str) -> None:
        request = JoinRequest(
            token=token, name=self.name, public_key=self.key.public, capabilities=self.capabilities
        )
        reply = JoinReply.model_validate(self.send("POST", "/v1/join", request))
        assert reply.executor == self.id

    def heartbeat(self, *nodes: NodeKey, **fields: Any) -> list[NodeKey]:
        beat = Heartbeat(capabilities=self.capabilities, load=Load(), nodes=list(nodes), **fields)
        return [NodeKey.model_validate(one) for one in self.send("POST", "/v1/heartbeat", beat)["unknown"]]

    def claim(self, wait_s: float = 10) -> list[Order]:
        """Orders, all of which the next claim accepts."""
        challenge = "c" * 24
        claim = Claim(challenge=challenge, wait_s=wait_s, accepted=self.accepted)
        self.accepted = []
        reply = ClaimReply.model_validate(self.send("POST", "/v1/claims", claim))
        sender = self.core.sender
        orders = [
            verify_order(
                token,
                sender=sender.id,
                keys={sender.key.id: sender.key.public},
                executor=self.id,
                now=sender.now(),
                challenge=challenge,
            )
            for token in reply.orders
        ]
        self.accepted = [order.id for order in orders]
        self.tokens |= {str(order.node): order.token for order in orders}
        return orders

    def take(self, kind: str) -> Order:
        """The next order, which must be of this kind; accepted."""
        orders = self.claim()
        assert [order.body.kind for order in orders] == [kind], orders
        self.claim(wait_s=0)
        return orders[0]

    def journal(self, node: NodeKey, *records: tuple[str, dict[str, Any]]) -> int:
        """Append to the node's journal and send it."""
        after = self.written.get(str(node), 0)
        batch = journal_batch(self.tokens[str(node)], after, *records)
        self.written[str(node)] = after + len(records)
        path = f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}/journal"
        response = self.request("POST", path, json.dumps(batch).encode())
        assert response.is_success, response.text
        return int(response.json()["acknowledged"])

    def publish(self, order: Order, run: Order) -> str:
        """Do what rank 0 does with a publish order."""
        node = order.node
        path = f"/v1/nodes/{node.job}/{node.attempt}/{node.rank}/record"
        record = JobRecord.model_validate(self.send("GET", path))
        row = self.core.job(node.job)
        bare = self.core.sender.git_root / f"{run.body.repository.name}.git"  # type: ignore[union-attr]
        written, _ = write_results(
            self.core.sender.data_dir / f"{self.name}-results.git",
            str(bare),
            record.results_branch,
            Entry(row["result_path"], dict(result_files(record, [])), commit_message(record)),
            allow_file=True,
        )
        said = {"branch": record.results_branch, "path": row["result_path"], "commit": written.commit}
        self.journal(node, ("published", said | {"outcome": record.outcome}))
        return written.commit


def journal_batch(token: FencingToken, after: int, *records: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "token": token.model_dump(),
        "after": after,
        "records": [
            {"n": after + 1 + i, "time": 1e9 + after + i, "kind": kind, "data": data}
            for i, (kind, data) in enumerate(records)
        ],
    }


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Core]:
    """A sender's core, listening; stopped, with everything written, at the end."""
    sender = make_sender(folder, **settings)
    core: Core | None = None
    server = uvicorn.Server(uvicorn.Config(_application(sender), port=0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        wait_for("listening sender", lambda: server.started, 20)
        port = server.servers[0].sockets[0].getsockname()[1]
        sender.base_url = f"http://127.0.0.1:{port}"
        core = Core(sender, sender.base_url)
        yield core
    finally:
        for executor in core.executors if core else ():
            executor.client.close()
        sender.bell.close()
        server.should_exit = True
        thread.join(60)
        sender.store.close()
    assert not thread.is_alive()
