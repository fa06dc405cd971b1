"""All waiting jobs in one pass: order, the reservation, and what must hold for any queue and any fleet."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from support.planning import GIB, machine, manifest, node
from trainforge.config.manifest import GpuRequest, NodeRange
from trainforge.sender.fit import TOLERANCE, Machine, Need, Running, gpu_fits, need_of
from trainforge.sender.gang import Seat
from trainforge.sender.planner import Plan, plan
from trainforge.sender.queue import QueuedJob, QueuePlan, plan_queue


def job(name: str, rest: str = "", **facts: Any) -> QueuedJob:
    return QueuedJob(name, need_of(manifest(f"resources: {{{rest}}}"), facts.pop("executors", ())), **facts)


def names(made: QueuePlan) -> dict[str, list[str]]:
    return {which: [seat.machine.name for seat in seats] for which, seats in made.placed.items()}


def test_priority_then_age_decide() -> None:
    jobs = [job("young", created=3), job("old", created=1), job("urgent", created=9, priority=1)]
    made = plan_queue(jobs, [machine("a"), machine("b")], 0)
    assert names(made) == {"urgent": ["a"], "old": ["b"]}
    assert [waiting.id for waiting in made.waiting] == ["young"]


def test_small_jobs_do_not_take_what_is_kept_for_a_large_one() -> None:
    machines = [machine("a"), machine("b", running=(node(),)), machine("c", running=(node(),))]
    jobs = [job("large", "nodes: 2", created=1), job("small", created=2)]
    made = plan_queue(jobs, machines, 0)
    assert (made.next, names(made)) == ("large", {})
    assert made.kept == {"x-a", "x-b"}
    assert made.why(made.waiting[0]).reasons == {
        "a": "would fit, but the job needs 2 machines at once and 1 fits; it is kept free for it",
        "b": "busy with 1 of 1 jobs",
        "c": "busy with 1 of 1 jobs",
    }
    assert made.why(made.waiting[1]).reasons["a"] == "kept free for job large, which is next"


def test_small_jobs_go_where_they_do_not_delay_the_large_one() -> None:
    machines = [machine("a", max_jobs=2, gpus=8), machine("b", running=(node(),)), machine("c")]
    jobs = [job("large", "nodes: 3", created=1), job("beside", "gpu: 1", created=2), job("small", created=3)]
    made = plan_queue(jobs, machines, 0)
    # The large one takes a half of `a`: the other half is free for others. `c` has no other half.
    assert names(made) == {"beside": ["a"]}


def test_a_job_that_this_fleet_cannot_run_keeps_nobody_waiting() -> None:
    jobs = [job("huge", "nodes: 9", created=1), job("small", created=2)]
    assert names(plan_queue(jobs, [machine("a")], 0)) == {"small": ["a"]}


def test_the_reservation_stays_where_it_was() -> None:
    machines = [machine(name, running=(node(ends=ends),)) for name, ends in (("a", 50.0), ("b", 20.0))]
    large = [job("large")]
    assert plan_queue(large, machines, 0).kept == {"x-b"}
    assert plan_queue(large, machines, 0, held={"x-a"}).kept == {"x-a"}


def test_executors_that_share_gpus_are_seated_in_whatever_order_fits() -> None:
    """Whoever has four GPUs must leave the other one the two that both have; else all would wait for ever."""
    shared = [machine(f"box{n}", gpus, gpu_host="h1", host_id="h1") for n, gpus in ((2, 2), (3, 4))]
    jobs = [job("large", "nodes: 2, gpu: 2..3", priority=1), job("small", created=2)]
    made = plan_queue(jobs, [*shared, machine("other")], 0)
    assert names(made) == {"large": ["box2", "box3"], "small": ["other"]}
    check_whole_gang(jobs[0].need, made.placed["large"])
    alone = plan(manifest("resources: {nodes: 2, gpu: 2..3}"), shared)
    assert isinstance(alone, Plan)
    assert [node.executor for node in alone.nodes] == ["x-box2", "x-box3"]


# --- properties -----------------------------------------------------------------------------------------

NEEDS = st.builds(
    lambda least, more, gpus, extra, size, cpu, memory, chosen: Need(
        nodes=NodeRange(least, least + more),
        gpu=GpuRequest(gpus, gpus + extra, size * GIB if gpus + extra else 0),
        cpu=cpu,
        memory=memory * GIB,
        chosen=chosen,
    ),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([0, 24, 40]),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([0, 6, 12]),
    st.sampled_from([frozenset(), frozenset(), frozenset({"box1", "box2"})]),
)
QUEUES = st.lists(st.tuples(NEEDS, st.integers(0, 2)), min_size=1, max_size=10).map(
    lambda rows: [
        QueuedJob(f"job{number}", need, priority, float(number))
        for number, (need, priority) in enumerate(rows)
    ]
)
FLEETS = st.lists(
    st.builds(
        lambda gpus, size, limit, host, online: (gpus, size, limit, host, online),
        st.integers(0, 4),
        st.sampled_from([24, 80]),
        st.integers(1, 3),
        st.sampled_from(["", "", "h1", "h2"]),
        st.sampled_from([True, True, True, False]),
    ),
    max_size=7,
).map(
    lambda rows: [
        machine(f"box{n}", gpus, size, gpu_host=host, host_id=host, max_jobs=limit, online=online)
        for n, (gpus, size, limit, host, online) in enumerate(rows)
    ]
)


def filled(machines: list[Machine], made: QueuePlan, jobs: list[QueuedJob]) -> list[Machine]:
    needs = {one.id: one.need for one in jobs}
    more: dict[str, list[Running]] = defaultdict(list)
    for which, seats in made.placed.items():
        for seat in seats:
            held = Running(which, seat.gpus, needs[which].cpu, needs[which].memory)
            more[seat.machine.id].append(held)
    return [replace(one, running=(*one.running, *more[one.id])) for one in machines]


def check_never_too_much(machines: list[Machine]) -> None:
    hosts: dict[str, list[Machine]] = defaultdict(list)
    for one in machines:
        assert len(one.running) <= one.capabilities.max_jobs
        own = {gpu.uuid for gpu in one.capabilities.gpus}
        assert all(own.issuperset(held.gpus) for held in one.running)
        hosts[one.capabilities.host_id or one.id].append(one)
    for members in hosts.values():
        held = [entry for one in members for entry in one.running]
        has = members[0].capabilities
        gpus = [gpu for entry in held for gpu in entry.gpus]
        assert len(gpus) == len(set(gpus))
        assert sum(entry.cpu for entry in held) <= has.cpu_count
        assert sum(entry.memory for entry in held) <= has.memory_bytes / TOLERANCE


def check_whole_gang(need: Need, seats: list[Seat]) -> None:
    assert len(seats) in need.nodes
    assert len({seat.machine.id for seat in seats}) == len(seats)
    assert len({len(seat.gpus) for seat in seats}) == 1
    assert need.gpu.min <= len(seats[0].gpus) <= need.gpu.max
    for seat in seats:
        assert seat.machine.online
        assert not need.chosen or seat.machine.name in need.chosen
        known = {gpu.uuid: gpu for gpu in seat.machine.capabilities.gpus}
        assert all(gpu_fits(known[gpu], need.gpu) for gpu in seat.gpus)


@settings(max_examples=200, deadline=None)
@given(QUEUES, FLEETS, st.randoms(use_true_random=False))
def test_a_pass_is_whole_within_limits_certain_and_explained(
    jobs: list[QueuedJob], machines: list[Machine], chance: Any
) -> None:
    made = plan_queue(jobs, machines, 0)
    again = plan_queue(chance.sample(jobs, len(jobs)), chance.sample(machines, len(machines)), 0)
    assert (names(made), made.next, made.kept) == (names(again), again.next, again.kept)
    assert made.placed == again.placed
    assert {one.id for one in made.waiting} | made.placed.keys() == {one.id for one in jobs}
    check_never_too_much(filled(machines, made, jobs))
    for one in jobs:
        if one.id in made.placed:
            check_whole_gang(one.need, made.placed[one.id])
        else:
            reasons = made.why(one).reasons
            assert reasons.keys() == ({box.name for box in machines} or {"*"})
            assert all(reasons.values())
            assert made.why(one) == again.why(one)


@settings(max_examples=100, deadline=None)
@given(QUEUES, FLEETS, st.randoms(use_true_random=False))
def test_nobody_starves_in_a_queue_that_never_ends(
    jobs: list[QueuedJob], machines: list[Machine], chance: Any
) -> None:
    """Small jobs keep coming, and something ends each round: what the fleet can run at all, it runs."""
    able = {one.id for one in jobs if plan_queue([one], machines, 0).placed}
    waiting = {one.id: replace(one, priority=0) for one in jobs}
    known = dict(waiting)
    held: frozenset[str] = frozenset()
    for round_ in range(400):
        small = QueuedJob(f"small{round_}", Need(), 0, 100.0 + round_)
        waiting[small.id] = known[small.id] = small
        made = plan_queue(waiting.values(), machines, 0, held=held)
        held = made.kept
        machines = filled(machines, made, list(known.values()))
        check_never_too_much(machines)
        for which in made.placed:
            del waiting[which]
        if not able & waiting.keys():
            return
        ended = chance.choice(sorted({held.job for one in machines for held in one.running}))
        machines = [
            replace(one, running=tuple(held for held in one.running if held.job != ended)) for one in machines
        ]
    raise AssertionError(f"{able & waiting.keys()} never got a machine")


def test_ten_thousand_jobs_over_a_thousand_executors_are_all_trained() -> None:
    """Time in rounds: a job takes one to four of them. The large ones are not left to the end."""
    chance = random.Random(3)  # noqa: S311
    machines = [
        machine(f"m{n:03}", chance.choice((0, 2, 8)), max_jobs=chance.choice((1, 2))) for n in range(1000)
    ]
    several = Need(gpu=GpuRequest(2, 8), nodes=NodeRange(1, 4))
    kinds = [Need(), Need(cpu=3.0), Need(gpu=GpuRequest(1, 1)), several]
    large = Need(nodes=NodeRange(200, 200), gpu=GpuRequest(8, 8))
    jobs = {
        f"j{n:05}": QueuedJob(f"j{n:05}", large if n % 1000 == 500 else chance.choice(kinds), 0, float(n))
        for n in range(10_000)
    }
    ends = {which: chance.randint(1, 4) for which in jobs}
    waiting, began = dict(jobs), dict[str, int]()
    held: frozenset[str] = frozenset()
    for moment in range(200):
        made = plan_queue(waiting.values(), machines, 0, held=held)
        held = made.kept
        machines = filled(machines, made, list(jobs.values()))
        check_never_too_much(machines)
        for which in made.placed:
            del waiting[which]
            began[which] = moment
        if not waiting:
            break
        gone = {which for which, when in began.items() if when + ends[which] <= moment + 1}
        machines = [
            replace(one, running=tuple(held for held in one.running if held.job not in gone))
            for one in machines
        ]
    assert began.keys() == jobs.keys()
    first_large = began["j00500"]
    assert first_large <= 8, first_large
