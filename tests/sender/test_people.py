"""Accounts: passwords, being slowed down, forms that only our pages can send, sessions that end."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support.databases import KINDS, database_url
from support.web import Web, web
from trainforge.config.errors import Conflict, NotTrusted, TooMany
from trainforge.sender.people import People
from trainforge.sender.store import Store

WORDS = "four quite unrelated words"
COOKIE = "trainforge_session"


@pytest.fixture
def people(site: Web) -> Web:
    """With an account for each role, ada (the admin), otto and vera, who has a password."""
    for name, role in (("otto", "operator"), ("vera", "viewer")):
        assert site.ask("POST", "/api/users", json={"name": name, "role": role}).status_code == 200
    assert site.ask("PUT", "/api/users/vera/password", json={"password": WORDS}).status_code == 200
    return site


def log_in(site: Web, name: str, password: str, **headers: str) -> httpx2.Response:
    form = {"name": name, "password": password}
    return httpx2.post(f"{site.url}/login", data=form, headers={"Origin": site.url} | headers, timeout=30)


def session(site: Web, name: str = "vera") -> dict[str, str]:
    answer = log_in(site, name, WORDS)
    assert answer.status_code == 303, answer.text
    return {"Cookie": f"{COOKIE}={answer.cookies[COOKIE]}"}


def actions(site: Web) -> list[tuple[str, str, str]]:
    return [(row["actor"], row["action"], row["subject"]) for row in reversed(site.sender.store.audit_rows())]


# --- accounts and tokens --------------------------------------------------------------------------------


def test_an_invited_person_sets_a_password_by_the_link_and_logs_in_with_it(site: Web) -> None:
    made = site.ask("POST", "/api/users", json={"name": "Vera", "role": "viewer"}).json()
    assert (made["name"], made["password"]) == ("vera", False)
    link = made["url"].rsplit("=", 1)[1]
    origin = {"Origin": site.url}
    short = httpx2.post(f"{site.url}/login", data={"link": link, "password": "short"}, headers=origin)
    assert short.status_code == 422
    assert f'value="{link}"' in short.text  # and the link still works
    done = httpx2.post(f"{site.url}/login", data={"link": link, "password": WORDS}, headers=origin)
    assert done.status_code == 303
    assert log_in(site, "VERA", WORDS).status_code == 303
    assert ("person:ada", "user.created", "vera") in actions(site)
    assert ("person:vera", "login", "vera") in actions(site)


@pytest.mark.parametrize("kind", KINDS)
def test_accounts_work_on_every_database(kind: str, tmp_path: Path) -> None:
    for url in database_url(kind):
        store = Store.open(url, tmp_path)
        people = People(store)
        people.ensure_admin(1.0)
        people.ensure_admin(2.0)
        assert people.add_user("Vera", "viewer", 1.0).name == "vera"
        with pytest.raises(Conflict):
            people.add_user("vera", "admin", 1.0)
        vera = people.account("vera")
        token = people.new_token("ci", 1.0, role="admin", user=vera.id)
        link = people.new_link(1.0, "vera")
        assert [people.use_link(link, 2.0), people.use_link(link, 2.0)] == ["vera", None]
        secret = people.new_session("vera", 2.0, how="link")
        for person in (people.by_token(token, 3.0), people.by_session(secret, 90.0)):
            assert (person.name, person.role, person.user) == ("vera", "viewer", vera.id)  # type: ignore[union-attr]
        people.remove_user("vera", 4.0)
        assert (people.by_token(token, 5.0), people.by_session(secret, 5.0)) == (None, None)
        assert people.add_user("vera", "admin", 6.0).role == "admin"
        assert people.account("vera").id != vera.id
        assert store.verify_audit().problems == ()
        store.close()


def test_a_viewer_is_shown_no_buttons_that_would_be_refused(people: Web) -> None:
    job = people.add_job()
    for name, shown in (("vera", False), ("otto", True)):
        with people.log_in(name) as browser:
            assert ("/stop" in browser.get(f"/jobs/{job}").text) == shown


def test_passwords_are_kept_as_argon2_alone(people: Web) -> None:
    with sqlite3.connect(people.sender.data_dir / "trainforge.db") as database:
        (kept,) = database.execute("SELECT password FROM users WHERE name = 'vera'").fetchone()
        everything = "\n".join(database.iterdump())
    database.close()
    parameters = re.fullmatch(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=1\$[^$]+\$[^$]+", kept)
    assert parameters is not None
    assert int(parameters[1]) >= 19 * 1024
    assert int(parameters[2]) >= 2
    assert WORDS not in everything


def test_the_last_admin_stays_one(people: Web) -> None:
    assert (
        people.ask("DELETE", "/api/users/ada").status_code == 200
    )  # the one made at the first start is left
    admin = people.sender.people.first_admin()
    assert admin.name == "admin"
    people.token = people.token_of("admin")
    assert people.ask("DELETE", "/api/users/admin").status_code == 409
    assert people.ask("PATCH", "/api/users/admin", json={"role": "viewer"}).status_code == 409
    assert people.ask("PATCH", "/api/users/otto", json={"role": "admin"}).status_code == 200
    assert people.ask("PATCH", "/api/users/admin", json={"role": "viewer"}).status_code == 200


def test_people_see_and_make_their_own_tokens_alone(people: Web) -> None:
    def ask(name: str, method: str, path: str, body: Any = None) -> httpx2.Response:
        bearer = {"Authorization": f"Bearer {tokens[name]}"}
        return (
            people.ask(method, path, headers=bearer, json=body)
            if body
            else people.ask(method, path, headers=bearer)
        )

    tokens = {name: people.token_of(name) for name in ("otto", "vera")}
    mine = ask("vera", "GET", "/api/tokens").json()["tokens"]
    assert [token["user"] for token in mine] == ["vera"]
    assert {token["user"] for token in people.get("/api/tokens")["tokens"]} == {"ada", "otto", "vera"}
    made = ask("vera", "POST", "/api/tokens", {"name": "ci", "days": 1})
    tokens["ci"] = made.json()["token"]
    assert ask("ci", "GET", "/api/me").json() == {"name": "vera", "role": "viewer", "account": True}
    assert ask("vera", "POST", "/api/tokens", {"name": "ci", "role": "operator"}).status_code == 403
    assert ask("vera", "POST", "/api/tokens", {"name": "ci", "user": "otto"}).status_code == 403
    theirs = ask("otto", "GET", "/api/tokens").json()["tokens"][0]["id"]
    assert ask("vera", "DELETE", f"/api/tokens/{theirs}").status_code == 404
    number = next(
        one["id"] for one in ask("vera", "GET", "/api/tokens").json()["tokens"] if one["name"] == "ci"
    )
    assert ask("vera", "DELETE", f"/api/tokens/{number}").status_code == 200
    assert ask("ci", "GET", "/api/me").status_code == 401
    for body in (
        {"name": "x", "days": 0},
        {"name": "a b"},
        {"name": "x", "role": "root"},
        {"name": "x", "x": 1},
    ):
        assert ask("otto", "POST", "/api/tokens", body).status_code == 422


def test_the_account_page_changes_a_password_and_makes_tokens_without_a_script(people: Web) -> None:
    with people.log_in("vera") as browser:
        page = browser.get("/account").text
        assert "Current password" in page
        fields = {"password": "another set of words", "again": "another set of words"}
        assert browser.post("/account/password", data=fields | {"current": "wrong"}).status_code == 403
        assert (
            browser.post("/account/password", data=fields | {"current": WORDS, "again": "x"}).status_code
            == 422
        )
        other = session(people)
        assert browser.post("/account/password", data=fields | {"current": WORDS}).status_code == 303
        assert httpx2.get(f"{people.url}/api/me", headers=other).status_code == 401  # logged out elsewhere
        page = browser.get("/account").text
        browser.headers["X-CSRF-Token"] = re.search(r'name="csrf" value="(\w+)"', page)[1]  # type: ignore[index]
        made = browser.post("/account/tokens", data={"name": "laptop", "role": "viewer", "days": "30"})
        token = re.search(r"tfp_\w+", made.text)
        assert token is not None
        assert token[0] not in browser.get("/account").text
        assert (
            people.ask("GET", "/api/me", headers={"Authorization": f"Bearer {token[0]}"}).status_code == 200
        )
        too_much = browser.post("/account/tokens", data={"name": "laptop", "role": "admin"})
        assert too_much.status_code == 403


# --- sessions -------------------------------------------------------------------------------------------


def test_a_session_is_new_at_every_login_and_never_one_that_the_browser_brought(people: Web) -> None:
    planted = f"{COOKIE}=chosen-by-an-attacker"
    first = log_in(people, "vera", WORDS, Cookie=planted)
    assert first.cookies[COOKIE] != "chosen-by-an-attacker"
    assert httpx2.get(f"{people.url}/api/me", headers={"Cookie": planted}).status_code == 401
    old = {"Cookie": f"{COOKIE}={first.cookies[COOKIE]}"}
    again = log_in(people, "vera", WORDS, **old)
    assert again.cookies[COOKIE] != first.cookies[COOKIE]
    assert httpx2.get(f"{people.url}/api/me", headers=old).status_code == 401


def test_removal_role_and_logging_out_everywhere_count_at_once(people: Web) -> None:
    first, second = session(people), session(people)
    plan = f"{people.url}/api/me"
    assert httpx2.get(plan, headers=first).json()["role"] == "viewer"
    people.ask("PATCH", "/api/users/vera", json={"role": "operator"})
    assert httpx2.get(plan, headers=first).json()["role"] == "operator"
    assert people.ask("POST", "/api/users/vera/logout").status_code == 200
    assert [httpx2.get(plan, headers=one).status_code for one in (first, second)] == [401, 401]
    third = session(people)
    people.ask("DELETE", "/api/users/vera")
    assert httpx2.get(plan, headers=third).status_code == 401


def test_a_stream_ends_with_the_account(people: Web) -> None:
    headers = session(people) | {"Accept": "text/event-stream"}
    with httpx2.stream("GET", f"{people.url}/api/changes?page=jobs", headers=headers, timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("retry")
        people.ask("DELETE", "/api/users/vera")
        for _ in range(3):  # whatever happens is not told any more
            people.add_job()
            time.sleep(0.6)
        seen = list(lines)
    assert len([line for line in seen if line.startswith("data")]) <= 2


def test_who_is_removed_while_waiting_for_news_gets_none(people: Web) -> None:
    job, token = people.add_job(), people.token_of("vera")
    people.log(job, "first")
    cursor = people.get(f"/api/jobs/{job}/logs")["cursor"]

    def remove() -> None:
        people.sender.people.remove_user("vera", people.sender.now())
        people.log(job, "not for vera")

    timer = threading.Timer(1.5, remove)
    timer.start()
    bearer = {"Authorization": f"Bearer {token}"}
    answer = people.ask("GET", f"/api/jobs/{job}/logs?wait=20&after={cursor}", headers=bearer)
    timer.join()
    assert answer.status_code == 401
    assert "not for vera" not in answer.text


def test_over_https_the_cookie_cannot_be_planted_by_another_host(tmp_path: Path) -> None:
    with web(tmp_path, public_url="https://forge.example") as site:
        link = site.sender.people.new_link(site.sender.now())
        origin = {"Origin": "https://forge.example", "Host": "forge.example"}
        answer = httpx2.post(f"{site.url}/login", data={"link": link}, headers=origin)
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-trainforge_session=")
        assert {"secure", "httponly", "samesite=lax", "path=/"} <= set(cookie.lower().split("; "))
        assert "domain" not in cookie.lower()
        secret = cookie.split("=", 1)[1].split(";")[0]
        for name, status in (("__Host-trainforge_session", 200), (COOKIE, 401)):
            headers = {"Cookie": f"{name}={secret}"}
            assert httpx2.get(f"{site.url}/api/me", headers=headers).status_code == status


# --- changes that a browser asks for --------------------------------------------------------------------

ORIGINS = {
    "ours": ({}, True),
    "no origin, same site": ({"Origin": None, "Sec-Fetch-Site": "same-origin"}, True),
    "nothing said": ({"Origin": None}, False),
    "another site": ({"Origin": "https://evil.example"}, False),
    "another port": ({"Origin": "http://127.0.0.1:1"}, False),
    "sandboxed": ({"Origin": "null"}, False),
    "longer name": ({"Origin": "http://127.0.0.1.evil.example"}, False),
    "cross-site with our origin": ({"Sec-Fetch-Site": "cross-site"}, False),
    "a sibling": ({"Sec-Fetch-Site": "same-site"}, False),
    "typed": ({"Sec-Fetch-Site": "none"}, False),
}
TOKENS = {"ours": True, "none": False, "another session's": False, "empty": False}
WRITES = ("/api/plan", "/account/tokens", "/api/me/logout", "/account/logout", "/logout")


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_change_needs_our_origin_and_the_sessions_token(people: Web, origin: str) -> None:
    changes, may = ORIGINS[origin]
    people.sender.people.set_role("vera", "operator", people.sender.now())
    with people.log_in("vera") as browser, people.log_in("otto") as other:
        tokens = {
            "ours": browser.headers["X-CSRF-Token"],
            "another session's": other.headers["X-CSRF-Token"],
            "empty": "",
        }
        for name, value in changes.items():
            if value is None:
                del browser.headers[name]
            else:
                browser.headers[name] = value
        for token in sorted(TOKENS, key=lambda token: TOKENS[token]):  # the good ones log out
            del browser.headers["X-CSRF-Token"]
            if token in tokens:
                browser.headers["X-CSRF-Token"] = tokens[token]
            for path in WRITES[:1] if TOKENS[token] else WRITES:
                answer = browser.post(path, headers={"Accept": "application/json"})
                assert (answer.status_code != 403) == (may and TOKENS[token]), f"{token} {path}"
            browser.headers["X-CSRF-Token"] = "x"


def test_a_bearer_needs_no_origin_because_no_browser_sends_it_by_itself(people: Web) -> None:
    for headers in ({}, {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}):
        assert people.ask("POST", "/api/plan", json={}, headers=headers).status_code == 422


def test_a_login_from_another_site_is_refused(people: Web) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert log_in(people, "vera", WORDS, **headers).status_code == 403


# --- guessing -------------------------------------------------------------------------------------------


def test_a_thousand_wrong_logins_are_slowed_down_and_lock_nobody_out_for_long(people: Web) -> None:
    sender, start = people.sender, people.sender.now()
    sender.clock = lambda: start
    counts: dict[int, int] = {}
    with httpx2.Client(base_url=people.url, headers={"Origin": people.url}, timeout=30) as browser:
        for number in range(30):
            answer = browser.post("/login", data={"name": "vera", "password": f"wrong {number}"})
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (counts[401], counts[429]) == (6, 24)
        assert asyncio.run(_guesses(people, 1000)) == 1000
        assert browser.post("/login", data={"name": "vera", "password": WORDS}).status_code == 429
        # A link is not slowed down, and neither are tokens in use.
        link = people.ask("POST", "/api/users/vera/link").json()["url"].rsplit("=", 1)[1]
        assert browser.post("/login", data={"link": link}).status_code == 303
        sender.clock = lambda: start + 61
        assert browser.post("/login", data={"name": "vera", "password": WORDS}).status_code == 303
    failed = [subject for _, action, subject in actions(people) if action == "login.failed"]
    assert failed == ["vera"] * counts[401]


async def _guesses(site: Web, number: int) -> int:
    """How many of so many wrong logins are not even looked at."""
    refused = 0
    for guess in range(number):
        with pytest.raises(TooMany):
            await site.sender.logins.by_password(site.sender, "vera", f"wrong {guess}", "192.0.2.9")
        refused += 1
    return refused


def test_an_unknown_account_takes_as_long_as_a_known_one(people: Web) -> None:
    logins, sender = people.sender.logins, people.sender

    async def measure(name: str, number: int) -> float:
        began = time.perf_counter()
        with pytest.raises(NotTrusted):
            await logins.by_password(sender, name, "a wrong password", f"192.0.2.{number}")
        return time.perf_counter() - began

    async def compare() -> tuple[list[float], list[float]]:
        known, unknown = [], []
        for number in range(5):
            known.append(await measure("vera", number))
            unknown.append(await measure("nobody", number))
            logins.throttles.succeeded("vera", "")
            logins.throttles.succeeded("nobody", "")
        return known, unknown

    known, unknown = asyncio.run(compare())
    assert 0.4 < min(unknown) / min(known) < 2.5  # without a hash it would be a hundredth
