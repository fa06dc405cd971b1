"""`python -m tests.kill_matrix.random_kills --kills 500`: pushes all the time, and `kill -9` of anybody.

At the end every push that was acknowledged has exactly one job, every job exactly one result on the
remote, and nothing that was started runs on.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kill_matrix.world import BROKEN, Project, World
from support.fleet import ENDED
from support.waiting import wait_for

PUSH_EVERY_S = 1.5
LOST_AFTER_S = 15  # as a rule whoever was killed is back before its job counts as lost
REST_S = (0.1, 2.0)


@dataclass
class Run:
    world: World
    seed: int
    kills: int
    acknowledged: list[tuple[Project, str]] = field(default_factory=list)
    killed: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def go(self) -> str:
        """Kill and push, then wait for peace and count; gives the figures in words."""
        begun = time.monotonic()
        pushing = threading.Thread(target=self._push_all_the_time, name="pushing")
        pushing.start()
        try:
            self._kill()
        finally:
            self.over.set()
            pushing.join(60)
        took = time.monotonic() - begun
        self.world.raise_the_dead()
        attempts = self._count()
        whom = ", ".join(f"{name} {count}" for name, count in sorted(self.killed.items()))
        kills, pushes = sum(self.killed.values()), len(self.acknowledged)
        return (
            f"{kills} kills in {took:.0f} s ({whom}), seed {self.seed}: {pushes} pushes acknowledged, "
            f"as many jobs, {attempts} attempts, {self.lost} lost, one result each, nothing left behind"
        )

    def _push_all_the_time(self) -> None:
        """One commit after the other to one of a few repositories; each is acknowledged before the next."""
        draw = random.Random(self.seed + 1)  # noqa: S311 - to be repeated by its seed
        projects = [Project(self.world), Project(self.world), Project(self.world, manifest=BROKEN)]
        while not self.over.wait(PUSH_EVERY_S):
            project = draw.choice(projects)
            commit = project.change()
            if self._acknowledged(project):
                self.acknowledged.append((project, commit))

    def _acknowledged(self, project: Project) -> bool:
        """Push until git says that it is there, as a person would; the end may come first."""
        git, folder = self.world.fleet.git, project.folder
        while not self.over.is_set():
            said = git("push", "--porcelain", "origin", "HEAD:refs/heads/main", cwd=folder, check=False)
            if "\nDone" in said:
                return True
        return False

    def _kill(self) -> None:
        draw = random.Random(self.seed)  # noqa: S311 - to be repeated by its seed
        for _ in range(self.kills):
            time.sleep(draw.uniform(*REST_S))  # a draw, not a guess: when somebody dies is chance
            name = draw.choice(["sender", *(name for name in self.world.started if name != "sender")])
            self.world.stop(name)
            self.killed[name] = self.killed.get(name, 0) + 1
            if draw.random() < 0.3:  # sometimes it stays away while others go on, or die as well
                time.sleep(draw.uniform(*REST_S))
            self.world.raise_the_dead(wait=False)

    def _count(self) -> int:
        attempts = 0
        for project, commit in self.acknowledged:
            project.commit = commit
            job = self.world.job(project, 60)
            detail = self._end(job)
            results = project.results(job)
            assert len(results) == 1, f"{job} has {len(results)} results: {self.world.story(job)}"
            assert results[0]["outcome"] == detail["state"], self.world.story(job)
            lost = detail["code"] == "lost"  # nobody was there for long enough: an outcome, too
            wanted = "failed" if project.manifest == BROKEN or lost else "completed"
            assert detail["state"] == wanted, self.world.story(job)
            self.lost += lost
            attempts += detail["attempt"]
        world = self.world
        wait_for("end of every training", lambda: not world.orphans(), 30, lambda: str(world.orphans()))
        return attempts

    def _end(self, job: str) -> dict[str, object]:
        fleet = self.world.fleet

        def over() -> dict[str, object] | None:
            detail: dict[str, object] | None = self.world.quietly(lambda: fleet.job(job))
            return detail if detail and detail["state"] in ENDED else None

        return wait_for(f"end of {job}", over, 180, lambda: f"{self.world.story(job)}\n{fleet.logs()}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill_matrix.random_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--executors", type=int, default=3)
    said = parser.parse_args(arguments)
    print(f"seed {said.seed}", flush=True)
    names = ("alpha", "beta", "gamma", "delta")[: said.executors]
    with tempfile.TemporaryDirectory(prefix="random-kills-") as root:
        world = World(Path(root) / "world", names, lost_after=LOST_AFTER_S)
        try:
            print(Run(world, said.seed, said.kills).go(), flush=True)
        finally:
            world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
