"""The sender's own life: starts, ends, keys, schemas, and what it finds on the remotes."""

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from kill_matrix.strike import Strike, ask, start_struck, training
from kill_matrix.world import Project, World
from support.waiting import wait_for
from trainforge.sender import migrate
from trainforge.sender.database import make_engine


def started(world: World, strike: Strike) -> None:
    """A push is acknowledged, the sender is gone, and struck as it comes back."""
    project = Project(world)
    project.change()
    project.push()
    world.stop("sender")
    strike.arm()
    start_struck(world, strike, "sender")
    world.expect(project)


def rotated(world: World, strike: Strike) -> None:
    """The sender's key changes while a job trains."""
    project, _ = training(world, "alpha")
    strike.arm()
    ask(world, "POST", "/api/sender/rotate-key", {"withdraw": False})
    strike.struck()
    project.gate.unlink()
    world.expect(project)


def results_deleted(world: World, strike: Strike) -> None:
    """Somebody deletes the results branch: what the executors and the sender still have comes back."""
    project = Project(world)
    project.change()
    project.push()
    detail = world.expect(project)
    strike.arm()
    project.push(":refs/heads/trainforge-results")
    strike.struck()
    model = f"trainforge-results:{detail['result_path']}/artifacts/model.txt"
    wait_for("the result again", lambda: project.show("show", model) == "trained", 60, world.fleet.logs)
    wait_for("peace", lambda: world.fleet.job(detail["id"])["result_missing"] is None, 60, world.fleet.logs)
    assert world.expect(project)["result_commit"] == detail["result_commit"], "the state is as it was"


def led(world: World, strike: Strike) -> None:
    """The sender notes in a repository that it works for it, and finds its own note afterwards."""
    project = Project.on_disk(world)
    project.world.fleet.commit(project.folder, {"README.md": "before"})
    project.push()
    fence = world.fleet.root / "sender" / "fence.json"
    before = json.loads(fence.read_text())["incarnation"] if fence.exists() else 1
    strike.arm()
    ask(world, "POST", "/api/repositories", {"url": project.url})
    strike.struck()
    events = f"/api/events?repository={project.name}"
    wait_for("first look", lambda: world.quietly(lambda: world.fleet.api("GET", events)["events"]), 30)
    said = json.loads(project.show("show", "refs/heads/trainforge/meta:sender.json"))
    assert said["sender"] == world.fleet.api("GET", "/health")["sender"]
    project.change()
    project.push()
    world.expect(project)
    assert json.loads(fence.read_text())["incarnation"] == before, "its own note is no later one"


def terminated(world: World, strike: Strike) -> None:
    """Asked to end, in the middle of a job; whatever happens then, it is gone within ten seconds."""
    project, _ = training(world, "alpha")
    strike.arm()
    process = world.fleet.processes["sender"]
    process.terminate()
    assert process.wait(12) == {"kill": -signal.SIGKILL, "stall": 0}.get(strike.action, process.returncode)
    strike.struck()
    project.gate.unlink()
    world.expect(project)


def migrated(world: World, strike: Strike) -> None:
    """Another sender's database of the first schema: all of the step is taken, or nothing of it."""
    data = world.fleet.root / f"old{next(world.numbers)}"
    data.mkdir()
    engine = make_engine(f"sqlite:///{data / 'trainforge.db'}")
    with engine.begin() as connection:
        migrate.upgrade(connection, "0001")
    engine.dispose()
    strike.arm()
    for expected in ("0001", migrate.HEAD):
        _run_sender(world, data, ended=strike.action in {"kill", "error"} and expected == "0001")
        with contextlib.closing(sqlite3.connect(data / "trainforge.db")) as database:
            (at,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert at == expected or strike.action == "stall"
    assert (data / "backups" / f"before-{migrate.HEAD}.db").exists()
    assert not world.armed.exists()


def _run_sender(world: World, data: Path, *, ended: bool) -> None:
    """Start a sender until it listens or, where it is `ended`, until it is."""
    settings: dict[str, object] = {"data_dir": data, "port": 0, "failpoint": world.point}
    environment = world.fleet.environment("SENDER", settings) | {"XDG_CONFIG_HOME": str(data / "config")}
    with (data / "sender.log").open("ab") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainforge", "sender", "start"],
            env=environment, cwd=data, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=log_file,
        )  # fmt: skip
    try:
        if ended:
            assert process.wait(30) != 0
        else:
            log = (data / "sender.log").read_text
            wait_for("sender", (data / "sender.json").exists, 30, log)
            process.terminate()
            assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
