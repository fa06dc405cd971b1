"""How loud a line of output is: what its words say, whatever stream it came on. Pure."""

from __future__ import annotations

import re
from typing import Literal, get_args

Level = Literal["info", "warning", "error", "progress"]
LEVELS: tuple[Level, ...] = get_args(Level)
LOOKED_AT = 512  # characters; a line says at its beginning what it is

_LEVEL = re.compile(
    r"(?P<progress>^\s*PROGRESS:|\d%\|)"
    r"|(?P<error>\b(?:ERROR|CRITICAL|FATAL)\b|^Traceback \(most"
    r"|^(?:[A-Za-z_][\w.]*)?(?:Error|Exception)(?=:|$))"
    r"|(?P<warning>\bWARN(?:ING)?\b|Warning: )"
)


def level_of(line: str) -> str:
    """`info` for what says nothing else."""
    found = _LEVEL.search(line, 0, LOOKED_AT)
    return (found.lastgroup or "info") if found else "info"
