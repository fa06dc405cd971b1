"""How each point is reached, and what must have come of it afterwards: the table is `CASES`.

A scenario gets the world and a strike, which it arms right before the moment that it is about. Where it
asks for nothing else, the outcome is one result that says `completed`.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2

from kill_matrix.world import BROKEN, MANIFEST, SECRET, Project, World
from support.waiting import wait_for
from trainforge.config.failpoints import POINTS, Failpoint
from trainforge.sender import migrate
from trainforge.sender.database import make_engine

ISOLATED = MANIFEST + "environment: {{mode: isolated}}\n"
BLOCKING = """\
read old new ref
git ls-tree -r --name-only $new | grep -q model.txt || exit 0
echo GH001 >&2
exit 1
"""


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


def plain(world: World, strike: Strike) -> None:
    project = Project(world)
    project.change()
    strike.arm()
    project.push()
    strike.struck()
    detail = world.expect(project)
    if detail["attempt"] == 1:
        assert world.trainings(detail["id"]) == 1, "the training that ran was adopted"


def preparing(world: World, strike: Strike, manifest: str = MANIFEST) -> None:
    """An error of ours ends the job, with a result; a full disk sends it elsewhere."""
    project = Project(world, manifest=manifest)
    project.change()
    strike.arm()
    project.push()
    strike.struck()
    detail = world.expect(project, *(("failed", "internal") if strike.bug else ()))
    if strike.action == "enospc":
        assert detail["attempt"] == 2
        assert detail["attempts"][0]["code"] == "disk_full"


def isolated(world: World, strike: Strike) -> None:
    for kept in world.fleet.root.glob("*/cache/environments/*"):
        if not kept.name.endswith(".lock"):
            kept.rename(kept.with_name(f".old-{secrets.token_hex(4)}"))  # it has to be built
    preparing(world, strike, ISOLATED)
    for name in ("alpha", "beta"):
        half = (world.fleet.root / name / "cache" / "environments").glob("[!.]*[!k]")
        assert all((path / "trainforge-ready.json").exists() for path in half if path.is_dir())


def refused(world: World, strike: Strike) -> None:
    """A manifest that cannot be used: the sender itself publishes why."""
    project = Project(world, manifest=BROKEN)
    project.change()
    strike.arm()
    project.push()
    strike.struck()
    detail = world.expect(project, "failed", "manifest_invalid")
    assert detail["attempt"] == 0


def found_by_polling(world: World, strike: Strike) -> None:
    project = Project(world, far=True)
    project.change()
    strike.arm()
    project.push()
    strike.struck()
    world.expect(project)


def _announce(world: World, project: Project, delivery: str) -> None:
    body = json.dumps({
        "ref": "refs/heads/main", "before": "0" * 40, "after": project.commit, "created": False,
        "deleted": False, "forced": False, "commits": [], "head_commit": None, "pusher": {"name": "ada"},
        "repository": {
            "id": 1, "name": project.name, "full_name": f"ada/{project.name}", "clone_url": project.url,
        },
    }).encode()  # fmt: skip
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "X-GitHub-Event": "push", "X-GitHub-Delivery": delivery, "Content-Type": "application/json",
        "X-Hub-Signature-256": f"sha256={signature}",
    }  # fmt: skip
    with contextlib.suppress(httpx2.HTTPError):  # struck: whoever sent the delivery sees that it failed
        httpx2.post(f"{world.fleet.url}/webhooks/github", content=body, headers=headers, timeout=30)


def announced(world: World, strike: Strike) -> None:
    """A webhook, and the same delivery again as GitHub sends it: one job."""
    project = Project(world, far=True)
    project.change()
    project.push()
    strike.arm()
    delivery = secrets.token_hex(8)
    for _ in range(3):
        _announce(world, project, delivery)
        world.raise_the_dead()
    _announce(world, project, secrets.token_hex(8))
    strike.struck()
    world.expect(project)


def forced(world: World, strike: Strike) -> None:
    project = Project(world)
    first = project.change()
    project.push()
    world.expect(project)
    world.fleet.git("commit", "-q", "--amend", "--allow-empty", "-m", "Again", cwd=project.folder)
    project.change()
    strike.arm()
    project.push()
    strike.struck()
    world.expect(project)
    assert len(world.jobs(first)) == 1, "the result of the commit that was rewritten is kept"


def deleted_branch(world: World, strike: Strike) -> None:
    project = Project(world)
    project.change()
    project.gate.touch()
    project.push("HEAD:refs/heads/topic")
    job = world.job(project)
    world.fleet.wait_log(job, "training has begun")
    strike.arm()
    project.push(":refs/heads/topic")
    strike.struck()
    project.gate.unlink()
    world.expect(project)


def commit_gone(world: World, strike: Strike) -> None:
    """The history was rewritten, and cleaned up, between plan and checkout."""
    project = Project(world, far=True)
    for name in ("alpha", "beta"):
        world.drain(name)
    project.change()
    project.push()
    job = world.job(project)
    world.fleet.git("checkout", "-q", "-B", "other", "HEAD~1", cwd=project.folder)
    world.fleet.git("push", "-q", "--force", "origin", "other:refs/heads/main", cwd=project.folder)
    project.show("reflog", "expire", "--expire=now", "--all")
    project.show("gc", "-q", "--prune=now")
    strike.arm()
    for name in ("alpha", "beta"):
        world.drain(name, again=True)
    strike.struck()
    detail = world.expect(project, "failed", "internal" if strike.bug else "no_such_commit")
    assert detail["id"] == job


def known_order(world: World, strike: Strike) -> None:
    """The order to publish is stored, but not answered, and comes again while the remote is away."""
    project = Project(world, far=True)
    project.change()
    project.gate.touch()
    project.push()
    job = world.job(project)
    world.fleet.wait_log(job, "training has begun")
    world.remote.answers = [503] * 3
    world.arm("17.executor.order_stored", "error")
    project.gate.unlink()
    world.struck("error")
    strike.arm()
    strike.struck()
    world.expect(project)
    assert world.trainings(job) == 1


def owner_refuses(world: World, strike: Strike) -> None:
    world.add("picky", accept="ask", accept_timeout=0.5)
    for name in ("alpha", "beta"):
        world.drain(name)
    project = Project(world)
    project.change()
    strike.arm()
    project.push()
    strike.struck()
    for name in ("alpha", "beta"):
        world.drain(name, again=True)
    detail = world.expect(project, *(("failed", "internal") if strike.bug else ()))
    if not strike.bug:
        assert detail["attempts"][-1]["nodes"][0]["executor_name"] != "picky"
    world.retire("picky")


def pushed_orders(world: World, strike: Strike) -> None:
    """An executor that the sender reaches at an address, and that comes back at another one."""
    world.add("near", connection="push")
    for name in ("alpha", "beta"):
        world.drain(name)
    project = Project(world)
    project.change()
    if strike.point == "20.sender.endpoint_moved":
        world.stop("near")
        strike.arm()
        world.fleet.start_again("near", world.started["near"])
        world.await_strike()
        project.push()
    else:
        strike.arm()
        project.push()
    strike.struck()
    detail = world.expect(project)
    assert detail["attempts"][-1]["nodes"][0]["executor_name"] == "near"
    for name in ("alpha", "beta"):
        world.drain(name, again=True)
    world.retire("near")


def _training(world: World, executor: str) -> tuple[Project, str]:
    """A job that trains on this executor until its gate is opened."""
    others = {"alpha", "beta"} - {executor}
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


def given_up(world: World, strike: Strike) -> None:
    """A partition that lasts: the job goes elsewhere, and whoever was away comes to nothing."""
    project, job = _training(world, "alpha")
    process = world.fleet.processes["alpha"]
    process.send_signal(signal.SIGSTOP)
    wait_for("second attempt", lambda: world.fleet.job(job)["attempt"] == 2, 40, world.fleet.logs)
    strike.arm()
    process.send_signal(signal.SIGCONT)
    strike.struck()
    project.gate.unlink()
    detail = world.expect(project)
    assert detail["attempts"][0]["state"] == "lost"


def adopted(world: World, strike: Strike) -> None:
    """Killed while it trains, and struck again while it looks for what still runs."""
    project, job = _training(world, "alpha")
    world.stop("alpha")
    strike.arm()
    _start_struck(world, strike, "alpha")
    project.gate.unlink()
    detail = world.expect(project)
    if detail["attempt"] == 1:
        assert world.trainings(job) == 1


def _start_struck(world: World, strike: Strike, name: str) -> None:
    """Start a program that is struck as it starts, and once more where that ended it."""
    try:
        world.start(name, **world.started[name])
    except AssertionError:  # it ended at once
        assert strike.action != "stall"
    strike.struck()


def started(world: World, strike: Strike) -> None:
    """A push is acknowledged, the sender is gone, and struck as it comes back."""
    project = Project(world)
    project.change()
    project.push()
    world.stop("sender")
    strike.arm()
    _start_struck(world, strike, "sender")
    world.expect(project)


def branch_moved(world: World, strike: Strike) -> None:
    """Somebody else commits to the results branch, behind the back of whoever published last."""
    world.drain("beta")
    project = Project(world)
    project.change()
    project.push()
    world.expect(project)
    clone = project.folder.with_name(f"{project.name}-results")
    git = world.fleet.git
    git("fetch", "-q", "origin", "trainforge-results", cwd=project.folder)
    git("worktree", "add", "-q", "--detach", str(clone), "FETCH_HEAD", cwd=project.folder)
    world.fleet.commit(clone, {"NOTES.md": "mine"})
    git("push", "-q", "origin", "HEAD:trainforge-results", cwd=clone)
    project.change()
    strike.arm()
    project.push()
    strike.struck()
    world.expect(project)
    assert project.show("show", "trainforge-results:NOTES.md") == "mine"
    world.drain("beta", again=True)


def remote_refuses(world: World, strike: Strike) -> None:
    project = Project(world, far=True)
    project.change()
    project.push()
    world.remote.refuse(BLOCKING)
    strike.arm()
    strike.struck()
    detail = world.expect(project, "failed", "publish_blocked")
    assert "GH001" in detail["reason"]
    world.remote.refuse("")


def remote_away(world: World, strike: Strike) -> None:
    """The host answers that it is not well, and once that it wants to know who asks."""
    project = Project(world, far=True)
    project.change()
    project.push()
    world.remote.answers = [503, 401]
    strike.arm()
    strike.struck()
    world.expect(project)
    world.remote.answers = []


def _ask(world: World, method: str, path: str, said: dict[str, object] | None = None) -> None:
    """Ask for something that is struck: it may be stored, and not answered."""
    with contextlib.suppress(httpx2.HTTPError, AssertionError):
        world.fleet.api(method, path, json=said or {})


def stopped(world: World, strike: Strike) -> None:
    project, job = _training(world, "alpha")
    strike.arm()
    _ask(world, "POST", f"/api/jobs/{job}/stop", {"reason": "enough"})
    strike.struck()
    world.expect(project, "cancelled", "stopped")
    project.gate.unlink()


def removed(world: World, strike: Strike) -> None:
    """An executor that is not trusted any more: its job goes elsewhere, and nothing comes of what it ran."""
    world.add("doomed")
    for name in ("alpha", "beta"):
        world.drain(name)
    project = Project(world)
    project.change()
    project.gate.touch()
    project.push()
    job = world.job(project)
    world.fleet.wait_log(job, "training has begun")
    for name in ("alpha", "beta"):
        world.drain(name, again=True)
    strike.arm()
    _ask(world, "DELETE", "/api/executors/doomed")
    strike.struck()
    project.gate.unlink()
    detail = world.expect(project)
    assert detail["attempts"][-1]["nodes"][0]["executor_name"] != "doomed"
    world.retire("doomed")


def rotated(world: World, strike: Strike) -> None:
    """The sender's key changes while a job trains."""
    project, _ = _training(world, "alpha")
    strike.arm()
    _ask(world, "POST", "/api/sender/rotate-key", {"withdraw": False})
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
    _ask(world, "POST", "/api/repositories", {"url": project.url})
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
    project, _ = _training(world, "alpha")
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
    process = subprocess.Popen(
        [sys.executable, "-m", "trainforge", "sender", "start"],
        env=environment, cwd=data, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=(data / "sender.log").open("ab"),
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


SCENARIOS: dict[str, Scenario] = {
    "01.sender.look": found_by_polling,
    "02.sender.start": started,
    "03.sender.webhook": announced,
    "04.sender.delivery_noted": announced,
    "05.sender.delivery_answered": announced,
    "07.sender.delivery_known": announced,
    "08.sender.nothing_new": announced,
    "10.sender.forced": forced,
    "11.sender.branch_gone": deleted_branch,
    "12.executor.commit_gone": commit_gone,
    "15.sender.manifest_refused": refused,
    "18.executor.order_known": known_order,
    "19.executor.refuses": owner_refuses,
    "20.sender.endpoint_moved": pushed_orders,
    "21.sender.prove": pushed_orders,
    "23.executor.given_up": given_up,
    "24.executor.fetch": preparing,
    "25.executor.environment": isolated,
    "26.executor.launch": preparing,
    "27.executor.adopt": adopted,
    "31.sender.push": refused,
    "32.sender.pushed": refused,
    "33.git.moved": branch_moved,
    "34.executor.blocked": remote_refuses,
    "35.executor.remote_down": remote_away,
    "39.executor.disk": preparing,
    "41.sender.check": started,
    "42.sender.recognise": started,
    "44.executor.stop": stopped,
    "45.sender.stop_stored": stopped,
    "46.sender.revoked": removed,
    "47.sender.rotated": rotated,
    "48.sender.clock": started,
    "43.sender.meta_ref": led,
    "49.sender.result_missing": results_deleted,
    "51.sender.migrate": migrated,
    "52.sender.shutdown": terminated,
}
FULL = {"24.executor.fetch", "26.executor.launch", "30.executor.pack", "39.executor.disk", "40.sender.write"}
SLOW = {"23.executor.given_up"}
TELLING = {"30.executor.pack": "enospc", "39.executor.disk": "enospc", "40.sender.write": "enospc",
           "26.executor.training": "error", "28.executor.exited": "error", "16.sender.order_stored": "error",
           "06.sender.push_stored": "error"}  # fmt: skip


def cases() -> list[tuple[Failpoint, str]]:
    """The whole matrix."""
    return [
        (point, action)
        for point in POINTS
        for action in ("kill", "error", "stall", *(["enospc"] if point in FULL else []))
    ]


def telling_cases() -> list[tuple[Failpoint, str]]:
    """One for each point: the action that says most."""
    return [
        (point, action)
        for point, action in cases()
        if action == TELLING.get(point, "kill") and point not in SLOW
    ]


def run(world: World, point: Failpoint, action: str) -> None:
    try:
        SCENARIOS.get(point, plain)(world, Strike(world, point, action))
    finally:
        world.disarm()
