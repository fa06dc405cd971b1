"""How quickly the pages come with very many jobs, beside a page that Starlette alone serves.

    python tests/benchmarks/pages.py --jobs 100000 --rounds 30

The application runs in this process over a real database and is asked over loopback, one request after
the other. Printed for each page: the median and the slowest in milliseconds, and the processor time that one
takes, which tells the same on a busy machine. docs/dashboard.md has figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import httpx2
import sqlalchemy as sa
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from support.web import Web, web
from trainforge.sender import schema, serve

STATES = ("completed",) * 16 + ("failed",) * 3 + ("cancelled",)
WORDS = ("larger batch", "warm up", "dropout", "new data", "mixed precision", "seed", "baseline")


def fill(site: Web, jobs: int) -> str:
    """So many jobs of twenty projects and thirty people, the newest of which is looked at."""
    first = site.add_job(subject="the newest", author="ada")
    site.log(first, *(f"step {number} loss {1 / (number + 1):.4f}" for number in range(2000)))
    with site.sender.store.write() as c:
        row = dict(c.execute(sa.select(schema.jobs)).mappings().one())
        for start in range(0, jobs, 5000):
            c.execute(sa.insert(schema.jobs), [_job(row, number) for number in range(start, start + 5000)])
    return first


def _job(row: dict[str, object], number: int) -> dict[str, object]:
    created = float(str(row["created"])) - 60 * (number + 1)
    state = STATES[number % len(STATES)]
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    name = "".join(digits[number // 32**place % 32] for place in range(5))
    return row | {
        "id": f"{name}{'x' * 21}", "state": state, "created": created, "started": created + 5,
        "ended": created + 600, "project": f"project-{number % 20}", "author": f"person-{number % 30}",
        "subject": f"Try {WORDS[number % len(WORDS)]} {number}", "metrics": {"loss": 1 / (number + 1)},
        "manifest_blob": f"{number:040}", "ref": f"refs/heads/try-{number % 50}",
    }  # fmt: skip


def bare() -> tuple[uvicorn.Server, str]:
    """A page that says one thing, by the same web server."""

    async def page(_request: Request) -> HTMLResponse:
        return HTMLResponse("<!doctype html><title>bare</title><h1>Bare</h1>")

    listener = serve.listen("127.0.0.1", 0)
    app = Starlette(routes=[Route("/", page)])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    return server, f"http://127.0.0.1:{listener.getsockname()[1]}/"


def measure(client: httpx2.Client, url: str, rounds: int) -> tuple[float, float, float]:
    """Median and slowest time, and processor time of both sides, in milliseconds."""
    client.get(url).raise_for_status()
    times, before = [], time.process_time()
    for _ in range(rounds):
        began = time.monotonic()
        client.get(url).raise_for_status()
        times.append((time.monotonic() - began) * 1000)
    return statistics.median(times), max(times), (time.process_time() - before) * 1000 / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, web(Path(folder)) as site:
        newest = fill(site, options.jobs)
        server, alone = bare()
        pages = {
            "a bare Starlette page": alone,
            "jobs": "/jobs",
            "jobs, 50,000 further back": f"/jobs?before={_job_id(options.jobs // 2)}",
            "jobs of a state": "/jobs?state=failed",
            "jobs of a project": "/jobs?project=project-7",
            "jobs by a word": "/jobs?q=dropout",
            "a word that none has": "/jobs?q=nowhere",
            "a job": f"/jobs/{newest}",
            "queue": "/queue",
            "executors": "/executors",
            "events": "/events",
        }
        with site.log_in() as client:
            print(f"{'page':28} {'median':>8} {'slowest':>8} {'processor':>10}  (ms)")
            for name, path in pages.items():
                url = path if path.startswith("http:") else site.url + path
                print(f"{name:28} {'%8.1f %8.1f %10.1f' % measure(client, url, options.rounds)}")  # noqa: UP031
        server.should_exit = True


def _job_id(number: int) -> str:
    return str(_job({"created": 0.0}, number)["id"])


if __name__ == "__main__":
    main()
