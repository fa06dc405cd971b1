"""Commands in comments: what `/trainforge ...` asks for. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Verb = Literal["run", "plan", "stop", "retry"]
VERBS: tuple[Verb, ...] = ("run", "plan", "stop", "retry")
HELP = "the commands are `/trainforge run`, `plan`, `stop` and `retry`"
LONGEST = 300
_LINE = re.compile(r"/trainforge(?:[ \t]+(?P<rest>[^\r\n]*))?\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True)
class Command:
    """`commit` is the one named, in full, or empty. With a `problem` it is none that can be done."""

    verb: Verb | None
    commit: str = ""
    problem: str = ""


def find_command(body: str) -> str:
    """The command of a comment: its first line that says something, if that is one; else empty.

    So nothing that is quoted, shown in a code block or written by TrainForge itself counts.
    """
    first = next((line for line in body.splitlines() if line.strip()), "")
    line = first.rstrip()
    return line if len(line) <= LONGEST and _LINE.match(line) else ""


def parse_command(line: str) -> Command:
    match = _LINE.match(line)
    words = ((match["rest"] or "") if match else "").split()
    if not words:
        return Command(None, problem=HELP)
    verb = next((verb for verb in VERBS if verb == words[0]), None)
    if verb is None:
        return Command(None, problem=f"this is none of them: {HELP}")
    if len(words) == 1:
        return Command(verb)
    commit = words[1].lower()
    if verb != "run" or len(words) > 2:
        return Command(verb, problem=f"`/trainforge {verb}` takes nothing more")
    if not _COMMIT.match(commit):
        return Command(verb, problem="`/trainforge run` takes a commit's whole id, all 40 digits, or nothing")
    return Command(verb, commit)
