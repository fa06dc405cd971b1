"""A sender for executors under test: the /v1 routes with real signatures, and the barrier's next order.

It keeps what executors said, so that a test can look at it, and decides as the real sender does in the
plain case: probe when all are ready, launch when all have reached rank 0, publish when all have ended.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from trainforge.config import messages as m
from trainforge.config.errors import Conflict, TrainForgeError
from trainforge.config.result import JobRecord, MetricRow
from trainforge.config.trust import (
    SigningKey,
    executor_id,
    new_join_token,
    proof_issuer,
    sign_order,
    thumbprint,
    verify_request,
)

TTL = 20.0


@dataclass
class NodeState:
    """What the double knows of one node."""

    key: m.NodeKey
    executor: str
    token: m.FencingToken
    records: list[m.Record] = field(default_factory=list)
    outbox: list[m.Order] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    given: set[str] = field(default_factory=set)
    fenced: bool = False

    def data(self, kind: str) -> list[dict[str, Any]]:
        return [record.data for record in self.records if record.kind == kind]

    def last(self, kind: str) -> dict[str, Any]:
        return self.data(kind)[-1]

    def text(self, rank: int | None = None) -> str:
        return "".join(data["text"] for data in self.data("log") if rank in (None, data["rank"]))

    def phases(self) -> list[str]:
        return [data["phase"] for data in self.data("phase")]


class SenderDouble:
    """Serves on loopback until `close`. `auto` gives the next orders by itself."""

    def __init__(self, *, auto: bool = True, port: int = 0) -> None:
        self.key = SigningKey.generate()
        self.auto = auto
        self.executors: dict[str, dict[str, str]] = {}
        self.nodes: dict[m.NodeKey, NodeState] = {}
        self.unknown: set[m.NodeKey] = set()
        self.turn_at = 0.0  # when results may be pushed
        self.refused: dict[str, str] = {}  # orders, and the executors' words
        self.heartbeats: list[m.Heartbeat] = []
        self.lock = threading.Condition(threading.RLock())
        self.created = 1_760_000_000.0
        self.open_tokens: set[str] = set()
        self.jtis: set[str] = set()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    status, answer = 200, double.handle(self.command, self.path, self.headers, body)
                except TrainForgeError as error:
                    status, answer = error.status, {"code": error.code, "detail": error.message}
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *arguments: object) -> None:
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    def join_token(self) -> str:
        token = new_join_token(self.key.id)
        self.open_tokens.add(token.text)
        return token.text

    # --- requests --------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, headers: Any, body: bytes) -> dict[str, Any]:
        authorization = headers.get("Authorization", "")
        issuer = proof_issuer(authorization)
        if path == "/v1/join":
            return self._join(authorization, body)
        public = self.executors[issuer]
        verify_request(
            authorization, subject=issuer, keys={thumbprint(public): public}, audience=self.key.id,
            method=method, path=path, body=body, now=time.time(),
        )  # fmt: skip
        with self.lock:
            if path == "/v1/heartbeat":
                return self._heartbeat(issuer, m.Heartbeat.model_validate_json(body))
            if path == "/v1/claims":
                return self._claim(issuer, m.Claim.model_validate_json(body))
            _, _, _, job, attempt, rank, what = path.split("/")
            node = self.nodes[m.NodeKey(job=job, attempt=int(attempt), rank=int(rank))]
            if what == "journal":
                return self._journal(node, m.JournalBatch.model_validate_json(body))
            if what in {"credential", "turn"}:
                turn = m.PushTurn(wait_s=max(0.0, self.turn_at - time.time()))
                return (m.GitCredential() if what == "credential" else turn).model_dump()
            return self.record(node.key.job).model_dump(mode="json")

    def _join(self, authorization: str, body: bytes) -> dict[str, Any]:
        request = m.JoinRequest.model_validate_json(body)
        subject = executor_id(request.public_key)
        verify_request(
            authorization, subject=subject, keys={thumbprint(request.public_key): request.public_key},
            audience=self.key.id, method="POST", path="/v1/join", body=body, now=time.time(),
        )  # fmt: skip
        self.open_tokens.remove(request.token)
        self.executors[subject] = dict(request.public_key)
        reply = m.JoinReply(executor=subject, sender=self.key.id, sender_key=self.key.public, lease_ttl=TTL)
        return reply.model_dump()

    def _heartbeat(self, executor: str, beat: m.Heartbeat) -> dict[str, Any]:
        self.heartbeats.append(beat)
        self.lock.notify_all()
        unknown = [key for key in beat.nodes if key in self.unknown]
        return m.HeartbeatReply(unknown=unknown, lease_ttl=TTL).model_dump(mode="json")

    def _claim(self, executor: str, claim: m.Claim) -> dict[str, Any]:
        for node in self.nodes.values():
            if node.executor == executor:
                node.accepted |= set(claim.accepted) | set(claim.refused)
        self.refused |= claim.refused
        end = time.monotonic() + min(claim.wait_s, 1.0)
        while not (waiting := self._waiting(executor)) and time.monotonic() < end:
            self.lock.wait(end - time.monotonic())
        signed = [self.sign(executor, order, claim.challenge) for order in waiting]
        return m.ClaimReply(orders=signed).model_dump()

    def _waiting(self, executor: str) -> list[m.Order]:
        nodes = [node for node in self.nodes.values() if node.executor == executor]
        return [order for node in nodes for order in node.outbox if order.id not in node.accepted]

    def sign(self, executor: str, order: m.Order, challenge: str = "", now: float = 0) -> str:
        return sign_order(
            self.key, sender=self.key.id, executor=executor, order=order,
            now=now or time.time(), challenge=challenge,
        )  # fmt: skip

    def _journal(self, node: NodeState, batch: m.JournalBatch) -> dict[str, Any]:
        if node.fenced or batch.token != node.token:
            raise Conflict("this node was given to another executor")
        assert batch.after <= len(node.records), "a gap in the journal"
        for record in batch.records:
            if record.n == len(node.records) + 1:
                node.records.append(record)
        if self.auto:
            self._decide(node.key.job, node.key.attempt)
        self.lock.notify_all()
        return m.JournalAck(acknowledged=len(node.records)).model_dump()

    # --- what the sender would do ----------------------------------------------------------------------

    def run(self, job: str, executors: list[str], body: m.RunOrder, attempt: int = 1) -> list[NodeState]:
        with self.lock:
            states = []
            for rank, executor in enumerate(executors):
                key = m.NodeKey(job=job, attempt=attempt, rank=rank)
                state = NodeState(key, executor, m.FencingToken(incarnation=1, number=attempt * 10 + rank))
                self.nodes[key] = state
                states.append(state)
                self.give(state, body)
            return states

    def give(self, node: NodeState, body: Any, suffix: str = "") -> m.Order:
        with self.lock:
            kind = body.kind + suffix
            order = m.Order(id=f"{node.key}.{kind}", node=node.key, token=node.token, body=body)
            if kind not in node.given:
                node.given.add(kind)
                node.outbox.append(order)
                self.lock.notify_all()
            return order

    def gang(self, job: str, attempt: int) -> list[NodeState]:
        nodes = [node for key, node in self.nodes.items() if key.job == job and key.attempt == attempt]
        return sorted(nodes, key=lambda node: node.key.rank)

    def _decide(self, job: str, attempt: int) -> None:
        nodes = self.gang(job, attempt)
        ended = [node.last("ended") for node in nodes if node.data("ended")]
        failed = next((data for data in ended if data["code"]), None)
        if failed:
            for node in nodes:
                if not node.data("ended"):
                    self.give(node, m.StopOrder(code="peer_failed", reason="another rank failed", grace_s=5))
        elif len(nodes) > 1 and all(node.data("ready") for node in nodes):
            self._barrier(nodes)
        if len(ended) == len(nodes):
            outcome = "failed" if failed else "completed"
            code, reason = (failed["code"], failed["reason"]) if failed else ("", "")
            self.give(nodes[0], m.PublishOrder(outcome=outcome, code=code, reason=reason))
        if nodes[0].data("published"):
            for node in nodes:
                self.give(node, m.ForgetOrder())

    def _barrier(self, nodes: list[NodeState]) -> None:
        ready, others = _peer(nodes[0]), nodes[1:]
        said = {node.key.rank: _peer(node) for node in others}
        for node in others:
            peers = {rank: peer for rank, peer in said.items() if rank < node.key.rank}
            self.give(node, m.ProbeOrder(peers=peers, **ready.model_dump()))
        if all(node.data("reached") for node in others):
            reached = [node.last("reached")["reached"] for node in others]
            common = [address for address in ready.addresses if all(address in each for each in reached)]
            for node in nodes:
                self.give(node, m.LaunchOrder(master_address=common[0], master_port=ready.port))

    def record(self, job: str) -> JobRecord:
        nodes = self.gang(job, max(key.attempt for key in self.nodes if key.job == job))
        body = nodes[0].outbox[0].body
        publish = next(o.body for o in nodes[0].outbox if isinstance(o.body, m.PublishOrder))
        assert isinstance(body, m.RunOrder)
        rows = [
            MetricRow(time=record.time, **record.data)
            for n in nodes
            for record in n.records
            if record.kind == "metric"
        ]
        manifest = "project: {name: test}\ntraining: {script: train.py}\n"
        return JobRecord(
            job=job, project=body.project, repository=body.repository.id, ref=body.ref, commit=body.commit,
            manifest_path=body.manifest_path, manifest=manifest, results_branch=body.results_branch,
            outcome=publish.outcome, code=publish.code, reason=publish.reason,
            created=self.created, ended=time.time(), attempt=nodes[0].key.attempt, metrics=rows,
            logs={f"rank-{rank}.log": nodes[0].text(rank) for rank in range(1)},
        )  # fmt: skip


def _peer(node: NodeState) -> m.Peer:
    said = m.Ready.model_validate(node.last("ready"))
    return m.Peer(addresses=said.addresses, port=said.port, nonce=said.nonce)
