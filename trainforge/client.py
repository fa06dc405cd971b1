"""The sender's JSON API, seen from the command line: typed answers, refusals as the errors they were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import BaseModel, ValidationError

from trainforge.config import errors
from trainforge.config.errors import ManifestError, Place, TrainForgeError, Unreachable
from trainforge.config.settings import load_client
from trainforge.config.views import (
    AuditEntry,
    AuditVerdict,
    EventView,
    ExecutorView,
    GitHubAppView,
    GitHubConnectionView,
    GitHubReport,
    JobDetail,
    JobSummary,
    LogLine,
    MetricPoint,
    RepositoryView,
    SecretView,
    TokenView,
    UserView,
)

View = TypeVar("View", bound=BaseModel)
TIMEOUT_S = 30.0
UPLOAD_S = 600.0  # between two signs of life
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_BY_STATUS: dict[int, type[TrainForgeError]] = {
    401: errors.NotTrusted,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    429: errors.Unreachable,
    503: errors.Unreachable,
}


class NoSender(TrainForgeError):  # noqa: N818 - reads as the finding it is
    """This machine was never told which sender to use."""

    code = "no_sender"
    exit_code = 2


class Client:
    """One sender's API. Use as a context manager; every call raises TrainForgeError on a refusal."""

    def __init__(self, url: str, token: str, transport: httpx2.BaseTransport | None = None) -> None:
        """`transport` reaches a sender that has no address of its own."""
        self.url = url.rstrip("/")
        self.token = token
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        near = transport is not None or urlsplit(self.url).hostname in LOOPBACK  # which no proxy reaches
        self._http = httpx2.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT_S, trust_env=not near, transport=transport
        )

    @classmethod
    def configured(cls) -> Client:
        """The sender that `sender start` or `login` noted, or the environment names.

        Raises:
            NoSender: none.
        """
        settings = load_client()
        if not settings.sender_url:
            raise NoSender(
                "no sender is known on this machine",
                hint="start one with `trainforge sender start`, or name one with `trainforge login URL`",
            )
        return cls(settings.sender_url, settings.token.get_secret_value())

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # --- jobs ----------------------------------------------------------------------------------------

    def jobs(
        self, *, state: str = "", project: str = "", matrix: str = "", limit: int = 20
    ) -> list[JobSummary]:
        answer = self._get("/api/jobs", state=state, project=project, matrix=matrix, limit=limit)
        return _views(JobSummary, answer, "jobs")

    def job(self, job: str) -> JobDetail:
        return _view(JobDetail, self._get(_job(job)))

    def submit(self, request: dict[str, Any]) -> JobDetail:
        return _view(JobDetail, self._post("/api/jobs", request))

    def submit_bundle(self, file: BinaryIO, name: str, said: dict[str, str]) -> JobDetail:
        """Upload a ZIP; `said` are the form's fields."""
        sent = {"file": (name, file, "application/zip")}
        return _view(JobDetail, self._ask("POST", "/api/jobs", data=said, files=sent, timeout=UPLOAD_S))

    def stop(self, job: str, reason: str) -> dict[str, Any]:
        return self._post(f"{_job(job)}/stop", {"reason": reason})

    def resume(self, job: str) -> JobDetail:
        return _view(JobDetail, self._post(f"{_job(job)}/resume", {}))

    def retry(self, job: str) -> JobDetail:
        return _view(JobDetail, self._post(f"{_job(job)}/retry", {}))

    def logs(
        self, job: str, *, after: int = 0, rank: int | None = None, limit: int = 1000, wait: float = 0
    ) -> tuple[list[LogLine], int, bool]:
        """Lines after a cursor, the new cursor, and whether there will be no more."""
        answer = self._get(
            f"{_job(job)}/logs",
            after=after,
            rank=rank,
            limit=limit,
            wait=wait or None,
            patience=wait + TIMEOUT_S,
        )
        return _views(LogLine, answer, "lines"), int(answer.get("cursor", after)), bool(answer.get("ended"))

    def metrics(self, job: str, *, after: int = 0) -> list[MetricPoint]:
        return _views(MetricPoint, self._get(f"{_job(job)}/metrics", after=after), "points")

    def artifacts(self, job: str) -> dict[str, Any]:
        return self._get(f"{_job(job)}/artifacts")

    def plan(self, manifest: str, overrides: dict[str, Any], executors: Sequence[str] = ()) -> dict[str, Any]:
        asked = {"manifest": manifest, "overrides": overrides, "executors": list(executors)}
        return self._post("/api/plan", asked)

    # --- machines, repositories, events ---------------------------------------------------------------

    def executors(self) -> list[ExecutorView]:
        return _views(ExecutorView, self._get("/api/executors"), "executors")

    def machines(self) -> list[dict[str, Any]]:
        """All executors and those that are expected (`pending`), as the first API has them."""
        return list(self._get("/api/network/machines").get("machines", []))

    def expect_machine(self, name: str, host: str) -> dict[str, Any]:
        return self._post("/api/network/machines", {"name": name, "host": host})

    def arrival(self, name: str, wait: float) -> dict[str, Any]:
        """One of them, as soon as it has joined and reports, or after so many seconds."""
        path = f"/api/network/machines/{quote(name, safe='')}"
        return self._get(path, wait=wait, patience=wait + TIMEOUT_S)

    def executor(self, name: str) -> ExecutorView:
        return _view(ExecutorView, self._get(_executor(name)))

    def tell_executor(self, name: str, action: str) -> ExecutorView:
        """`action` is drain, undrain or remove."""
        if action == "remove":
            return _view(ExecutorView, self._ask("DELETE", _executor(name)))
        return _view(ExecutorView, self._post(f"{_executor(name)}/{action}", {}))

    def join_token(self, **kind: Any) -> dict[str, Any]:
        """`kind`: approval, ephemeral, max_jobs."""
        return self._post("/api/join-tokens", kind)

    def rotate_key(self, *, withdraw: bool) -> dict[str, Any]:
        return self._post("/api/sender/rotate-key", {"withdraw": withdraw})

    def audit(self, *, limit: int, before: int = 0) -> list[AuditEntry]:
        return _views(AuditEntry, self._get("/api/audit", limit=limit, before=before or None), "entries")

    def verify_audit(self, head: str = "") -> AuditVerdict:
        return _view(AuditVerdict, self._get("/api/audit/verify", head=head, patience=600))

    def repositories(self) -> list[RepositoryView]:
        return _views(RepositoryView, self._get("/api/repositories"), "repositories")

    def watch(self, url: str, name: str = "", *, take_over: bool = False) -> dict[str, Any]:
        named = {"name": name} if name else {}
        return self._post("/api/repositories", {"url": url, "take_over": take_over, **named})

    def events(self, *, repository: str = "", limit: int = 20) -> list[EventView]:
        return _views(EventView, self._get("/api/events", repository=repository, limit=limit), "events")

    # --- GitHub ---------------------------------------------------------------------------------------

    def github_connections(self) -> list[GitHubConnectionView]:
        return _views(GitHubConnectionView, self._get("/api/github"), "connections")

    def github_apps(self) -> list[GitHubAppView]:
        return _views(GitHubAppView, self._get("/api/github"), "apps")

    def connect_github(self, asked: dict[str, Any]) -> GitHubReport:
        """It takes as long as GitHub's ping takes."""
        answer = self._ask("POST", "/api/github/connections", json=asked, timeout=120)
        return _view(GitHubReport, answer)

    def check_github(self, repository: str) -> GitHubReport:
        answer = self._ask("POST", "/api/github/check", json={"repository": repository}, timeout=120)
        return _view(GitHubReport, answer)

    def disconnect_github(self, repository: str) -> GitHubConnectionView:
        path = "/api/github/connections"
        return _view(
            GitHubConnectionView, self._ask("DELETE", path, params={"repository": repository}, timeout=60)
        )

    def begin_github_app(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._post("/api/github/apps", asked)

    # --- secrets --------------------------------------------------------------------------------------

    def secrets(self, repository: str = "") -> list[SecretView]:
        return _views(SecretView, self._get("/api/secrets", repository=repository), "secrets")

    def set_secret(self, name: str, repository: str, value: str, branches: Sequence[str]) -> dict[str, Any]:
        asked = {"name": name, "repository": repository, "value": value, "branches": list(branches)}
        return self._post("/api/secrets", asked)

    def remove_secret(self, name: str, repository: str) -> dict[str, Any]:
        path = f"/api/secrets/{quote(name, safe='')}"
        return self._ask("DELETE", path, params={"repository": repository})

    def rotate_secrets_key(self) -> dict[str, Any]:
        return self._post("/api/secrets/rotate-key", {})

    # --- people ---------------------------------------------------------------------------------------

    def me(self) -> dict[str, Any]:
        return self._get("/api/me")

    def users(self) -> list[UserView]:
        return _views(UserView, self._get("/api/users"), "users")

    def add_user(self, name: str, role: str, password: str | None) -> dict[str, Any]:
        """Without a password, the answer has the `url` of a link where they set one."""
        word = {"password": password} if password is not None else {}
        return self._post("/api/users", {"name": name, "role": role, **word})

    def change_user(self, name: str, method: str, part: str = "", **body: str) -> dict[str, Any]:
        """`part` is password, link or logout."""
        path = f"/api/users/{quote(name, safe='')}" + (f"/{part}" if part else "")
        return self._ask(method, path, json=body) if body else self._ask(method, path)

    def set_own_password(self, password: str, current: str) -> dict[str, Any]:
        return self._ask("PUT", "/api/me/password", json={"password": password, "current": current})

    def tokens(self) -> list[TokenView]:
        return _views(TokenView, self._get("/api/tokens"), "tokens")

    def add_token(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._post("/api/tokens", request)

    def revoke_token(self, number: int) -> dict[str, Any]:
        return self._ask("DELETE", f"/api/tokens/{number}")

    def health(self) -> dict[str, Any]:
        return self._get("/health")

    # --- requests -------------------------------------------------------------------------------------

    def _get(self, path: str, *, patience: float = TIMEOUT_S, **query: Any) -> dict[str, Any]:
        params = {name: value for name, value in query.items() if value not in (None, "")}
        return self._ask("GET", path, params=params, timeout=patience)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._ask("POST", path, json=body)

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **options)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise Unreachable(
                f"the sender at {self.url} does not answer ({error or type(error).__name__})",
                hint="is it running? `trainforge sender start` starts one here",
            ) from error
        if answer.status_code >= 300:
            raise refusal(answer.status_code, answer.content)
        data = _json(answer.content)
        if not isinstance(data, dict):
            raise Unreachable(f"{self.url} is not a TrainForge sender", hint="check the address")
        return data


def refusal(status: int, body: bytes) -> TrainForgeError:
    """The error that a problem document tells of."""
    document = _json(body)
    if not isinstance(document, dict) or "detail" not in document:
        kind = Unreachable if status >= 500 else TrainForgeError
        return kind(
            f"the sender answered with status {status}", hint="is this a TrainForge sender's address?"
        )
    if problems := document.get("problems"):
        return ManifestError([_problem(problem) for problem in problems])
    kind = _BY_STATUS.get(status, TrainForgeError)
    hint = str(document.get("hint", ""))
    if status == 401 and not hint:
        hint = "`trainforge login URL` renews this machine's token"
    error = kind(str(document["detail"]), hint=hint, place=_place(document.get("place")))
    error.code = str(document.get("code", error.code))
    return error


def _problem(document: dict[str, Any]) -> TrainForgeError:
    return TrainForgeError(
        str(document.get("detail", "")),
        hint=str(document.get("hint", "")),
        place=_place(document.get("place")),
        code=document.get("code"),
    )


def _place(text: Any) -> Place | None:
    return Place(str(text)) if text else None


def _job(job: str) -> str:
    return f"/api/jobs/{quote(job, safe='')}"


def _executor(name: str) -> str:
    return f"/api/executors/{quote(name, safe='')}"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _view(model: type[View], data: dict[str, Any]) -> View:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise Unreachable(
            f"the sender's answer is not understood ({error.errors()[0]['msg']})",
            hint="are both of the same version? `trainforge --version`",
        ) from error


def _views(model: type[View], data: dict[str, Any], key: str) -> list[View]:
    return [_view(model, entry) for entry in data.get(key, [])]
