"""When a machine is known to go away: a notebook's session, a batch job's time limit. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from trainforge.config.manifest_types import parse_duration


def session_end(text: str, begun: float) -> float:
    """Unix seconds of `9h` from `begun` on, or of `2026-11-21T18:00`, the machine's own time without a zone.

    0 is a machine of which no end is known.

    Raises:
        ValueError: it is neither.
    """
    if not text:
        return 0.0
    if "-" in text:
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            pass
    try:
        return begun + float(parse_duration(text))
    except ValueError:
        raise ValueError(
            f"expected a duration such as 9h or a time such as 2026-11-21T18:00, got {text!r}"
        ) from None


def _understood(text: str) -> str:
    session_end(text, 0.0)
    return text


SessionEnd = Annotated[str, Field(max_length=100), AfterValidator(_understood)]
