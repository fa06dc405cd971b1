"""Which scenario reaches which point, and the cases that follow from it.

Where a scenario asks for nothing else, the outcome is one result that says `completed`.
"""

from __future__ import annotations

from kill_matrix import pushes, senders, trainings
from kill_matrix.strike import Scenario, Strike
from kill_matrix.world import World
from trainforge.config.failpoints import POINTS, Failpoint

SCENARIOS: dict[str, Scenario] = {
    "01.sender.look": pushes.found_by_polling,
    "02.sender.start": senders.started,
    "03.sender.webhook": pushes.announced,
    "04.sender.delivery_noted": pushes.announced,
    "05.sender.delivery_answered": pushes.announced,
    "07.sender.delivery_known": pushes.announced,
    "08.sender.nothing_new": pushes.announced,
    "10.sender.forced": pushes.forced,
    "11.sender.branch_gone": pushes.deleted_branch,
    "12.executor.commit_gone": pushes.commit_gone,
    "15.sender.manifest_refused": pushes.refused,
    "18.executor.order_known": trainings.known_order,
    "19.executor.refuses": trainings.owner_refuses,
    "20.sender.endpoint_moved": trainings.pushed_orders,
    "21.sender.prove": trainings.pushed_orders,
    "23.executor.given_up": trainings.given_up,
    "24.executor.fetch": pushes.preparing,
    "25.executor.environment": pushes.isolated,
    "26.executor.launch": pushes.preparing,
    "27.executor.adopt": trainings.adopted,
    "31.sender.push": pushes.refused,
    "32.sender.pushed": pushes.refused,
    "33.git.moved": trainings.branch_moved,
    "34.executor.blocked": trainings.remote_refuses,
    "35.executor.remote_down": trainings.remote_away,
    "39.executor.disk": pushes.preparing,
    "41.sender.check": senders.started,
    "42.sender.recognise": senders.started,
    "44.executor.stop": trainings.stopped,
    "45.sender.stop_stored": trainings.stopped,
    "46.sender.revoked": trainings.removed,
    "47.sender.rotated": senders.rotated,
    "48.sender.clock": senders.started,
    "43.sender.meta_ref": senders.led,
    "49.sender.result_missing": senders.results_deleted,
    "51.sender.migrate": senders.migrated,
    "52.sender.shutdown": senders.terminated,
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
        SCENARIOS.get(point, pushes.plain)(world, Strike(world, point, action))
    finally:
        world.disarm()
