"""Text from outside inside of GitHub's Markdown: shown as it is, mentions nobody, links nowhere. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]+")
_URL = re.compile(r"https?://[^<>\s\\]+\Z")
_SAFE = frozenset(" -,")
SUMMARY = 60_000  # characters; the API takes 65,535 of a summary and 65,536 of a comment
CUT = "\n\nThere is more than GitHub would take; the job's page has it all."


def flat(text: str, limit: int) -> str:
    """One line of at most so many characters, without control characters; for fields that are no Markdown."""
    line = " ".join(_CONTROL.sub(" ", text[: 20 * limit]).split())  # nobody looks at megabytes for a line
    return line if len(line) <= limit else line[: limit - 1] + "…"


def code(text: str, limit: int = 200) -> str:
    """As code, where GitHub looks for neither names nor links; every character that could mean more is a
    reference to itself, so that nothing in it ends the element or a table's cell."""
    line = flat(text, limit) or "(empty)"
    return f"<code>{''.join(_harmless(character) for character in line)}</code>"


def _harmless(character: str) -> str:
    return character if character.isalnum() or character in _SAFE else f"&#{ord(character)};"


def link(words: str, url: str) -> str:
    """`words` and `url` are ours; without a usable URL the words alone."""
    return f"[{words}](<{url}>)" if _URL.match(url) else words


def joined(parts: Iterable[Sequence[str]], limit: int = SUMMARY) -> str:
    """Blocks of lines, as many whole ones as fit; what is left out is said."""
    text = ""
    for block in parts:
        added = "\n".join(block).strip("\n")
        if not added:
            continue
        if len(text) + len(added) + 2 > limit - len(CUT):
            return text + CUT
        text += ("\n\n" if text else "") + added
    return text
