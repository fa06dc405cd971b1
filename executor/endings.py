"""Why a training ended, told from its exit record and the last words of its processes."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from trainforge.config.disk import FULL_WORDS
from trainforge.config.messages import Ended, StopOrder
from trainforge.executor import untrusted
from trainforge.executor.supervise import Exit

TAIL_BYTES = 64 * 1024
TAIL_LINES = 40
TEXT_LIMIT = 8000
ENGINE_FAILED = 125  # how Docker and Podman tell that it was not the program
_ROOT_CAUSE = re.compile(
    r"Root Cause.*?^\s*rank\s*:\s*(\d+).*?^\s*exitcode\s*:\s*(-?\d+)", re.DOTALL | re.MULTILINE
)
_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|^(?:\w+\.)*\w*MemoryError\b"
    r"|Cannot allocate memory|DefaultCPUAllocator",
    re.MULTILINE,
)
# What torch says where another process went away; alone such an error is the script's own affair.
_PEER = re.compile(
    r"^(?:RuntimeError|torch\.distributed\.Dist\w+|ConnectionResetError|BrokenPipeError):.*(?:gloo|nccl|"
    r"Connection (?:closed|reset|refused)|Broken pipe|Socket|recvValue|failed to recv|timed out)",
    re.IGNORECASE,
)
_MARK = re.compile(r"^\[rank\d+\]: ?")

_STOPPED = {
    "session_end": ("lost", "the session of a machine of this job has ended"),
    "stop": ("stopped", "the machine is shutting down"),
}


@dataclass(frozen=True)
class Words:
    """The last output of a node's processes."""

    launcher: str
    ranks: dict[int, str]  # global rank -> end of its standard error, or of its output where that is empty


def last_words(logs: Path) -> Words:
    ranks: dict[int, str] = {}
    for path in sorted(logs.glob("[0-9]*.stderr")):
        rank = int(path.stem)
        ranks[rank] = _tail(path) or _tail(path.with_suffix(".stdout"))
    return Words(_tail(logs / "node.stderr"), ranks)


def _tail(path: Path) -> str:
    try:
        with untrusted.open_plain(path) as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""


def ended(
    done: Exit,
    words: Words,
    *,
    stop: StopOrder | None,
    ranks: list[dict[str, int]],
    processes: int,
    world_size: int,
    least_world: int | None = None,
    run_timeout: float | None,
    contained: bool = False,
) -> Ended:
    """The node's `ended` record. What was asked for comes before what was found."""
    code, rank = root_cause(done, words)
    reported = ranks[0]["world_size"] if ranks else None
    asked = _asked(done, stop, run_timeout)
    if asked is not None:
        return Ended(exit_code=code, code=asked[0], reason=asked[1], world_size=reported)
    if contained and code == ENGINE_FAILED and not ranks:
        said = words.launcher.splitlines()[-1:] or ["the engine said nothing"]
        reason = f"the container could not be started: {said[0][:500]}"
        return _failed(code, "container_failed", reason, words.launcher, reported)
    if code != 0:
        tail = words.ranks.get(rank, "") if rank is not None else ""
        tail = tail or next(filter(None, words.ranks.values()), "") or words.launcher
        reason_code, reason = classify(code, tail + "\n" + words.launcher)
        if reason_code == "script_failed" and world_size > processes and _PEER.search(_exception(tail)):
            reason_code = "connection_lost"
        return _failed(code, reason_code, reason, tail, reported)
    least = world_size if least_world is None else least_world
    if len(ranks) < processes or any(not least <= item["world_size"] <= world_size for item in ranks):
        ran = f"{len(ranks)} of {processes} processes ran here"
        reason = f"{ran}, in a world of {reported} instead of {world_size}"
        return _failed(code, "wrong_world_size", reason, "", reported)
    return Ended(exit_code=0, world_size=reported)


def _asked(done: Exit, stop: StopOrder | None, run_timeout: float | None) -> tuple[str, str] | None:
    """Code and reason where the training did not end by itself; a training that was quicker did."""
    by_itself = stop is not None and stop.code == "peer_failed" and not done.stopped  # it may be the cause
    if stop is not None and not by_itself and (done.stopped or done.exit_code != 0):
        return stop.code, stop.reason
    if done.lost:
        return "lost", "the training's supervisor was killed"
    if done.stopped == "timeout_run":
        return "timeout_run", f"the training took longer than timeout.run, {run_timeout or 0:g} s"
    return _limited(done) or _STOPPED.get(done.stopped)


def _limited(done: Exit) -> tuple[str, str] | None:
    """Which of the machine's limits was reached."""
    if done.stopped == "memory_limit":
        used, most = done.peak_memory_bytes / 1e9, done.memory_limit / 1e9
        return "memory_limit", f"the training used {used:.2f} of the {most:g} GB that this machine gives jobs"
    if done.stopped == "disk_limit":
        used, most = done.peak_disk_bytes / 1e9, done.disk_limit / 1e9
        return "disk_limit", f"the job's files took {used:.2f} GB, this machine gives a job {most:g} GB"
    if done.stopped == "log_limit":
        used, most = done.log_bytes / 2**20, done.log_limit / 2**20
        return "log_limit", f"the job printed {used:.1f} MiB, this machine takes {most:g} MiB"
    return None


def _failed(code: int | None, reason_code: str, reason: str, tail: str, reported: int | None) -> Ended:
    lines = "\n".join(tail.splitlines()[-TAIL_LINES:])[-TEXT_LIMIT:]
    return Ended(exit_code=code, code=reason_code, reason=reason[:2000], tail=lines, world_size=reported)


def root_cause(done: Exit, words: Words) -> tuple[int | None, int | None]:
    """Exit code and rank of the process that failed first; torchrun itself always exits with 1."""
    if done.exit_code == 0:
        return 0, None
    found = _ROOT_CAUSE.search(words.launcher)
    if found:
        return int(found[2]), int(found[1])
    for rank, text in words.ranks.items():
        if "Traceback (most recent call last)" in text:
            return done.exit_code, rank
    return done.exit_code, None


def classify(code: int | None, text: str) -> tuple[str, str]:
    """Code and reason of a training that failed by itself."""
    last = next((line.strip() for line in reversed(text.strip().splitlines()) if line.strip()), "")
    if _MEMORY.search(text):
        return "out_of_memory", _matching(text, _MEMORY) or "the training ran out of memory"
    if FULL_WORDS.search(text):
        return "disk_full", _matching(text, FULL_WORDS)
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):  # the latter is how a shell says it
        return "out_of_memory", "a process was killed by SIGKILL, which mostly means that the memory ran out"
    if code == 127:
        return "script_failed", f"the program could not be started: {last}"
    how = f"was ended by {signal_name(-code)}" if code is not None and code < 0 else f"exited with {code}"
    error = _exception(text)
    return "script_failed", f"the training {how}" + (f": {error}" if error else "")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _matching(text: str, pattern: re.Pattern[str]) -> str:
    return next((line.strip()[:500] for line in text.splitlines() if pattern.search(line)), "")


def last_error(words: Words) -> str:
    """The newest exception of this node's processes, rather not of one that only lost another; or empty."""
    found = []
    for text in words.ranks.values():
        _, mark, rest = text.rpartition("Traceback (most recent call last)")
        found.append(_exception(mark + rest))
    return min(filter(None, found), key=lambda error: _PEER.search(error) is not None, default="")


def _exception(text: str) -> str:
    """The line that ends the first traceback; torch marks each of its lines, once processes have met."""
    lines = [_MARK.sub("", line) for line in text.splitlines()]
    for index, line in enumerate(lines):
        if line.startswith("Traceback (most recent call last)"):
            rest = (part for part in lines[index + 1 :] if part and not part.startswith((" ", "\t")))
            return next(rest, "")[:500]
    return ""
