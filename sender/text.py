"""Texts and figures as a page shows them. Pure; escaping is the template's."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

_TERMINAL_CODES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS and others, up to their end
    r"|[ -/]*[0-~])?"  # two-character codes; a lone escape goes too
    r"|\x9b[0-?]*[ -/]*[@-~]"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_DIRECTION = re.compile(r"[\u202a-\u202e\u2066-\u2069]")  # could show a text in another order than it has
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def plain(text: str) -> str:
    """What a program wrote, without the codes that are meant for a terminal; no text is lost."""
    text = _TERMINAL_CODES.sub("", text).replace("\r\n", "\n").rstrip("\r").replace("\r", "\n")
    return _DIRECTION.sub("\ufffd", _CONTROLS.sub("", text))


def size(value: int | float) -> str:
    number = float(value)
    for unit in _UNITS:
        if abs(number) < 1024 or unit == _UNITS[-1]:
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def about(seconds: float) -> str:
    """A length of time that is only guessed, in words that do not claim more."""
    if seconds < 90:
        return "about a minute" if seconds >= 30 else "less than a minute"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 600) * 10, 60)
    return f"about {hours} h {minutes} min" if hours < 24 else f"about {round(hours / 24, 1):g} days"


def ago(time: float | None, now: float) -> str:
    """How long ago, in one unit: a glance is enough, the exact time stands beside it."""
    if time is None:
        return "never"
    passed = max(now - time, 0)
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if passed >= length:
            return f"{int(passed // length)} {name} ago"
    return "just now" if passed < 5 else f"{int(passed)} s ago"


def iso(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def number(value: object) -> str:
    """A metric's value in at most six significant digits."""
    if value is None:
        return "not a number"
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.6g}"
    return plain(str(value))


def polyline(values: Sequence[float], width: float = 120, height: float = 28, points: int = 120) -> str:
    """The `points` of an SVG polyline through the values, thinned out to what can be seen."""
    finite = [value for value in values if math.isfinite(value)]
    step = max(len(finite) / points, 1.0)
    shown = [finite[int(index * step)] for index in range(int(len(finite) / step))][:points]
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    if not math.isfinite(span):
        return ""
    along = width / (len(shown) - 1)
    return " ".join(
        f"{index * along:.1f},{height - 2 - (value - low) / span * (height - 4):.1f}"
        for index, value in enumerate(shown)
    )
