"""What every scenario shares: one strike, and how a program is asked, started or set to work for it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import httpx2

from kill_matrix.world import Project, World
from trainforge.config.failpoints import Failpoint


@dataclass
class Strike:
    """One point and one action, armed when the scenario says so."""

    world: World
    point: Failpoint
    action: str

    def arm(self) -> None:
        self.world.arm(self.point, self.action)

    def struck(self) -> None:
        self.world.struck(self.action)

    @property
    def bug(self) -> bool:
        """An exception that nobody expects, which ends an attempt whose training has not begun."""
        return self.action == "error"


Scenario = Callable[[World, Strike], None]


def training(world: World, executor: str) -> tuple[Project, str]:
    """A job that trains on this executor until its gate is opened."""
    others = {"alpha", "beta"} - {executor}  # those of every world
    for name in others:
        world.drain(name)
    project = Project(world)
    project.change()
    project.gate.touch()
    project.push()
    job = world.job(project)
    world.fleet.wait_log(job, "training has begun")
    for name in others:
        world.drain(name, again=True)
    return project, job


def start_struck(world: World, strike: Strike, name: str) -> None:
    """Start a program that is struck as it starts, and once more where that ended it."""
    try:
        world.start(name, **world.started[name])
    except AssertionError:  # it ended at once
        assert strike.action != "stall"
    strike.struck()


def ask(world: World, method: str, path: str, said: dict[str, object] | None = None) -> None:
    """Ask for something that is struck: it may be stored, and not answered."""
    with contextlib.suppress(httpx2.HTTPError, AssertionError):
        world.fleet.api(method, path, json=said or {})
