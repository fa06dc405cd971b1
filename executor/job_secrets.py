"""The secrets of one node's job: fetched when they are needed, held in memory alone, masked in what leaves.

An executor that is started again has forgotten them. What masks a training's output is its supervisor, which
goes on; for the rest they are fetched anew, and until then it waits: metrics to be journalled, artifacts to
be searched. Where the sender no longer gives them, that is given up rather than let out unmasked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainforge.config import discreet
from trainforge.config.errors import Conflict, NodeFailed, NotTrusted, TrainForgeError, Unreachable
from trainforge.config.messages import FencingToken, NodeKey
from trainforge.config.redact import Redactor

AGAIN_S = 3.0
BLOCK = 1024 * 1024
ENDING = frozenset({"secret_missing", "secret_refused"})
# What of a journal record is somebody's text: the rest is ours, and has to stay as it is.
TEXTS = {
    "phase": ("detail",), "started": ("argv",), "log": ("text",), "metric": ("values",),
    "ended": ("reason", "tail"), "publish_waiting": ("reason",), "finished": ("reason",), "note": ("text",),
}  # fmt: skip

Fetch = Callable[[NodeKey, FencingToken, Sequence[str]], dict[str, str]]


class JobSecrets:
    """`own` are the executor's credentials, masked as well. `names` is set once the manifest is known."""

    def __init__(
        self, key: NodeKey, token: Callable[[], FencingToken], fetch: Fetch, own: Sequence[str]
    ) -> None:
        self._key, self._token, self._fetch, self._own = key, token, fetch, own
        self.names: Sequence[str] = ()
        self.values: dict[str, str] = {}
        self.refused = ""
        self._code = ""
        self.redactor = Redactor(own)
        self._tried = 0.0
        discreet.learn(self, self.redactor)

    @property
    def known(self) -> bool:
        return set(self.values) == set(self.names)

    def close(self) -> None:
        discreet.forget(self)

    def require(self, check: Callable[[], object], pause: Callable[[float], object] = time.sleep) -> None:
        """Fetch them, trying again while the sender cannot be reached; `check` may end that by raising.

        Raises:
            NodeFailed: the job does not get them.
        """
        while not self.settle():
            check()
            pause(0.5)
        if self.refused:
            raise NodeFailed(self.refused, code=self._code)

    def settle(self) -> bool:
        """Whether they are known, or certainly refused; asks the sender now and then."""
        if self.known or self.refused:
            return True
        if time.monotonic() - self._tried < AGAIN_S and self._tried:
            return False
        self._tried = time.monotonic()
        try:
            self._take(self._fetch(self._key, self._token(), self.names))
        except (Unreachable, NotTrusted, Conflict):
            pass
        except TrainForgeError as error:
            self.refused = str(error)
            self._code = error.code if error.code in ENDING else "secret_refused"
        return self.known or bool(self.refused)

    def _take(self, values: dict[str, str]) -> None:
        self.values = values
        self.redactor = Redactor([*values.values(), *self._own])
        discreet.learn(self, self.redactor)

    # --- masking ---------------------------------------------------------------------------------------

    def text(self, text: str) -> str:
        return discreet.hide_tokens(self.redactor.text(text))

    def record(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """A journal record's data as they may leave."""
        return data | {name: self._value(data[name]) for name in TEXTS.get(kind, ()) if data.get(name)}

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(name)): self._value(item) for name, item in value.items()}
        return [self._value(item) for item in value] if isinstance(value, list) else value

    def found_in(self, path: Path) -> bool:
        """Whether a file holds one of them, in any of the encodings that are masked."""
        with path.open("rb") as file:
            return self.redactor.finds(iter(lambda: file.read(BLOCK), b""))

    def private(self) -> dict[str, Any]:
        """What the supervisor is told beside its folder; empty where there is nothing to hide."""
        return {"env": self.values, "mask": [*self.values.values(), *self._own]} if self.values else {}
