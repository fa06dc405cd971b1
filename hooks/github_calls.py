"""The calls by which a repository at GitHub is told things and asked about people and pull requests.

Every call raises the errors of `github_api.py`. Paths and bodies are those of the REST API, version
2022-11-28 ("Commit statuses", "Check runs", "Issue comments", "Reactions", "Collaborators", "Pulls").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from trainforge.hooks.addresses import validate_commit
from trainforge.hooks.github_api import check_name, refusals

if TYPE_CHECKING:
    from github.Repository import Repository

MOST_PAGES = 30
WRITERS = frozenset({"write", "maintain", "admin"})
Reaction = Literal["+1", "-1", "confused", "rocket", "eyes"]


@dataclass(frozen=True)
class PullFacts:
    """A pull request as it stands; `fork`: its head is in another repository, or in one that is gone."""

    number: int
    head_sha: str
    head_ref: str
    base_sha: str
    base_ref: str
    fork: bool
    open: bool


class Calls:
    def __init__(self, repository: Repository, full_name: str) -> None:
        self._requester = repository.requester
        self._path = f"/repos/{check_name(full_name)}"
        self._what = f"{full_name} at GitHub"

    # --- statuses and check runs ------------------------------------------------------------------------

    def set_status(self, commit: str, payload: Mapping[str, Any]) -> None:
        """The newest status of a context is the one that counts, so saying it twice does no harm."""
        self._call("POST", f"/statuses/{validate_commit(commit)}", payload)

    def find_check_run(self, commit: str, name: str, external_id: str) -> int | None:
        """One that was made before, by what it was made with."""
        path = f"/commits/{validate_commit(commit)}/check-runs"
        for page in self._pages(path, check_name=name, filter="all"):
            for run in page.get("check_runs", []):
                if run.get("external_id") == external_id:
                    return int(run["id"])
        return None

    def create_check_run(self, payload: Mapping[str, Any]) -> int:
        return int(self._call("POST", "/check-runs", payload)["id"])

    def update_check_run(self, number: int, payload: Mapping[str, Any]) -> None:
        kept = {key: value for key, value in payload.items() if key != "head_sha"}
        self._call("PATCH", f"/check-runs/{int(number)}", kept)

    # --- pull requests and comments ---------------------------------------------------------------------

    def pull(self, number: int) -> PullFacts:
        return _pull(self._call("GET", f"/pulls/{int(number)}"))

    def open_pulls(self) -> list[PullFacts]:
        return [_pull(one) for page in self._pages("/pulls", state="open") for one in page]

    def find_comment(self, number: int, mark: str) -> int | None:
        """The oldest comment that begins with a mark."""
        for page in self._pages(f"/issues/{int(number)}/comments"):
            for comment in page:
                if str(comment.get("body") or "").startswith(mark):
                    return int(comment["id"])
        return None

    def create_comment(self, number: int, body: str) -> int:
        return int(self._call("POST", f"/issues/{int(number)}/comments", {"body": body})["id"])

    def update_comment(self, comment: int, body: str) -> None:
        self._call("PATCH", f"/issues/comments/{int(comment)}", {"body": body})

    def react(self, comment: int, reaction: Reaction) -> None:
        """Reacting again changes nothing."""
        self._call("POST", f"/issues/comments/{int(comment)}/reactions", {"content": reaction})

    def may_write(self, login: str) -> bool:
        """Whether somebody may push to the repository."""
        said = self._call("GET", f"/collaborators/{quote(login, safe='')}/permission")
        return said.get("permission") in WRITERS

    # --- below --------------------------------------------------------------------------------------------

    def _call(self, verb: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        with refusals(self._what):
            _, data = self._requester.requestJsonAndCheck(
                verb, self._path + path, input=dict(body) if body is not None else None
            )
        return data

    def _pages(self, path: str, **query: str) -> Iterator[Any]:
        for number in range(1, MOST_PAGES + 1):
            with refusals(self._what):
                headers, data = self._requester.requestJsonAndCheck(
                    "GET", self._path + path, parameters={**query, "per_page": "100", "page": str(number)}
                )
            yield data
            if 'rel="next"' not in str(headers.get("link", "")):
                return


def _pull(said: Mapping[str, Any]) -> PullFacts:
    head, base = said["head"], said["base"]
    own = head.get("repo") is not None and head["repo"]["id"] == base["repo"]["id"]
    return PullFacts(
        number=int(said["number"]),
        head_sha=validate_commit(str(head["sha"])),
        head_ref=str(head["ref"]),
        base_sha=validate_commit(str(base["sha"])),
        base_ref=str(base["ref"]),
        fork=not own,
        open=said.get("state") == "open",
    )
