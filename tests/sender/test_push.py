"""Orders pushed to an executor's endpoint: proved first, delivered once, refused in words."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from support.core import MACHINE, Core, PlayedExecutor, journal_batch, serving
from support.waiting import wait_for
from trainforge.config.errors import NotTrusted
from trainforge.config.messages import Heartbeat, HeartbeatReply, Load, Order
from trainforge.config.trust import SigningKey, sign_request, verify_order, verify_request


class Inbox:
    """An executor's own door. `statuses` are the answers still to give before 200s."""

    def __init__(self, executor: PlayedExecutor, key: SigningKey | None = None) -> None:
        self.executor, self.key = executor, key or executor.key
        self.url = ""
        self.orders: list[Order] = []
        self.statuses: list[int] = []
        self.proofs = 0
        self.ahead = 0.0  # seconds of its clock
        self.records: list[tuple[str, dict[str, Any]]] = []
        routes = [
            Route("/v1/orders", self.take, methods=["POST"]),
            Route("/v1/prove", self.prove, methods=["POST"]),
            Route("/v1/nodes/{job}/{attempt}/{rank}/journal", self.read, methods=["GET"]),
        ]
        self.app = Starlette(routes=routes)

    async def take(self, request: Request) -> Response:
        assert request.headers["content-type"] == "application/jose"
        sender = self.executor.core.sender
        try:
            order = verify_order(
                (await request.body()).decode(),
                sender=sender.id,
                keys={sender.key.id: sender.key.public},
                executor=self.executor.id,
                now=sender.now() + self.ahead,
            )
        except NotTrusted as error:
            return JSONResponse({"detail": error.message, "code": error.code}, error.status)
        if self.statuses:
            return JSONResponse({"detail": "not this repository"}, self.statuses.pop(0))
        self.orders.append(order)
        self.executor.tokens[str(order.node)] = order.token
        return Response(status_code=202)

    async def read(self, request: Request) -> Response:
        sender = self.executor.core.sender
        verify_request(
            request.headers["authorization"],
            subject=sender.id,
            keys={sender.key.id: sender.key.public},
            audience=self.executor.id,
            method="GET",
            path=f"{request.url.path}?{request.url.query}",
            body=b"",
            now=sender.now(),
        )
        after = int(request.query_params["after"])
        token = self.orders[0].token
        return JSONResponse(journal_batch(token, after, *self.records[after:]))

    async def prove(self, request: Request) -> Response:
        self.proofs += 1
        sender = self.executor.core.sender
        proof = sign_request(
            self.key,
            subject=self.executor.id,
            audience=sender.id,
            method="PROVE",
            path=(await request.json())["nonce"],
            body=self.url.encode(),
            now=sender.now(),
        )
        return JSONResponse({"proof": proof})


@contextmanager
def listening(inbox: Inbox) -> Iterator[Inbox]:
    server = uvicorn.Server(uvicorn.Config(inbox.app, port=0, log_level="warning"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        wait_for("listening executor", lambda: server.started, 20)
        inbox.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield inbox
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    with serving(tmp_path) as core:
        yield core


def test_an_order_is_pushed_once_to_a_proved_endpoint(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha")
    with listening(Inbox(executor)) as inbox:
        executor.heartbeat(endpoint=inbox.url, endpoint_seq=1)
        job = core.push_job(tmp_path)
        core.wait_state(job, "running")
        assert [order.body.kind for order in inbox.orders] == ["run"]
        executor.journal(inbox.orders[0].node, ("ended", {"exit_code": 0}))
        wait_for("publish order", lambda: len(inbox.orders) == 2, 10)
        executor.publish(inbox.orders[1], inbox.orders[0])
        core.wait_state(job, "completed")
        wait_for("forget order", lambda: len(inbox.orders) == 3, 10)
        assert [order.body.kind for order in inbox.orders] == ["run", "publish", "forget"]
        assert inbox.proofs == 1


def test_nothing_is_sent_to_an_endpoint_that_somebody_else_holds(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha")
    with listening(Inbox(executor, key=SigningKey.generate())) as inbox:
        executor.heartbeat(endpoint=inbox.url, endpoint_seq=1)
        core.push_job(tmp_path)
        wait_for("second attempt to prove", lambda: inbox.proofs >= 2, 20)
        assert inbox.orders == []


def test_a_failed_delivery_is_repeated(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha")
    with listening(Inbox(executor)) as inbox:
        inbox.statuses = [503]
        executor.heartbeat(endpoint=inbox.url, endpoint_seq=1)
        job = core.push_job(tmp_path)
        core.wait_state(job, "running")
        assert inbox.proofs == 2  # proved again after the failure


def test_a_refused_run_fails_the_job_with_the_executors_words(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha")
    with listening(Inbox(executor)) as inbox:
        inbox.statuses = [403]
        executor.heartbeat(endpoint=inbox.url, endpoint_seq=1)
        job = core.push_job(tmp_path)
        row = core.wait_state(job, "failed")
    assert row["code"] == "policy_refused"
    words = "alpha refused this job: not this repository; no other executor here could take it"
    assert row["reason"] == words


def test_an_offer_that_comes_too_late_is_no_refusal_of_the_job(tmp_path: Path) -> None:
    """Such as of an attempt that this executor has forgotten: it may be given the next one."""
    with serving(tmp_path, heartbeat_every=0.2, lease_ttl=1) as core:
        executor = core.executor("alpha")
        with listening(Inbox(executor)) as inbox:
            inbox.statuses = [409]
            executor.heartbeat(endpoint=inbox.url, endpoint_seq=1)
            job = core.push_job(tmp_path)

            def given() -> bool:
                executor.heartbeat(endpoint=inbox.url, endpoint_seq=1)
                core.sender.wake(job)
                return bool(inbox.orders)

            wait_for("the next attempt", given, 20)
            assert (inbox.orders[0].node.job, inbox.orders[0].node.attempt) == (job, 2)
            core.wait_state(job, "running")


def test_an_unreachable_endpoint_leaves_the_claim_as_a_way(core: Core, tmp_path: Path) -> None:
    executor = core.executor("alpha")
    executor.heartbeat(endpoint="http://127.0.0.1:9", endpoint_seq=1)
    job = core.push_job(tmp_path)
    executor.take("run")
    core.wait_state(job, "running")


def test_an_older_endpoint_does_not_replace_a_newer_one(core: Core) -> None:
    executor = core.executor("alpha")
    executor.heartbeat(endpoint="http://127.0.0.1:9/new", endpoint_seq=2)
    executor.heartbeat(endpoint="http://127.0.0.1:9/old", endpoint_seq=1)
    member = core.sender.store.member(executor.id)
    assert member is not None
    assert member.endpoint == "http://127.0.0.1:9/new"
    assert "http://127.0.0.1:9/old" not in str(core.dump()["executors"])


def test_a_journal_that_does_not_come_is_fetched(tmp_path: Path) -> None:
    with serving(tmp_path, heartbeat_every=0.2, lease_ttl=2) as core:
        executor = core.executor("alpha")
        with listening(Inbox(executor)) as inbox:
            executor.heartbeat(endpoint=inbox.url, endpoint_seq=1)
            job = core.push_job(tmp_path)
            core.wait_state(job, "running")
            inbox.records = [("log", {"rank": 0, "text": "far away\n"}), ("ended", {"exit_code": 0})]
            wait_for("publish order", lambda: len(inbox.orders) == 2, 10)
            assert inbox.orders[1].body.kind == "publish"
            assert core.sender.store.logs_of(job, 1) == {"rank0.log": "far away\n"}


# --- whose address it is ---------------------------------------------------------------------------------


def test_a_tunnel_name_that_is_let_to_somebody_else_gets_nothing(core: Core, tmp_path: Path) -> None:
    """Between two orders the address becomes a stranger's, who answers everything in every way."""
    executor = core.executor("alpha")
    with listening(Inbox(executor)) as inbox:
        executor.heartbeat(endpoint=inbox.url, endpoint_seq=1)
        job = core.push_job(tmp_path)
        core.wait_state(job, "running")
        run = inbox.orders[0]
        stranger = SigningKey.generate()
        inbox.key, inbox.statuses = stranger, [404, 401, 200, 202, 409] * 20
        executor.journal(run.node, ("ended", {"exit_code": 0}))
        wait_for("being asked who it is", lambda: inbox.proofs >= 2, 20)
        assert [order.body.kind for order in inbox.orders] == ["run"]
        assert core.job(job)["state"] == "running", "a stranger's refusal does not count"
        inbox.key, inbox.statuses = executor.key, []
        executor.heartbeat(endpoint=inbox.url, endpoint_seq=2)
        wait_for("publish order", lambda: len(inbox.orders) == 2, 40)


def test_the_same_number_does_not_move_an_endpoint(core: Core) -> None:
    executor = core.executor("alpha")
    executor.heartbeat(endpoint="http://127.0.0.1:9/one", endpoint_seq=2)
    executor.heartbeat(endpoint="http://127.0.0.1:9/other", endpoint_seq=2)
    assert core.sender.store.member(executor.id).endpoint == "http://127.0.0.1:9/one"  # type: ignore[union-attr]
    executor.heartbeat()  # it asks for work itself now
    assert core.sender.store.member(executor.id).endpoint == ""  # type: ignore[union-attr]
    executor.heartbeat(endpoint="http://127.0.0.1:9/one", endpoint_seq=2)
    assert core.sender.store.member(executor.id).endpoint == "http://127.0.0.1:9/one"  # type: ignore[union-attr]


def test_a_private_address_is_not_asked_unless_that_is_allowed(tmp_path: Path) -> None:
    with serving(tmp_path, allow_private_endpoints=False) as core:
        executor = core.executor("alpha")
        with listening(Inbox(executor)) as inbox:
            beat = Heartbeat(capabilities=MACHINE, load=Load(), endpoint=inbox.url, endpoint_seq=1)
            reply = HeartbeatReply.model_validate(executor.send("POST", "/v1/heartbeat", beat))
            assert "allow_private_endpoints" in reply.notices[0]
            job = core.push_job(tmp_path)
            executor.take("run")  # asking for work is a way still
            core.wait_state(job, "running")
            assert (inbox.proofs, inbox.orders) == (0, [])


def test_an_executor_whose_clock_is_off_says_so_in_seconds(core: Core, tmp_path: Path) -> None:
    """Pushed orders have no challenge: the executor's refusal, and with it the job's reason, tells why."""
    executor = core.executor("alpha")
    with listening(Inbox(executor)) as inbox:
        inbox.ahead = 7200
        executor.heartbeat(endpoint=inbox.url, endpoint_seq=1)
        job = core.push_job(tmp_path)
        row = core.wait_state(job, "failed")
    assert "the signed message expired 69" in row["reason"]
