"""Placement: all nodes or none, never more than a machine has, the same answer for the same question."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.manifest import Manifest, parse_manifest
from trainforge.config.messages import Capabilities, Gpu
from trainforge.sender.planner import Machine, Plan, Waiting, adjust, plan

GIB = 2**30


def manifest(rest: str = "") -> Manifest:
    return parse_manifest(f"project: {{name: p}}\ntraining: {{script: t.py}}\n{rest}")


def machine(name: str, gpus: int = 0, **facts: Any) -> Machine:
    has = {
        "hostname": name,
        "cpu_count": 4,
        "memory_bytes": 16 * GIB,
        "disk_free_bytes": 100 * GIB,
        "gpus": [Gpu(uuid=f"{name}-{i}", model="A", memory_bytes=24 * GIB) for i in range(gpus)],
    }
    own = {key: facts.pop(key) for key in list(facts) if key in Capabilities.model_fields}
    return Machine(id=f"x-{name}", name=name, capabilities=Capabilities.model_validate(has | own), **facts)


def why(made: Plan | Waiting) -> dict[str, str]:
    assert isinstance(made, Waiting)
    return made.reasons


def placed(made: Plan | Waiting) -> list[str]:
    assert isinstance(made, Plan)
    return [node.name for node in made.nodes]


def test_no_executors_at_all() -> None:
    assert why(plan(manifest(), [])) == {"*": "no executor has joined yet"}


@pytest.mark.parametrize(
    ("rest", "facts", "words"),
    [
        ("", {"online": False}, "offline"),
        ("", {"draining": True}, "draining: it takes no new jobs"),
        ("", {"jobs": 1}, "busy with 1 of 1 jobs"),
        ("resources: {gpu: 1}", {}, "has no GPUs, 1 needed"),
        ("resources: {gpu: 2}", {"gpus": 1}, "has 1 GPU, 2 needed"),
        (
            "resources: {gpu: 1}",
            {"gpus": 1, "gpus_taken": frozenset({"box-0"}), "max_jobs": 2},
            "has no free GPUs, 1 needed",
        ),
        ("resources: {gpu: '40GB..:1'}", {"gpus": 1}, "has no GPUs of 37.3Gi or more, 1 needed"),
        ("resources: {cpu: 8}", {}, "has 4 CPU cores, 8 needed"),
        ("resources: {memory: 32Gi}", {}, "has 16.0Gi of memory, 32.0Gi needed"),
        ("resources: {disk: 200Gi}", {}, "has 100.0Gi of free disk, 200.0Gi needed"),
        ("resources: {labels: {zone: lab}}", {"labels": {"zone": "home"}}, "lacks the label zone=lab"),
    ],
)
def test_a_machine_that_does_not_fit_says_why(rest: str, facts: dict[str, Any], words: str) -> None:
    assert why(plan(manifest(rest), [machine("box", **facts)])) == {"box": words}


def test_manual_choice_by_name_or_id() -> None:
    machines = [machine("alpha"), machine("beta")]
    assert placed(plan(manifest(), machines, chosen=["beta"])) == ["beta"]
    assert placed(plan(manifest(), machines, chosen=["x-beta"])) == ["beta"]
    assert why(plan(manifest(), machines[:1], chosen=["beta"])) == {"alpha": "not among the executors chosen"}


def test_half_a_gang_is_none() -> None:
    made = plan(manifest("resources: {nodes: 2}"), [machine("alpha"), machine("beta", jobs=1)])
    assert why(made) == {
        "alpha": "would fit, but the job needs 2 executors and 1 fit",
        "beta": "busy with 1 of 1 jobs",
    }


def test_the_smaller_and_emptier_machine_is_taken_first() -> None:
    cpu_job = manifest()
    assert placed(plan(cpu_job, [machine("gpu", gpus=1), machine("cpu")])) == ["cpu"]
    busy = machine("a", jobs=1, max_jobs=4)
    assert placed(plan(cpu_job, [busy, machine("b", max_jobs=4)])) == ["b"]


def test_gpus_are_given_equally_and_one_process_each() -> None:
    made = plan(manifest("resources: {nodes: 2, gpu: '1..8'}"), [machine("a", gpus=4), machine("b", gpus=2)])
    assert isinstance(made, Plan)
    assert [len(node.gpus) for node in made.nodes] == [2, 2]
    assert (made.processes_per_node, made.world_size) == (2, 4)


# --- parameters -----------------------------------------------------------------------------------------


def params(scale: str, values: str) -> Manifest:
    return parse_manifest(
        f"project: {{name: p}}\ntraining: {{script: t.py, params: {values}}}\n"
        f"distributed: {{scale: {scale}}}\n"
    )


def test_batch_size_is_divided_and_the_plan_says_so() -> None:
    wanted = params("{batch_size: divide}", "{batch_size: 64, per_device_train_batch_size: 10, epochs: 3}")
    after, changes, notices = adjust(wanted, 4)
    assert after == {"batch_size": 16, "per_device_train_batch_size": 2, "epochs": 3}
    assert [(c.key, c.before, c.after) for c in changes] == [
        ("batch_size", 64, 16),
        ("per_device_train_batch_size", 10, 2),
    ]
    assert notices == (
        "per_device_train_batch_size 10 is not a multiple of 4 processes: together they train with 8",
    )


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.4), ("sqrt", 0.2), ("keep", 0.1)])
def test_the_learning_rate_follows_the_rule(rule: str, expected: float) -> None:
    wanted = params(f"{{learning_rate: {rule}, batch_size: keep}}", "{learning_rate: 0.1, lr: 0.1}")
    after, _, _ = adjust(wanted, 4)
    assert after == pytest.approx({"learning_rate": expected, "lr": expected})


def test_one_process_changes_nothing() -> None:
    assert adjust(params("{learning_rate: linear}", "{lr: 0.1, batch_size: 3}"), 1)[1:] == ((), ())


# --- properties -----------------------------------------------------------------------------------------

MACHINES = st.lists(
    st.builds(
        lambda number, gpus, jobs, limit, taken, online: machine(
            f"box{number}",
            gpus=gpus,
            jobs=jobs,
            max_jobs=limit,
            online=online,
            gpus_taken=frozenset(f"box{number}-{i}" for i in range(taken)),
        ),
        st.integers(0, 30),
        st.integers(0, 4),
        st.integers(0, 4),
        st.integers(1, 4),
        st.integers(0, 4),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda one: one.id,
)


@given(MACHINES, st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.randoms(use_true_random=False))
def test_plans_are_whole_within_limits_and_certain(
    machines: list[Machine], nodes: int, more: int, gpus: int, random: Any
) -> None:
    wanted = manifest(f"resources: {{nodes: '{nodes}:{nodes + more}', gpu: '{gpus}..{gpus + 1}'}}")
    made = plan(wanted, machines)
    shuffled = random.sample(machines, len(machines))
    if isinstance(made, Waiting):
        assert made.reasons.keys() == ({one.name for one in machines} or {"*"})
        assert all(made.reasons.values())
        assert plan(wanted, shuffled) == made
        return
    assert plan(wanted, shuffled) == made
    assert nodes <= len(made.nodes) <= nodes + more
    assert [node.rank for node in made.nodes] == list(range(len(made.nodes)))
    assert len({node.executor for node in made.nodes}) == len(made.nodes)
    by_id = {one.id: one for one in machines}
    for node in made.nodes:
        chosen = by_id[node.executor]
        assert chosen.online
        assert chosen.jobs < chosen.capabilities.max_jobs
        assert gpus <= len(node.gpus) <= gpus + 1
        own = {gpu.uuid for gpu in chosen.capabilities.gpus}
        assert set(node.gpus) <= own - chosen.gpus_taken
    assert len({len(node.gpus) for node in made.nodes}) == 1


@given(st.integers(1, 4096), st.integers(1, 64))
def test_dividing_never_makes_the_whole_batch_larger_unless_it_has_to(batch: int, world: int) -> None:
    after, _, _ = adjust(params("{batch_size: divide}", f"{{batch_size: {batch}}}"), world)
    assert after["batch_size"] >= 1
    assert after["batch_size"] * world <= max(batch, world)
