"""Asks a live sender for all that its description allows, and for what it forbids, address by address.

schemathesis makes the requests of `/api/openapi.json` and checks what comes back: no 5xx, no status, media
type or body that is not described, and no body or query taken that does not fit. `description.check` holds
the answers to every key besides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi import checks

from support.web import Web, web
from trainforge.sender.problems import BODY_LIMIT

STREAMS = {"GET /api/changes"}  # has no end to wait for; tests/sender/test_api.py reads it
CHECKS: list[CheckFunction] = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
SLOW_S = 15.0
_REJECTED = [400, 401, 403, 404, 405, 409, 413, 422, 429]
_CONFIG = {"checks": {"negative_data_rejection": {"expected-statuses": _REJECTED}}}


class LiveApi:
    """A sender with a little of everything; asked as an admin whose token nothing here revokes by chance."""

    def __init__(self, site: Web) -> None:
        self.site = site
        now = site.sender.now()
        for number in range(30):
            site.sender.people.new_token(f"of-nobody-{number}", now, role="viewer")
        self.token = site.sender.people.new_token("the-one-in-use", now, role="admin")
        self.job = site.add_job()
        site.log(self.job, "a line", "another")
        site.metric(self.job, loss=0.5)
        site.end(self.job)
        said = requests.get(f"{site.url}/api/openapi.json", timeout=10).json()
        self.schema: Any = schemathesis.openapi.from_dict(said, config=schemathesis.Config.from_dict(_CONFIG))
        self.schema.config.update(base_url=site.url)
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {self.token}"

    def operations(self) -> Iterator[tuple[str, Any]]:
        for found in self.schema.get_all_operations():
            operation = found.ok()
            if operation.label not in STREAMS:
                yield operation.label, operation

    def ask(self, operation: Any, mode: GenerationMode, examples: int, seed: int) -> None:
        """Raises what schemathesis found; how slow the slowest was counts as well."""
        known = {"job": self.job} if "{job}" in operation.path else {}

        def one(case: Any) -> None:
            began = time.monotonic()
            if isinstance((case.query or {}).get("wait"), int | float) and case.query["wait"] > 0:
                case.query["wait"] = 0.01  # it would be waited for
            try:
                case.call_and_validate(session=self.session, checks=CHECKS, timeout=30)
            except requests.ConnectionError:  # a body that is too large is refused before it is all read
                assert self.session.get(f"{self.site.url}/health", timeout=10).status_code == 200
                assert len(str(case.body)) > BODY_LIMIT // 16, f"{operation.label} broke off"
            assert time.monotonic() - began < SLOW_S, f"{operation.label} took longer than {SLOW_S} s"

        ways = [operation.as_strategy(mode)]
        if known and operation.path.count("{") == 1:  # a job that is there, too
            ways.append(operation.as_strategy(mode, path_parameters=known))
        for way in ways:
            seeded(seed)(
                settings(
                    max_examples=examples,
                    deadline=None,
                    database=None,
                    phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )(given(way)(one))
            )()


@contextmanager
def live_api(folder: Path) -> Iterator[LiveApi]:
    with web(folder, webhook_secret="0123456789abcdef") as site:
        yield LiveApi(site)


def can_be_wrong(operation: Any) -> bool:
    """Whether there is anything about a request that could break the description."""
    return bool(operation.body) or bool(operation.query)


def round_of(live: LiveApi, *, examples: int, seed: int) -> int:
    """Every address once over, with what fits and with what does not. Returns how many there were."""
    count = 0
    for _, operation in live.operations():
        live.ask(operation, GenerationMode.POSITIVE, examples, seed)
        if can_be_wrong(operation):
            live.ask(operation, GenerationMode.NEGATIVE, examples, seed)
        count += 1
    return count
