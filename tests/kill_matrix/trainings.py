"""Orders, trainings and results, and what may go wrong with them."""

import signal

from kill_matrix.strike import Strike, ask, start_struck, training
from kill_matrix.world import Project, World
from support.waiting import wait_for

BLOCKING = """\
read old new ref
git ls-tree -r --name-only $new | grep -q model.txt || exit 0
echo GH001 >&2
exit 1
"""


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


def given_up(world: World, strike: Strike) -> None:
    """A partition that lasts: the job goes elsewhere, and whoever was away comes to nothing."""
    project, job = training(world, "alpha")
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
    project, job = training(world, "alpha")
    world.stop("alpha")
    strike.arm()
    start_struck(world, strike, "alpha")
    project.gate.unlink()
    detail = world.expect(project)
    if detail["attempt"] == 1:
        assert world.trainings(job) == 1


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


def stopped(world: World, strike: Strike) -> None:
    project, job = training(world, "alpha")
    strike.arm()
    ask(world, "POST", f"/api/jobs/{job}/stop", {"reason": "enough"})
    strike.struck()
    world.expect(project, "cancelled", "stopped")
    project.gate.unlink()


def removed(world: World, strike: Strike) -> None:
    """An executor that is not trusted any more: its job goes elsewhere, and nothing comes of what it ran."""
    world.add("doomed")
    project, _ = training(world, "doomed")
    strike.arm()
    ask(world, "DELETE", "/api/executors/doomed")
    strike.struck()
    project.gate.unlink()
    detail = world.expect(project)
    assert detail["attempts"][-1]["nodes"][0]["executor_name"] != "doomed"
    world.retire("doomed")
