"""The GitHub of the tests' own refuses what GitHub refuses, and says so."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from support.github import serving_github


def _ask(url: str, token: str, method: str = "POST", **options: object) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {token}", "User-Agent": "test"}
    return httpx2.request(method, url, headers=headers, timeout=30, trust_env=False, **options)  # type: ignore[arg-type]


def test_what_the_description_does_not_allow_fails_the_test(tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as caught, serving_github(tmp_path / "github") as github:
        digits = github.add_repository("ada/digits")
        token = github.token("ada", statuses="write")
        answer = _ask(f"{digits.api}/statuses/{'1' * 40}", token, json={"state": "finished"})
        assert answer.status_code == 422
        assert _ask(f"{github.api}/no/such/thing", token, "GET").status_code == 404
    assert "'finished' is not one of" in str(caught.value)
    assert "/no/such/thing is not among the routes" in str(caught.value)


def test_a_token_opens_what_it_is_for(tmp_path: Path) -> None:
    with serving_github(tmp_path / "github") as github:
        mine = github.add_repository("ada/mine", private=True)
        other = github.add_repository("ada/other", private=True)
        token = github.token("ada", mine, contents="read")
        assert _ask(mine.api, token, "GET").status_code == 200
        assert _ask(other.api, token, "GET").status_code == 404
        refused = _ask(f"{mine.api}/hooks", token, "GET")
        assert refused.status_code == 403
        assert refused.headers["x-accepted-github-permissions"] == "repository_hooks=read"
        assert _ask(mine.api, "nonsense", "GET").status_code == 401
