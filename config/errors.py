"""The error tree: what was wrong, where, and what to do next.

An expected refusal is a `TrainForgeError`; anything else that escapes is a bug. Its `code` is stable and
is what HTTP problem documents, results and the command line's `--json` carry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A position in a file of the user's; line and column count from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        parts = [self.file]
        if self.line is not None:
            parts.append(str(self.line))
            if self.column is not None:
                parts.append(str(self.column))
        return ":".join(parts)


class TrainForgeError(Exception):
    """An expected refusal. `exit_code` is the command line's, `status` the HTTP status."""

    code = "refused"
    exit_code = 1
    status = 400

    def __init__(
        self, message: str, *, hint: str = "", place: Place | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.place = place
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.message}" + (f"; {self.hint}" if self.hint else "")


class ManifestError(TrainForgeError):
    """A manifest that cannot be used; `problems` holds every fault found, each with its own place."""

    code = "manifest_invalid"
    exit_code = 3
    status = 422

    def __init__(self, problems: list[TrainForgeError]) -> None:
        first = problems[0]
        super().__init__(first.message, hint=first.hint, place=first.place)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class SettingsError(TrainForgeError):
    """A setting, or a combination of settings, that cannot work."""

    code = "settings_invalid"
    exit_code = 2


class NotTrusted(TrainForgeError):  # noqa: N818 - reads as the verdict it is
    """A message whose signature, token, addressee or freshness does not hold."""

    code = "not_trusted"
    exit_code = 4
    status = 401


class ClockSkew(NotTrusted):
    """A message that holds but for its time. `nonce` lets the next one be judged without a clock."""

    code = "clock_skew"

    def __init__(self, message: str, seconds: float, nonce: str = "") -> None:
        super().__init__(message, hint="set the clocks of both machines")
        self.seconds = seconds
        self.nonce = nonce


class Forbidden(TrainForgeError):  # noqa: N818
    """Known, but not allowed to do this."""

    code = "forbidden"
    exit_code = 4
    status = 403


class NotFound(TrainForgeError):  # noqa: N818
    code = "not_found"
    exit_code = 5
    status = 404


class Conflict(TrainForgeError):  # noqa: N818
    """True a moment ago, no longer: a stale fencing token, a job that has ended."""

    code = "conflict"
    exit_code = 6
    status = 409


class TooLarge(TrainForgeError):  # noqa: N818
    code = "too_large"
    status = 413


class TooMany(TrainForgeError):  # noqa: N818
    """More requests than are answered; the next may come after `retry_after` seconds."""

    code = "too_many"
    exit_code = 7
    status = 429

    def __init__(self, message: str, *, retry_after: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class MessageInvalid(TrainForgeError):  # noqa: N818
    """A request or wire message that does not have its declared form."""

    code = "message_invalid"
    status = 422


class Unreachable(TrainForgeError):  # noqa: N818
    """The other side cannot be reached now; trying again later may work."""

    code = "unreachable"
    exit_code = 7
    status = 503


class StorageFull(Unreachable):
    """There is no room to store what was asked for; nothing of it has been taken on."""

    code = "disk_full"


class CommandFailed(TrainForgeError):  # noqa: N818
    """A program that was run and failed, with all the evidence there is."""

    code = "command_failed"

    def __init__(self, argv: list[str], exit_code: int, stdout: str, stderr: str, *, hint: str = "") -> None:
        self.argv, self.returncode, self.stdout, self.stderr = argv, exit_code, stdout, stderr
        evidence = "\n".join(part.rstrip() for part in (stdout[-4000:], stderr[-8000:]) if part.strip())
        super().__init__(f"`{' '.join(argv)}` exited with {exit_code}\n{evidence}".rstrip(), hint=hint)


class NodeFailed(TrainForgeError):  # noqa: N818
    """A node's phase that failed for a known reason (`code` is one of `reasons.REASONS`)."""

    code = "internal"
