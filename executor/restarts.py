"""The executor's side of a restart in place: what the processes that start again can go on from.

torchrun restarts all processes when one fails, `retry.in_place` times. The first of each node leaves
`RUN_DIR/restarts/<n>.asked` (see `again.py`) and waits for `<n>.offers`: keys of checkpoints, the newest
first, and where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainforge.executor import endings
from trainforge.executor.checkpoints import Checkpoints, Keeper
from trainforge.executor.supervisor import write_atomically


class Restarts:
    """Looks for questions and answers each once; `tell` is told of every restart."""

    def __init__(
        self,
        run: Path,
        here: Checkpoints,
        offers: Callable[[], list[str]],
        limit: int,
        tell: Callable[[str], None],
    ) -> None:
        self.run = run
        self.folder = run / "restarts"
        self.here = here
        self.offers = offers
        self.limit = limit
        self.tell = tell

    def look(self, keeper: Keeper) -> None:
        found = (path for path in self.folder.glob("*.asked") if path.stem.isdecimal())
        for asked in sorted(found, key=lambda path: int(path.stem))[: self.limit]:
            if not asked.with_suffix(".offers").exists():
                self._answer(asked, keeper)

    def _answer(self, asked: Path, keeper: Keeper) -> None:
        keeper.begin_again(asked.lstat().st_mtime)
        offers = {key: self.here.path(key) for key in self.offers()}
        why = endings.last_error(endings.last_words(self.run / "logs"))
        newest = next(iter(offers), "")
        found = f"checkpoint {newest} is here" if newest else "no checkpoint is here"
        self.tell(
            f"restart {asked.stem} of {self.limit} in place after {why or 'another node failed'}; {found}"
        )
        write_atomically(asked.with_suffix(".offers"), {key: path for key, path in offers.items() if path})
