"""How an attempt of several nodes fell apart: who failed first, with what traceback, and how it ended for the
others. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainforge.config.views import AttemptView, LogLine, NodeView
from trainforge.sender.lifecycle import CONSEQUENCES

LOOKED_AT = 400  # lines of the node, the newest
LONGEST = 60  # lines of a traceback, the last
_BEGIN = "Traceback (most recent call last)"
_LINKS = (_BEGIN, "During handling of the above", "The above exception was")
_MARK = re.compile(r"\[rank\d+\]:\s?")  # torch's, once processes have met


@dataclass(frozen=True)
class Breakup:
    """`also` failed by themselves too, `pulled` ended because another did, `fine` did all of theirs."""

    first: NodeView
    also: list[NodeView]
    pulled: list[NodeView]
    fine: list[NodeView]


def breakup(attempt: AttemptView | None) -> Breakup | None:
    """None where nothing failed."""
    failed = [node for node in attempt.nodes if node.state == "failed"] if attempt is not None else []
    if attempt is None or not failed:
        return None
    failed.sort(key=_order)
    first = failed[0]
    return Breakup(
        first,
        also=[node for node in failed[1:] if node.code not in CONSEQUENCES],
        pulled=[node for node in failed[1:] if node.code in CONSEQUENCES],
        fine=[node for node in attempt.nodes if node.state == "completed"],
    )


def _order(node: NodeView) -> tuple[bool, float, int]:
    """As the life cycle finds the cause: whose end follows from another's comes last."""
    return node.code in CONSEQUENCES, node.ended if node.ended is not None else math.inf, node.rank


def traceback_of(lines: Sequence[LogLine]) -> list[LogLine]:
    """The first traceback among a node's lines, up to the line that names the exception; or none."""
    begin = next((line for line in lines if _plain(line).startswith(_BEGIN)), None)
    if begin is None:
        return []
    found: list[LogLine] = []
    over = False  # an exception was named: only what links it to another goes on
    for line in (one for one in lines if one.cursor >= begin.cursor):
        if (line.rank, line.stream) != (begin.rank, begin.stream):
            continue
        said = _plain(line)
        if said and not said.startswith((" ", "\t")):
            linked = said.startswith(_LINKS)
            if over and not linked:
                break
            over = not linked
        found.append(line)
    while found and not _plain(found[-1]):
        found.pop()
    return found[-LONGEST:]


def _plain(line: LogLine) -> str:
    return _MARK.sub("", line.text, count=1)
