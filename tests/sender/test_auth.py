"""Who gets in, and what a browser may be made to do."""

from __future__ import annotations

import sqlite3

import httpx2
import pytest

from support.web import Web
from trainforge.config.errors import NotFound

DAY = 24 * 3600


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer tfp_wrong",
        "bearer tfp_" + "0" * 64,
        "Basic eDp5",
        "Bearer " + "x" * 9000,
    ],
)
def test_without_a_valid_token_the_answer_is_401_and_a_problem(site: Web, header: str) -> None:
    answer = httpx2.get(f"{site.url}/api/jobs", headers={"Authorization": header} if header else {})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    problem = answer.json()
    assert (problem["code"], problem["status"]) == ("not_trusted", 401)
    assert problem["hint"]


def test_tokens_expire_and_can_be_revoked(site: Web) -> None:
    people, now = site.sender.people, site.sender.now()
    token = people.new_token("guest", now, life_s=60)
    assert people.by_token(token, now + 59) is not None
    assert people.by_token(token, now + 61) is None
    lasting = people.new_token("guest", now)
    (number,) = [token.id for token in people.tokens() if token.name == "guest" and not token.expires]
    assert people.by_token(lasting, now) is not None
    people.revoke(number, now, owner=None, by="person:ada")
    with pytest.raises(NotFound):
        people.revoke(number, now, owner=None, by="person:ada")
    answer = httpx2.get(f"{site.url}/api/jobs", headers={"Authorization": f"Bearer {lasting}"})
    assert answer.status_code == 401


def test_secrets_are_stored_as_digests_alone(site: Web) -> None:
    people, now = site.sender.people, site.sender.now()
    secrets = [people.new_token("ada", now), people.new_link(now), people.new_session("ada", now, how="link")]
    with sqlite3.connect(site.sender.data_dir / "trainforge.db") as database:
        dump = "\n".join(database.iterdump())
    database.close()
    assert not [secret for secret in secrets if secret in dump]


def test_a_login_link_works_once_and_not_by_being_opened(site: Web) -> None:
    link = site.sender.people.new_link(site.sender.now())
    page = f"{site.url}/login?link={link}"
    headers = {"Origin": site.url}
    for _ in range(2):  # previews and scanners open links
        assert httpx2.get(page).status_code == 200
    answer = httpx2.post(f"{site.url}/login", data={"link": link}, headers=headers)
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    again = httpx2.post(f"{site.url}/login", data={"link": link}, headers=headers)
    assert again.status_code == 401
    assert "set-cookie" not in again.headers


def test_login_links_and_sessions_end(site: Web) -> None:
    people, now = site.sender.people, site.sender.now()
    link, session = people.new_link(now), people.new_session("ada", now, how="link")
    assert not people.use_link(link, now + 16 * 60)
    for day in range(14):
        assert people.by_session(session, now + day * DAY) is not None
    assert people.by_session(session, now + 15 * DAY) is None  # however much it was used
    idle = people.new_session("ada", now, how="link")
    assert people.by_session(idle, now + 2 * DAY) is not None
    assert people.by_session(idle, now + 6 * DAY) is None


def test_an_access_token_logs_a_browser_in(site: Web) -> None:
    headers = {"Origin": site.url}
    wrong = httpx2.post(f"{site.url}/login", data={"token": "tfp_no"}, headers=headers)
    assert wrong.status_code == 401
    right = httpx2.post(f"{site.url}/login", data={"token": site.token, "next": "/events"}, headers=headers)
    assert (right.status_code, right.headers["location"]) == (303, "/events")


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example/", "//evil.example/x", "/\\evil.example", "javascript:alert(1)", "jobs", ""],
)
def test_a_login_leads_to_pages_of_ours_alone(site: Web, wanted: str) -> None:
    answer = httpx2.post(
        f"{site.url}/login", data={"token": site.token, "next": wanted}, headers={"Origin": site.url}
    )
    assert answer.headers["location"] == "/jobs"


def test_another_sites_page_cannot_act_with_the_cookie(site: Web) -> None:
    job = site.add_job()
    with site.log_in() as browser:
        assert browser.get("/api/jobs").status_code == 200
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", f"{site.url}.evil.example"):
            for path in (f"/api/jobs/{job}/stop", f"/jobs/{job}/stop", "/logout", "/api/join-tokens"):
                answer = browser.post(path, headers={"Origin": origin})
                assert answer.status_code == 403, f"{origin} {path}: {answer.status_code}"
        del browser.headers["Origin"]
        assert browser.post(f"/api/jobs/{job}/stop").status_code == 403
        cross = {"Sec-Fetch-Site": "cross-site"}
        assert browser.post(f"/api/jobs/{job}/stop", headers=cross).status_code == 403
        same = {"Sec-Fetch-Site": "same-origin"}
        assert browser.post(f"/api/jobs/{job}/stop", headers=same).status_code == 200
    assert site.get(f"/api/jobs/{job}")["stopping"] is True


def test_logging_out_ends_the_session_here(site: Web) -> None:
    with site.log_in() as browser:
        secret = browser.cookies["trainforge_session"]
        assert browser.post("/logout").status_code == 303
    answer = httpx2.get(f"{site.url}/api/jobs", headers={"Cookie": f"trainforge_session={secret}"})
    assert answer.status_code == 401


def test_a_wrong_token_is_not_rescued_by_a_cookie(site: Web) -> None:
    with site.log_in() as browser:
        assert browser.get("/api/jobs", headers={"Authorization": "Bearer tfp_wrong"}).status_code == 401
