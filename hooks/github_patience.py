"""How GitHub is asked below PyGithub: one policy of patience for all requests, and addresses that have moved.

Imported where it is used, as PyGithub is.
"""

from __future__ import annotations

from typing import Any, NoReturn

from urllib3.exceptions import MaxRetryError, ResponseError
from urllib3.util.retry import Retry

LONGEST_WAIT_S = 10.0  # waited for here; whoever asked comes back by itself after a longer time
MOVED = frozenset({301, 302, 307, 308})
_TWICE = frozenset({"GET", "HEAD", "PATCH", "PUT", "DELETE"})  # does no harm


class Moved(Exception):  # noqa: N818 - no error: it is asked there
    """The answer is at another address, where the same is to be asked, says GitHub ("Follow redirects")."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


class Patience(Retry):
    """Short waits are waited, longer ones leave as they came.

    What GitHub refused because of its limits (403 and 429 with `Retry-After`) was not done, so anything is
    asked again; after a server's error, or when no answer came, only what can be done twice is.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        always = {"allowed_methods": _TWICE, "raise_on_status": False, "backoff_max": LONGEST_WAIT_S}
        super().__init__(*arguments, **named | always)

    def is_retry(self, method: str, status_code: int, has_retry_after: bool = False) -> bool:
        if status_code in MOVED:
            return True
        if status_code in (403, 429):
            return bool(self.total) and has_retry_after
        return bool(self.total) and status_code in (500, 502, 503, 504) and method.upper() in _TWICE

    def increment(
        self, method: Any = None, url: Any = None, response: Any = None, *more: Any, **named: Any
    ) -> Any:
        if response is not None and response.status in MOVED:
            _moved(response)
        wait = self.get_retry_after(response) if response is not None else None
        if wait is not None and wait > LONGEST_WAIT_S:
            raise MaxRetryError(named.get("_pool"), url or "", ResponseError("GitHub asks for patience"))  # type: ignore[arg-type]
        return super().increment(method, url, response, *more, **named)


def _moved(response: Any) -> NoReturn:
    response.drain_conn()
    raise Moved(str(response.headers.get("Location", "")))
