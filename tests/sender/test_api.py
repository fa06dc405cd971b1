"""People's JSON API over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from support.web import COMMIT, MANIFEST, Web

EVENT_STREAM = {"Accept": "text/event-stream"}


def _events(answer: httpx2.Response) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for line in answer.iter_lines():
        if not line:
            if "data" in event:
                yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


# --- jobs ---------------------------------------------------------------------------------------------


def test_health_is_public_and_says_who_this_is(site: Web) -> None:
    said = httpx2.get(f"{site.url}/health").json()
    assert said == {"status": "ok", "version": said["version"], "sender": site.sender.id}


def test_jobs_are_listed_newest_first_filtered_and_in_pages(site: Web) -> None:
    made = [site.add_job(project="a" if number % 2 else "b") for number in range(5)]
    site.end(made[0], "failed", code="script_failed")
    listed = [job["id"] for job in site.get("/api/jobs")["jobs"]]
    assert listed == made[::-1]
    assert [job["id"] for job in site.get("/api/jobs?project=a")["jobs"]] == [made[3], made[1]]
    assert [job["id"] for job in site.get("/api/jobs?state=failed")["jobs"]] == [made[0]]
    assert len(site.get("/api/jobs?state=active")["jobs"]) == 4
    first = site.get("/api/jobs?limit=2")["jobs"]
    rest = site.get(f"/api/jobs?limit=9&before={first[-1]['id']}")["jobs"]
    assert [job["id"] for job in [*first, *rest]] == listed


def test_a_prefix_names_a_job_if_only_one_begins_so(site: Web) -> None:
    site.add_job(id="aaaa2" + "b" * 21)
    site.add_job(id="aaaa3" + "b" * 21)
    assert site.get("/api/jobs/aaaa2")["id"] == "aaaa2" + "b" * 21
    assert site.get("/api/jobs/AAAA2")["id"] == "aaaa2" + "b" * 21
    ambiguous = site.ask("GET", "/api/jobs/aaaa")
    assert (ambiguous.status_code, ambiguous.json()["code"]) == (409, "conflict")
    assert "aaaa2" in ambiguous.json()["detail"]
    for nothing in ("zzzz", "a_", "%25", "a%00", "x" * 300):
        answer = site.ask("GET", f"/api/jobs/{nothing}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), nothing


def test_a_job_shows_its_nodes_and_timeline(site: Web) -> None:
    executor = site.add_executor("alpha")
    job = site.add_job()
    site.add_node(job, executor, detail="epoch 1")
    detail = site.get(f"/api/jobs/{job}")
    assert detail["state"] == "running"
    (attempt,) = detail["attempts"]
    assert (attempt["nodes"][0]["executor_name"], attempt["nodes"][0]["phase"]) == ("alpha", "training")
    assert detail["timeline"][0]["text"] == "asked for by push"
    assert site.get("/api/executors/alpha")["jobs"] == [job]


def test_stopping_is_noted_once_and_refused_at_the_end(site: Web) -> None:
    job = site.add_job()
    assert (
        site.ask("POST", f"/api/jobs/{job[:10]}/stop", json={"reason": "enough"}).json()["stopping"] is True
    )
    assert site.ask("POST", f"/api/jobs/{job}/stop").status_code == 200
    site.end(job, "cancelled")
    answer = site.ask("POST", f"/api/jobs/{job}/stop", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_metrics_come_after_a_cursor_and_nan_is_null(site: Web) -> None:
    job = site.add_job()
    site.metric(job, loss=0.5)
    first = site.get(f"/api/jobs/{job}/metrics")["points"]
    site.metric(job, loss=float("nan"))
    (second,) = site.get(f"/api/jobs/{job}/metrics?after={first[-1]['cursor']}")["points"]
    assert first[0]["values"] == {"loss": 0.5}
    assert second["values"] == {"loss": None}


def test_artifacts_tell_where_the_result_is(site: Web) -> None:
    job = site.add_job()
    files = [{"path": "model.pt", "size": 7, "sha256": "0" * 64}]
    site.end(
        job, artifacts=files, result_branch="trainforge-results", result_path="jobs/x", result_commit=COMMIT
    )
    assert site.get(f"/api/jobs/{job}/artifacts") == {
        "artifacts": files, "branch": "trainforge-results", "folder": "jobs/x", "commit": COMMIT,
    }  # fmt: skip


# --- logs ---------------------------------------------------------------------------------------------


def test_logs_are_read_by_cursor_and_rank(site: Web) -> None:
    job = site.add_job()
    site.log(job, "one", "two")
    site.log(job, "other", rank=1, stream="stderr")
    page = site.get(f"/api/jobs/{job}/logs?limit=2")
    assert [line["text"] for line in page["lines"]] == ["one", "two"]
    assert page["ended"] is False
    rest = site.get(f"/api/jobs/{job}/logs?after={page['cursor']}")
    assert [(line["text"], line["rank"], line["stream"]) for line in rest["lines"]] == [
        ("other", 1, "stderr")
    ]
    assert [line["text"] for line in site.get(f"/api/jobs/{job}/logs?rank=1")["lines"]] == ["other"]
    site.end(job)
    assert site.get(f"/api/jobs/{job}/logs?limit=2")["ended"] is False
    assert site.get(f"/api/jobs/{job}/logs")["ended"] is True


def test_a_long_poll_is_answered_by_the_next_line(site: Web) -> None:
    job = site.add_job()
    site.log(job, "old")
    after = site.get(f"/api/jobs/{job}/logs")["cursor"]
    answers: list[Any] = []
    poll = threading.Thread(
        target=lambda: answers.append(site.get(f"/api/jobs/{job}/logs?after={after}&wait=25"))
    )
    begun = time.monotonic()
    poll.start()
    site.log(job, "new")
    poll.join(20)
    assert time.monotonic() - begun < 15
    assert [line["text"] for line in answers[0]["lines"]] == ["new"]


def test_a_long_poll_ends_with_the_job_and_with_its_time(site: Web) -> None:
    job = site.add_job()
    begun = time.monotonic()
    assert site.get(f"/api/jobs/{job}/logs?wait=0.2")["lines"] == []
    assert 0.2 <= time.monotonic() - begun < 10
    answers: list[Any] = []
    poll = threading.Thread(target=lambda: answers.append(site.get(f"/api/jobs/{job}/logs?wait=25")))
    poll.start()
    site.end(job)
    poll.join(20)
    assert answers[0] == {"lines": [], "cursor": 0, "ended": True}


def test_an_event_stream_brings_each_line_once_and_resumes(site: Web) -> None:
    job = site.add_job()
    site.log(job, *(f"line {number}" for number in range(700)))
    seen: list[str] = []
    last = ""
    with httpx2.stream(
        "GET", f"{site.url}/api/jobs/{job}/logs", headers=site.bearer | EVENT_STREAM
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for event in _events(answer):
            seen.append(json.loads(event["data"])["text"])
            last = event["id"]
            if len(seen) == 650:
                break
    site.log(job, "late", rank=1)
    site.end(job)
    headers = site.bearer | EVENT_STREAM | {"Last-Event-ID": last}
    with httpx2.stream("GET", f"{site.url}/api/jobs/{job}/logs?after=3", headers=headers) as answer:
        events = list(_events(answer))
    assert events[-1]["event"] == "end"
    seen += [json.loads(event["data"])["text"] for event in events[:-1]]
    assert seen == [f"line {number}" for number in range(700)] + ["late"]


def test_a_page_is_told_of_versions_and_gets_text_without_codes(site: Web) -> None:
    job = site.add_job()
    site.log(job, "\x1b[31mred\x1b[0m\rover")
    with httpx2.stream(
        "GET", f"{site.url}/api/jobs/{job}/logs?page=1", headers=site.bearer | EVENT_STREAM
    ) as answer:
        events = _events(answer)
        assert json.loads(next(events)["data"])["text"] == "red\nover"
        first = next(events)
        assert first["event"] == "version"
        site.set(job, progress=0.5)
        assert (second := next(events))["event"] == "version"
        assert second["data"] != first["data"]
        site.end(job)
        assert [event["event"] for event in events] == ["version", "end"]


def test_what_is_polled_is_not_sent_again_while_nothing_changes(site: Web) -> None:
    job = site.add_job()
    for path in ("/api/jobs", f"/api/jobs/{job}", "/api/executors", f"/api/jobs/{job}/logs"):
        tag = site.ask("GET", path).headers["etag"]
        for known in (tag, f'"other", W/{tag}', "*"):
            again = site.ask("GET", path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert site.ask("GET", path, headers={"If-None-Match": '"other"'}).status_code == 200
    tag = site.ask("GET", "/api/jobs").headers["etag"]
    site.set(job, progress=0.5)
    assert site.ask("GET", "/api/jobs", headers={"If-None-Match": tag}).status_code == 200


def test_list_pages_are_told_of_versions(site: Web) -> None:
    headers = site.bearer | EVENT_STREAM
    with httpx2.stream("GET", f"{site.url}/api/changes?page=jobs", headers=headers, timeout=30) as answer:
        events = _events(answer)
        first = next(events)
        site.add_job()
        assert next(events)["data"] != first["data"]
    assert site.ask("GET", "/api/changes?page=nothing").status_code == 422


# --- executors, repositories, events, plans -------------------------------------------------------------


def test_executors_come_and_go(site: Web) -> None:
    executor = site.add_executor("alpha")
    site.add_executor("beta")
    assert [(one["name"], one["status"]) for one in site.get("/api/executors")["executors"]] == [
        ("alpha", "online"),
        ("beta", "online"),
    ]
    assert site.get(f"/api/executors/{executor}")["name"] == "alpha"
    assert site.ask("DELETE", "/api/executors/alpha").json()["status"] == "revoked"
    assert site.ask("DELETE", "/api/executors/alpha").status_code == 404
    assert site.ask("GET", "/api/executors/nobody").status_code == 404


def test_a_join_token_comes_with_its_command(site: Web) -> None:
    said = site.ask("POST", "/api/join-tokens").json()
    assert said["command"] == f"trainforge executor join {site.url} {said['token']}"
    assert said["expires"] > time.time()


def test_a_login_link_can_be_asked_for(site: Web) -> None:
    said = site.ask("POST", "/api/login-links").json()
    link = said["url"].rsplit("=", 1)[1]
    assert site.sender.people.use_link(link, site.sender.now())


def test_events_name_their_repository_and_jobs(site: Web) -> None:
    job = site.add_job()
    (event,) = site.get("/api/events?repository=demo")["events"]
    assert (event["decision"], event["jobs"], event["repository"]) == ("job", [job], "demo")
    assert site.get("/api/events?repository=other")["events"] == []
    assert [repo["name"] for repo in site.get("/api/repositories")["repositories"]] == ["demo"]


def test_a_plan_is_made_or_says_why_not(site: Web) -> None:
    nobody = site.ask("POST", "/api/plan", json={"manifest": MANIFEST}).json()
    assert nobody["waiting"] == {"*": "no executor has joined yet"}
    site.add_executor("alpha")
    made = site.ask("POST", "/api/plan", json={"manifest": MANIFEST}).json()
    assert [node["name"] for node in made["plan"]["nodes"]] == ["alpha"]
    two = {"manifest": MANIFEST, "overrides": {"resources.nodes": 2}}
    wait = site.ask("POST", "/api/plan", json=two).json()
    assert wait["waiting"] == {"alpha": "would fit, but the job needs 2 machines at once and 1 fits"}
    assert wait["suggestions"] == ["resources.nodes: 1 would fit now"]
    assert wait["start"] == {"time": None, "words": "unknown: no machines that are there now could take it"}
    assert (made["start"]["words"], made["suggestions"]) == ("now", [])


def test_a_plan_minds_executors_that_were_picked(site: Web) -> None:
    site.add_executor("alpha")
    site.add_executor("beta")

    def ask(*executors: str) -> Any:
        return site.ask("POST", "/api/plan", json={"manifest": MANIFEST, "executors": executors}).json()

    made = ask("!alpha")
    assert [node["name"] for node in made["plan"]["nodes"]] == ["beta"]
    assert ask("beta")["plan"]["nodes"][0]["name"] == "beta"
    assert ask("gamma")["code"] == "not_found"


def test_a_wrong_manifest_comes_back_with_every_place(site: Web) -> None:
    wrong = "project: {name: x}\ntraining:\n  scirpt: train.py\nresources:\n  nodes: many\n"
    answer = site.ask("POST", "/api/plan", json={"manifest": wrong})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "manifest_invalid")
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["place"].startswith("trainforge.yaml:")
    assert {one["place"].split(":")[1] for one in problem["problems"]} >= {"3", "5"}


# --- bad requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/api/jobs", b"{", 422, "message_invalid"),
        ("POST", "/api/jobs", b"[]", 422, "message_invalid"),
        ("POST", "/api/jobs", b'{"repository": "demo", "commit": "HEAD"}', 422, "message_invalid"),
        ("POST", "/api/jobs", b'{"repository": "demo", "x": 1}', 422, "message_invalid"),
        ("POST", "/api/jobs", b'{"repository": "no", "commit": "%s"}' % (b"a" * 40), 404, "not_found"),
        ("POST", "/api/plan", b'{"manifest": "%s"}' % (b"x" * 200_000), 422, "message_invalid"),
        ("POST", "/api/plan", b'{"manifest": "%s"}' % (b"x" * 2_000_000), 413, "too_large"),
        ("POST", "/api/repositories", b'{"url": "ext::sh -c id"}', 422, "address_refused"),
        ("POST", "/api/repositories", b'{"url": "/nonexistent/repository"}', 404, "not_found"),
        ("GET", "/api/jobs?limit=many", b"", 422, "message_invalid"),
        ("GET", "/api/nothing", b"", 404, "not_found"),
        ("PUT", "/api/jobs", b"", 405, "method_not_allowed"),
        ("POST", "/api/jobs/" + "a" * 26 + "/retry", b"", 404, "not_found"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_a_problem_document(
    site: Web, *, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    answer = site.ask(method, path, content=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["status"]) == (code, status)
    assert problem["detail"]
    assert problem["type"] == f"urn:trainforge:problem:{code}"
    assert site.get("/api/jobs")["jobs"] == []


def test_a_body_without_a_length_is_capped_too(site: Web) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(3000):
            yield b"x" * 1024

    try:
        answer = site.ask("POST", "/api/plan", content=endless())
    except httpx2.HTTPError:
        answer = None  # the sender had answered and hung up before all of it was sent
    assert answer is None or answer.status_code == 413
    assert site.get("/health")["status"] == "ok"
