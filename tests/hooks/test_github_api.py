"""GitHub's API asked patiently, over real HTTP, by a token and by an App."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.github import GitHub, Repository, serving_github
from trainforge.config.errors import NotFound, NotTrusted, TrainForgeError, Unreachable
from trainforge.hooks import github_api
from trainforge.hooks.addresses import AddressRefused
from trainforge.hooks.github_api import (
    GITHUB,
    TRIES,
    AppAccess,
    GitHubApi,
    GitHubBusy,
    GitHubForbids,
    GitHubRefuses,
    TokenAccess,
    check_api_url,
    check_name,
    convert_manifest,
    permission_words,
    site_of,
)


@pytest.fixture(scope="module")
def github(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHub]:
    """One for all: each test has a repository of its own, and puts its switches back."""
    with serving_github(tmp_path_factory.mktemp("github")) as made:
        yield made


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(github_api, "BACKOFF_S", 0.01)


@pytest.fixture
def repo(github: GitHub, request: pytest.FixtureRequest) -> Iterator[Repository]:
    name = request.node.name.partition("[")[0].replace("_", "-")[:60]
    yield github.add_repository(f"ada/{name}-{next(github.numbers)}", private=True)
    github.troubles.clear()
    github.page_size = 0
    github.rate.remaining = github.rate.limit


def api(github: GitHub, *repositories: Repository, **permissions: str) -> GitHubApi:
    return GitHubApi(TokenAccess(github.token("ada", *repositories, **permissions)), github.api)


def ask(asked: GitHubApi, repo: Repository, path: str = "", method: str = "GET", **body: Any) -> Any:
    with asked.repository(repo.full_name, {"metadata": "read"}) as repository:
        address = f"/repos/{repo.full_name}{path}"
        return repository.requester.requestJsonAndCheck(method, address, input=body or None)[1]


def test_a_servers_error_is_outlived_and_a_comment_is_not_made_twice(
    github: GitHub, repo: Repository
) -> None:
    writing = api(github, repo, issues="write", contents="read")
    github.fail(502, times=2, method="GET", path=f"{repo.name}$")
    assert ask(writing, repo)["id"] == repo.id
    github.fail(502, method="POST", path="comments$")
    before = len(github.requests)
    with pytest.raises(Unreachable, match="status 502"):
        ask(writing, repo, "/issues/1/comments", "POST", body="hello")
    assert len(github.requests) == before + 1


def test_a_short_wait_is_waited_and_a_long_one_told(github: GitHub, repo: Repository) -> None:
    reading = api(github, repo)
    github.slow_down(1)
    begun = time.monotonic()
    assert ask(reading, repo)["id"] == repo.id
    assert time.monotonic() - begun >= 1
    for status in (403, 429):
        github.slow_down(90, status=status)
        with pytest.raises(GitHubBusy) as caught:
            ask(reading, repo)
        assert 80 < caught.value.until - time.time() < 91
        assert caught.value.exit_code == 7


def test_a_used_up_limit_says_until_when(github: GitHub, repo: Repository) -> None:
    reading = api(github, repo)
    github.use_up_rate(600)
    with pytest.raises(GitHubBusy) as caught:
        ask(reading, repo)
    assert 590 < caught.value.until - time.time() < 603


def test_refusals_say_what_is_missing_and_never_the_token(github: GitHub, repo: Repository) -> None:
    cases: list[tuple[GitHubApi, str, dict[str, Any], type[TrainForgeError], str]] = [
        (api(github, repo), "/hooks", {}, GitHubForbids, "Webhooks: read"),
        (GitHubApi(TokenAccess("ghp_wrong"), github.api), "", {}, NotTrusted, "github connect"),
        (api(github, github.add_repository("ada/other")), "", {}, NotFound, "was given this repository"),
        (
            api(github, repo, statuses="write"),
            f"/statuses/{'1' * 40}",
            {"method": "POST", "state": "pending"},
            GitHubRefuses,
            "No commit found",
        ),
    ]
    for asked, path, more, kind, words in cases:
        with pytest.raises(kind) as caught:
            ask(asked, repo, path, **more)
        assert words in str(caught.value)
        assert isinstance(asked.access, TokenAccess)
        assert asked.access.token not in f"{caught.value!r} {caught.value}"
        assert asked.access.token not in repr(asked.access)
        assert caught.value.__suppress_context__ or caught.value.__cause__ is None
    with pytest.raises(Unreachable, match="cannot be reached"):
        ask(GitHubApi(TokenAccess("x"), "http://127.0.0.1:9/api/v3"), repo)


def test_lists_of_many_pages_are_read_to_the_end(github: GitHub, repo: Repository) -> None:
    reading = api(github, repo, repository_hooks="write")
    for number in range(5):
        config = {"url": f"http://127.0.0.1:9/{number}", "content_type": "json"}
        ask(reading, repo, "/hooks", "POST", name="web", config=config, events=["push"])
    github.page_size = 2
    with reading.repository(repo.full_name, {}) as repository:
        assert [hook.config["url"][-1] for hook in repository.get_hooks()] == list("01234")


def test_a_renamed_repository_is_asked_and_told_by_its_old_name(github: GitHub, repo: Repository) -> None:
    both, old = api(github, repo, repository_hooks="write"), repo.full_name
    for number in range(3):
        config = {"url": f"http://127.0.0.1:9/{number}", "content_type": "json"}
        ask(both, repo, "/hooks", "POST", name="web", config=config, events=["push"])
    github.rename(repo, f"{repo.name}-new")
    assert both.facts(old).full_name == repo.full_name
    with both.repository(old, {}) as repository:
        requester = repository.requester
        for query in ("?per_page=2&page=2", ""):
            more = {} if query else {"parameters": {"per_page": "2", "page": "2"}}
            _, (last,) = requester.requestJsonAndCheck("GET", f"/repos/{old}/hooks{query}", **more)
            assert last["config"]["url"].endswith("/2")
        requester.requestJsonAndCheck("PATCH", f"/repos/{old}/hooks/{last['id']}", input={"active": False})
        assert not repo.hooks[last["id"]].active
        requester.requestJsonAndCheck("DELETE", f"/repos/{old}/hooks/{last['id']}")
        assert last["id"] not in repo.hooks


def test_a_token_is_sent_nowhere_else(github: GitHub, repo: Repository) -> None:
    for elsewhere in (
        "https://127.0.0.1/",
        f"{github.site.rpartition(':')[0]}:9/",
        "http://example.org/x",
        "//x",
        "",
    ):
        github.fail(307, path=f"{repo.name}$", Location=elsewhere)
        with pytest.raises(GitHubRefuses, match="sends on to") as caught:
            ask(api(github, repo), repo)
        assert "address of the API" in caught.value.hint
    github.fail(302, times=9, Location=f"{github.api}/repos/{repo.full_name}")
    with pytest.raises(GitHubRefuses, match="from one address to the next"):
        ask(api(github, repo), repo)


def test_an_app_asks_by_a_token_for_one_repository_that_it_gives_back(
    github: GitHub, repo: Repository
) -> None:
    app = github.add_app("trainforge", {"statuses": "write", "metadata": "read"}, ["push"])
    asked = GitHubApi(AppAccess(app.id, app.private_key), github.api)
    with pytest.raises(NotFound):
        ask(asked, repo)
    other = github.add_repository("ada/beside")
    one = github.install(app, "ada", repo, other)
    with asked.repository(repo.full_name, {"statuses": "write"}) as repository:
        (token,) = [token for token in github.tokens.values() if token.installation == one.id]
        assert (token.repositories, token.permissions) == ({repo.id}, {"statuses": "write"})
        assert not token.revoked
        repository.requester.requestJsonAndCheck("GET", f"/repos/{repo.full_name}")
    assert token.revoked
    with (
        pytest.raises(GitHubRefuses, match="not granted"),
        asked.repository(repo.full_name, {"checks": "write"}),
    ):
        pass
    # Also after an error, and where giving it back fails.
    github.fail(500, times=9, method="DELETE")
    with pytest.raises(ZeroDivisionError), asked.repository(repo.full_name, {"metadata": "read"}):
        raise ZeroDivisionError
    assert app.private_key not in repr(asked.access)


def test_what_may_have_been_done_is_asked_for_again_only_where_that_does_no_harm() -> None:
    """A connection that ends without an answer says nothing about what became of the request."""
    with web_page() as (elsewhere, asked):
        for method, times in (("POST", 1), ("PATCH", TRIES), ("GET", TRIES)):
            asked.clear()
            asking = GitHubApi(TokenAccess("x"), f"{elsewhere}/gone").repository("a/b", {})
            with pytest.raises(Unreachable), asking as repository:
                repository.requester.requestJsonAndCheck(method, "/repos/a/b", input={"body": "hello"})
            assert asked == [method] * times


def test_what_is_no_api_of_githubs_is_said_to_be_none(github: GitHub, repo: Repository) -> None:
    with web_page() as (elsewhere, _), pytest.raises(GitHubRefuses) as caught:
        GitHubApi(TokenAccess("secret-token"), elsewhere).facts(repo.full_name)
    assert "/api/v3" in str(caught.value)
    assert "secret-token" not in str(caught.value)


@contextmanager
def web_page() -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything with the same page, and below `/gone` with nothing."""
    asked: list[str] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.command)
            if self.path.startswith("/gone"):
                self.rfile.read(int(self.headers["Content-Length"]))
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Welcome</html>")

        do_PATCH = do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_a_code_makes_an_app_once(github: GitHub) -> None:
    manifest = {"name": "made", "default_permissions": {"checks": "write"}, "redirect_url": "http://x/"}
    code = github.post_manifest(manifest, "state").partition("code=")[2].partition("&")[0]
    made = convert_manifest(code, github.api)
    assert made["pem"].startswith("-----BEGIN RSA PRIVATE KEY")
    for wrong in (code, "../../x", ""):
        with pytest.raises(NotFound):
            convert_manifest(wrong, github.api)


@pytest.mark.parametrize(
    "name", ["", "ada", "a/b/c", "../x", "ada/..", "ada/x.git", "-a/b", "a/b c", "ada/x?y"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(AddressRefused):
        check_name(name)


def test_addresses_and_words() -> None:
    assert check_api_url(GITHUB) == GITHUB
    assert check_api_url("https://github.example.org/api/v3/") == "https://github.example.org/api/v3"
    assert site_of(GITHUB) == "https://github.com"
    assert site_of("https://github.example.org/api/v3") == "https://github.example.org"
    for wrong in (
        "ssh://git@x/y",
        "http://github.example.org/api/v3",
        "https://u:p@x/api",
        "http://10.0.0.7/api/v3",
        "",
        "https://x/?a=b",
        "file:///etc",
    ):
        with pytest.raises(AddressRefused):
            check_api_url(wrong)
    assert permission_words("issues=write; pull_requests=write") == (
        "Issues: read and write or Pull requests: read and write"
    )
    assert permission_words("odd_one=read") == "Odd one: read"


def test_it_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    program = "import sys, trainforge.sender.app, trainforge.cli; print('github' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.strip() == "False"
