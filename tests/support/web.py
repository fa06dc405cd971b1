"""A sender's web application over real HTTP and a real database, with facts put straight into its store."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import sqlalchemy as sa

from support import described
from support.databases import prepared
from support.waiting import wait_for
from trainforge.config.identity import job_id
from trainforge.config.messages import Capabilities, JoinRequest
from trainforge.config.settings import SenderSettings
from trainforge.config.trust import SigningKey, executor_id, new_join_token
from trainforge.sender import schema, serve
from trainforge.sender.app import make_app, open_sender
from trainforge.sender.context import Sender
from trainforge.sender.notify import JOBS, job_key
from trainforge.sender.store_events import NewEvent, NewJob, Repo

MANIFEST = "project: {name: digits}\ntraining: {script: train.py}\n"
COMMIT = "a" * 40


class Web:
    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.url = sender.local_url
        if "ada" not in {user.name for user in sender.people.users()}:
            sender.people.add_user("ada", "admin", sender.now())
        self.token = self.token_of("ada")
        self.repo = sender.store.add_repository(Repo("builtin:demo", "demo", "", "builtin"), sender.now())

    def token_of(self, name: str, **fields: Any) -> str:
        people = self.sender.people
        account = people.account(name)
        return people.new_token(
            f"{name}-s", self.sender.now(), user=account.id, **{"role": account.role} | fields
        )

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """The answer, which has to be as `/api/openapi.json` describes it."""
        headers = self.bearer | options.pop("headers", {})
        answer = httpx2.request(method, self.url + path, headers=headers, timeout=30, **options)
        described.check(method, path, answer)
        return answer

    def get(self, path: str, **options: Any) -> Any:
        answer = self.ask("GET", path, **options)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    @contextmanager
    def log_in(self, name: str = "ada") -> Iterator[httpx2.Client]:
        """A browser with a session, whose requests carry what a page's forms carry."""
        headers = {"Origin": self.url, "Accept": "text/html"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=30) as browser:
            link = self.sender.people.new_link(self.sender.now(), name)
            answer = browser.post("/login", data={"link": link})
            assert answer.status_code == 303, answer.text
            page_token = re.search(r'name="csrf" value="(\w+)"', browser.get("/account").text)
            assert page_token is not None
            browser.headers["X-CSRF-Token"] = page_token[1]
            yield browser

    # --- facts -----------------------------------------------------------------------------------------

    def add_job(self, blob: str = "", **fields: Any) -> str:
        blob = blob or secrets.token_hex(20)
        made = job_id(self.repo.id, COMMIT, "trainforge.yaml", blob)
        job = NewJob(
            id=fields.pop("id", made),
            repository_id=self.repo.id,
            commit=COMMIT,
            manifest_path="trainforge.yaml",
            manifest_blob=blob,
            source="push",
            **{"ref": "refs/heads/main", "project": "digits", "manifest_text": MANIFEST} | fields,
        )
        event = NewEvent("push", self.repo.id, self.repo.name, "job", ref="refs/heads/main", new=COMMIT)
        self.sender.store.record_request(event, [job], self.sender.now())
        self.sender.bell.ring(JOBS)
        return job.id

    def log(self, job: str, *texts: str, rank: int = 0, stream: str = "stdout") -> None:
        store = self.sender.store
        with store.write() as c:
            first = store.take_cursors(c, job, len(texts))
            base = {
                "job_id": job,
                "time": time.time(),
                "attempt": 1,
                "node": 0,
                "rank": rank,
                "stream": stream,
            }
            rows = [base | {"cursor": first + i, "text": text} for i, text in enumerate(texts)]
            c.execute(sa.insert(schema.log_lines), rows)
        self.sender.bell.ring(job_key(job))

    def metric(self, job: str, **values: float) -> None:
        store = self.sender.store
        with store.write() as c:
            row = {"job_id": job, "cursor": store.take_cursors(c, job, 1), "time": time.time(), "attempt": 1}
            row |= {"node": 0, "rank": 0, "step": None, "epoch": None, "values": values}
            c.execute(sa.insert(schema.metric_points).values(row))
        self.set(job, metrics=values)

    def set(self, job: str, **columns: Any) -> None:
        with self.sender.store.write() as c:
            c.execute(sa.update(schema.jobs).where(schema.jobs.c.id == job).values(columns))
        self.sender.bell.ring(job_key(job), JOBS)

    def end(self, job: str, state: str = "completed", **columns: Any) -> None:
        self.set(job, state=state, ended=time.time(), **columns)

    def add_executor(self, name: str, key: SigningKey | None = None, **capabilities: Any) -> str:
        key = key or SigningKey.generate()
        sender = self.sender
        token = new_join_token(sender.id)
        sender.store.add_join_token(token.digest, sender.now(), sender.now() + 60)
        has = Capabilities(
            hostname=f"{name}-host", cpu_count=4, memory_bytes=8 << 30, disk_free_bytes=9 << 30
        )
        request = JoinRequest(
            token=token.text,
            name=name,
            public_key=key.public,
            capabilities=has.model_copy(update=capabilities),
        )
        executor = executor_id(key.public)
        sender.store.join(token.digest, executor, request, sender.now())
        with sender.store.write() as c:
            c.execute(sa.update(schema.executors).values(last_seen=sender.now()))
        return executor

    def add_node(self, job: str, executor: str, **columns: Any) -> None:
        now = self.sender.now()
        attempt = {"job_id": job, "number": 1, "state": "running", "created": now}
        attempt |= {"token_incarnation": 1, "token_number": 1}
        node = {"job_id": job, "attempt": 1, "rank": 0, "executor_id": executor, "state": "running"}
        node |= {"gpus": [], "lease_until": now + 90, "created": now, "phase": "training"}
        with self.sender.store.write() as c:
            c.execute(sa.insert(schema.attempts).values(attempt))
            c.execute(sa.insert(schema.nodes).values(node | columns))
        self.set(job, state="running", attempt=1, started=now)


@contextmanager
def web(tmp_path: Path, *, port: int = 0, **settings: Any) -> Iterator[Web]:
    """The application on a free port, or on that of one before, without the loops that act on the facts."""
    made = SenderSettings(data_dir=prepared(tmp_path / "sender"), port=0, **settings)
    with closing(serve.listen("127.0.0.1", port)) as listener:
        sender = open_sender(made)
        sender.local_url = sender.base_url = serve.local_url("127.0.0.1", listener.getsockname()[1])
        listening = threading.Event()
        server = serve.make_server(make_app(sender, loops={}), sender, listening.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for("listening server", listening.is_set, 30)
            yield Web(sender)
        finally:
            server.should_exit = True
            thread.join(60)
            sender.store.close()
        assert not thread.is_alive()
