"""Numbers out of what PyTorch Lightning prints and writes: pure, any text in.

Its progress bars (tqdm's form, and Rich's where it is on one line), the table that `trainer.test` ends with,
and the rows of `CSVLogger`'s metrics.csv. A bar that has not moved yet shows the numbers of the epoch before.
"""

from __future__ import annotations

import csv
import re

MAX_LINE = 2048
_CONTROL = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
_EPOCH = re.compile(r"Epoch (\d{1,9})(?:/\d{1,9})?\b")
_UNMOVED = re.compile(r"(?<!\d)0/\d+ ")
_SPEED = re.compile(r"\d(?:it/s|s/it)[, ]")
_NUMBER = r"-?(?:\d{1,40}(?:\.\d{0,40})?(?:e[+-]?\d{1,3})?|nan|inf)"
_PAIR = re.compile(rf"(?<![\w./-])([A-Za-z_][\w./-]{{0,99}})(?:=|: )({_NUMBER})(?=[,\]\s]|$)")
_ROW = re.compile(rf"│ +([A-Za-z_][\w./-]{{0,99}}) +│ +({_NUMBER}) +│")
_PLAIN_ROW = re.compile(r"([A-Za-z_][\w./-]{0,99}) {8,200}(-?\d{1,40}\.\d{6,40}(?:e[+-]?\d{1,3})?)")
_OWN = {"v_num", "time", "created_at"}


def from_line(text: str) -> dict[str, float]:
    """The numbers of a line of its output, `epoch` among them; empty where it reports none."""
    if len(text) > MAX_LINE:
        return {}
    line = _CONTROL.sub("", text).strip()
    if line.startswith("Epoch "):
        return _from_bar(line)
    row = _ROW.fullmatch(line) or _PLAIN_ROW.fullmatch(line)
    return {row[1]: float(row[2])} if row else {}


def _from_bar(line: str) -> dict[str, float]:
    epoch, speed = _EPOCH.match(line), _SPEED.search(line)
    if not epoch or not speed or _UNMOVED.search(line, 0, speed.start()):
        return {}
    found = {name: float(value) for name, value in _PAIR.findall(line, speed.end()) if name not in _OWN}
    return {**found, "epoch": float(epoch[1])} if found else {}


def from_csv(text: str, taken: int) -> tuple[list[dict[str, float]], int]:
    """The rows of metrics.csv after the first `taken`, and how many whole ones there are.

    The file is written anew with another header when another name comes up; the rows stay in order.
    """
    lines = text[: text.rfind("\n") + 1].splitlines()
    try:
        rows = list(csv.reader(lines))
    except csv.Error:
        return [], taken
    if not rows:
        return [], taken
    header, *rows = rows
    found = [_from_row(header, row) for row in rows[taken:]]
    return [row for row in found if row.keys() - {"epoch", "step"}], max(taken, len(rows))


def _from_row(header: list[str], row: list[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, text in zip(header, row, strict=False):
        if text and name and name not in _OWN:
            try:
                values[name] = float(text)
            except ValueError:
                continue
    return values
