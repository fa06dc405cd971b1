"""From a push to a training that is about to begin, and what may go wrong on the way."""

import contextlib
import hashlib
import hmac
import json
import secrets

import httpx2

from kill_matrix.strike import Strike
from kill_matrix.world import BROKEN, MANIFEST, SECRET, Project, World

ISOLATED = MANIFEST + "environment: {{mode: isolated}}\n"


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
    world.fleet.commit(project.folder, {"README.md": "main"})
    project.push()
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
