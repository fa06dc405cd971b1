"""Both stores at once: each call goes to the real one and to the model, and their answers are compared."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy.engine import RowMapping

from simulator.manifests import REPO
from simulator.scenario import Run
from simulator.store import ModelStore
from simulator.world import Violation
from trainforge.config.errors import TrainForgeError
from trainforge.config.messages import Heartbeat, JoinRequest, NodeKey
from trainforge.sender.fit import Machine, Running
from trainforge.sender.intake import Intake
from trainforge.sender.store import Store
from trainforge.sender.store_members import Member
from trainforge.sender.store_visits import Visit

# What nobody decides by in the simulation, and the model does not hold.
LEFT_OUT: dict[type, set[str]] = {
    Machine: {"draining", "closed", "cpu_percent", "others"},
    Running: {"ends", "gpus"},
    Member: {"public_key", "endpoint", "previous_key", "previous_until"},
    Intake: {"points", "timeline", "lines", "metrics", "progress"},
}
ANY_ORDER = {"apply", "accept_orders"}


def differs(ours: Any, theirs: Any, where: str) -> str:
    """Where the model's answer is not the real store's, or an empty string."""
    if isinstance(theirs, RowMapping):
        return _first(differs(value, theirs[key], f"{where}.{key}") for key, value in ours.items())
    if is_dataclass(ours) and type(ours) is type(theirs):
        names = [one.name for one in fields(ours) if one.name not in LEFT_OUT.get(type(ours), ())]
        return _first(
            differs(getattr(ours, name), getattr(theirs, name), f"{where}.{name}") for name in names
        )
    if isinstance(ours, BaseModel) and type(ours) is type(theirs):
        pairs = ((name, value, getattr(theirs, name)) for name, value in ours.__dict__.items())
        return _first(differs(value, other, f"{where}.{name}") for name, value, other in pairs)
    if isinstance(ours, list | tuple) and isinstance(theirs, Sequence) and len(ours) == len(theirs):
        pairs = zip(ours, theirs, strict=True)
        return _first(differs(one, other, f"{where}[{at}]") for at, (one, other) in enumerate(pairs))
    return "" if ours == theirs else f"{where}: the model says {ours!r}, the store {theirs!r}"


def _first(found: Any) -> str:
    return next((why for why in found if why), "")


class TwinStore(ModelStore):
    """The model, with the real store beside it; every method that both have is compared."""

    def __init__(self, folder: Path, committed: Callable[[], None]) -> None:
        self._folder, self._copies, self._within = folder, 0, False
        self.calls: dict[str, int] = {}
        folder.mkdir()
        super().__init__(REPO, committed)
        self.real = self._open()
        self.real.add_repository(REPO, 1.0)

    def _open(self) -> Store:
        return Store.open("", self._folder)

    def add_executor(self, executor: str, name: str, capabilities: Any, now: float) -> None:
        token = f"token-{executor}"
        self.real.add_join_token(token, now, now + 1000.0)
        request = JoinRequest(token=token, name=name, public_key={}, capabilities=capabilities)
        self.real.join(token, executor, request, now)
        super().add_executor(executor, name, capabilities, now)

    def heartbeat(
        self, executor: str, beat: Heartbeat, now: float, lease_ttl: float
    ) -> tuple[list[NodeKey], bool]:
        self._count("heartbeat")
        visit = Visit(executor, str(self.calls["heartbeat"]), now + 60, beat)
        (admitted,) = self.real.admit([visit], now, lease_ttl)
        assert admitted is not None
        ours = super().heartbeat(executor, beat, now, lease_ttl)
        if why := differs(ours, (list(admitted.unknown), admitted.changed), "heartbeat"):
            raise Violation(why)
        return ours

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def backup(self) -> dict[str, Any]:
        self._copies += 1
        copy = self._folder / f"copy{self._copies}"
        with closing(self.real.engine.raw_connection()) as c:
            c.cursor().execute("VACUUM INTO ?", (str(copy),))
        return {**super().backup(), "copy": copy}

    def restore(self, backup: Mapping[str, Any]) -> None:
        path = Path(str(self.real.engine.url.database))
        self.real.close()
        for old in path.parent.glob(f"{path.name}*"):
            old.unlink()
        shutil.copy(backup["copy"], path)
        self.real = self._open()
        super().restore(backup)


def _said(call: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, TrainForgeError | None]:
    try:
        return call(*args, **kwargs), None
    except TrainForgeError as error:
        return None, error


def _compared(name: str) -> Callable[..., Any]:
    model = getattr(ModelStore, name)

    @functools.wraps(model)
    def both(self: TwinStore, *args: Any, **kwargs: Any) -> Any:
        if self._within:  # one of the model's methods calls another
            return model(self, *args, **kwargs)
        self._count(name)
        args = tuple(list(one) if name == "accept_orders" and n == 1 else one for n, one in enumerate(args))
        theirs, refused = _said(getattr(self.real, name), args, kwargs)
        self._within = True
        try:
            ours, denied = _said(functools.partial(model, self), args, kwargs)
        finally:
            self._within = False
        if type(denied) is not type(refused):
            raise Violation(f"{name}{args}: the model says {denied!r}, the store {refused!r}")
        if denied is not None:
            raise denied
        if name in ANY_ORDER and ours and theirs:
            ours, theirs = sorted(ours), sorted(theirs)
        if why := differs(ours, theirs, name):
            raise Violation(why)
        return ours

    return both


COMPARED = sorted(
    name
    for name in dir(ModelStore)
    if not name.startswith("_")
    and callable(getattr(Store, name, None))
    and name not in {"add_executor", "backup", "restore", "count_triggers", "audit_restored"}
)
for _name in COMPARED:
    setattr(TwinStore, _name, _compared(_name))


def compare(seed: int, folder: Path) -> int:
    """A whole simulated life on both stores; how many calls were compared.

    Raises:
        Violation: an answer differed, or a promise was broken.
    """
    stores: list[TwinStore] = []

    def make(run: Run, name: str) -> TwinStore:
        stores.append(TwinStore(folder / name, lambda: run.senders[name].committed()))  # noqa: PLW0108
        return stores[-1]

    try:
        Run(seed, make, trace=False).run()
    finally:
        for store in stores:
            store.real.close()
    return sum(sum(store.calls.values()) for store in stores)
