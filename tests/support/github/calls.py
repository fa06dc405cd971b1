"""One call of the API: what was asked, by whom, and how a route answers or refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.github.state import App, Json, Repository, Token

if TYPE_CHECKING:
    from support.github.server import GitHub

DOCS = "https://docs.github.com/rest"


class Refusal(Exception):  # noqa: N818 - an answer like any other
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"message": message, "documentation_url": DOCS, "status": str(status), **more}


@dataclass
class Call:
    github: GitHub
    method: str
    path: dict[str, str]
    query: dict[str, str]
    body: Json
    token: Token | None = None
    app: App | None = None
    headers: dict[str, str] = field(default_factory=dict)  # of the answer

    @property
    def repository(self) -> Repository:
        """The one that the path names, if the token may see it."""
        found = self.github.repository(f"{self.path['owner']}/{self.path['repo']}")
        if found is None:
            raise Refusal(404, "Not Found")
        sees = self.token is None or self.token.is_for(found.id, private=found.private)
        if found.private and not sees:
            raise Refusal(404, "Not Found")
        return found

    def page(self, items: list[Any]) -> list[Any]:
        """One page of a list, and in the answer's `Link` where the next one is."""
        size = int(self.query.get("per_page", "30"))
        size = min(size, self.github.page_size or 100)
        number = int(self.query.get("page", "1"))
        if number * size < len(items):
            self._link("page", str(number + 1))
        return items[(number - 1) * size : number * size]

    def cursor_page(self, items: list[Any]) -> list[Any]:
        """As `page`, for lists of deliveries, which go on by a cursor."""
        size = min(int(self.query.get("per_page", "30")), self.github.page_size or 100)
        first = int(self.query.get("cursor", "v1_0").removeprefix("v1_"))
        if first + size < len(items):
            self._link("cursor", f"v1_{first + size}")
        return items[first : first + size]

    def _link(self, key: str, value: str) -> None:
        query = "&".join(f"{k}={v}" for k, v in ({**self.query, key: value}).items())
        self.headers["Link"] = f'<{self.github.api}{self.headers["_path"]}?{query}>; rel="next"'


Handler = Callable[[Call], tuple[int, Any]]


@dataclass(frozen=True)
class Route:
    """`needs` is a permission and its level; `by` is who may ask: a `token` or an `app` with its JWT."""

    method: str
    path: str
    handler: Handler
    needs: tuple[str, str] | None
    by: str = "token"


ROUTES: list[Route] = []


def route(
    method: str, path: str, needs: tuple[str, str] | None = None, by: str = "token"
) -> Callable[[Handler], Handler]:
    def put(handler: Handler) -> Handler:
        ROUTES.append(Route(method, path, handler, needs, by))
        return handler

    return put


def invalid(resource: str, field_name: str, message: str) -> Refusal:
    """How GitHub refuses a value that its description allows."""
    errors = [{"resource": resource, "field": field_name, "code": "custom", "message": message}]
    return Refusal(422, "Validation Failed", errors=errors)
