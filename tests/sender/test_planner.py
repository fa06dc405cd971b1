"""One job over the machines: all nodes or none, never more than a machine has, and why not in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.planning import GIB, machine, manifest, node, placed, why
from trainforge.config.isolation import Isolation
from trainforge.config.messages import Gpu
from trainforge.config.policy import Policy
from trainforge.sender.fit import Machine, need_of
from trainforge.sender.gang import Board
from trainforge.sender.parameters import adjust, of_node
from trainforge.sender.planner import ADVICE, ALL, SHOWN, Plan, Waiting, plan
from trainforge.sender.suggestions import estimate, size_text, suggest

SATURDAY_NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC


def test_all_nodes_are_told_when_the_first_machine_goes_away() -> None:
    ends = (SATURDAY_NOON + 9000, 0.0, SATURDAY_NOON + 7200)
    machines = [machine(f"m{number}", session_ends=time) for number, time in enumerate(ends)]
    made = plan(manifest("resources: {nodes: 3}"), machines, now=SATURDAY_NOON)
    assert isinstance(made, Plan)
    assert made.session_ends == SATURDAY_NOON + 7200


def test_a_job_goes_where_it_can_be_kept_apart() -> None:
    why_not = {"sandbox": "bubblewrap is not installed"}
    plain = machine("plain", isolation=Isolation(lacks=why_not))
    strict = machine("strict", isolation=Isolation(levels=["process", "sandbox"]))
    owned = machine("owned", isolation=Isolation(), policy=Policy(isolation="sandbox"))
    words = "cannot isolate a job as sandbox: bubblewrap is not installed"
    for wish in ("network: none", "isolation: sandbox"):
        job = manifest(f"environment: {{{wish}}}")
        assert placed(plan(job, [plain, strict])) == ["strict"]
        reasons = why(plan(job, [plain, machine("old")]))
        assert (reasons["plain"], reasons["old"]) == (words, "cannot isolate a job as sandbox")
    assert why(plan(manifest(), [owned]))["owned"] == "cannot isolate a job as sandbox"
    assert placed(plan(manifest(), [plain])) == ["plain"]


def test_a_container_needs_an_engine_an_image_and_its_gpus() -> None:
    levels = ["process", "sandbox", "container"]
    bare = machine("bare", isolation=Isolation(lacks={"container": "docker: not installed"}))
    able = machine("able", isolation=Isolation(levels=levels))
    stocked = machine("stocked", isolation=Isolation(levels=levels, image="python:3.12"))
    gpus = [machine(name, gpus=1, isolation=Isolation(levels=levels, gpus=name == "g")) for name in "fg"]
    named, unnamed = manifest("environment: {image: x}"), manifest("environment: {mode: container}")
    assert placed(plan(named, [bare, able])) == ["able"]
    assert why(plan(named, [bare]))["bare"] == "cannot isolate a job as container: docker: not installed"
    assert placed(plan(unnamed, [able, stocked])) == ["stocked"]
    assert "it names no image" in why(plan(unnamed, [able]))["able"]
    needing = manifest("environment: {image: x}\nresources: {gpu: 1}")
    assert placed(plan(needing, gpus)) == ["g"]
    assert "its containers get no GPUs" in why(plan(needing, gpus[:1]))["f"]
    only = machine("only", isolation=Isolation(levels=["process", "container"]))
    assert "it names no image" in why(plan(manifest("environment: {network: none}"), [only]))["only"]


def test_no_executors_at_all() -> None:
    assert why(plan(manifest(), [])) == {"*": "no executor has joined yet"}
    assert why(plan(manifest(), [machine("a", revoked=True)])) == {"*": "no executor has joined yet"}


@pytest.mark.parametrize(
    ("rest", "facts", "words"),
    [
        ("", {"online": False}, "offline"),
        ("", {"draining": True}, "draining: it takes no new jobs"),
        ("", {"running": (node(),)}, "busy with 1 of 1 jobs"),
        ("", {"available": "Mon-Fri 18:00-08:00"}, "available from Mon 18:00"),
        ("", {"available": "18:00-08:00"}, "available from 18:00"),
        ("resources: {gpu: 1}", {}, "needs 1 GPU, has none"),
        ("resources: {gpu: 2}", {"gpus": 1}, "needs 2 GPUs, has 1"),
        (
            "resources: {gpu: 1}",
            {"gpus": 1, "running": (node("box-0"),), "max_jobs": 2},
            "needs 1 free GPU, has none now",
        ),
        ("resources: {gpu: '40Gi..:1'}", {"gpus": 1}, "needs 40 GiB of GPU memory, has 24 GiB"),
        (
            "resources: {gpu: '40Gi..80Gi:2'}",
            {"gpus": 2},
            "needs 40 GiB to 80 GiB of GPU memory on each of 2, has 24 GiB",
        ),
        (
            "resources: {gpu: 1}",
            {"gpus": 2, "others": {"box-0": 20 * GIB, "box-1": 3 * GIB}},
            "GPU 0 has 20.0 of 24 GiB, GPU 1 has 3.0 of 24 GiB used by other programs",
        ),
        (
            "resources: {gpu: '8Gi..:1'}",
            {"gpus": 1, "others": {"box-0": 20 * GIB}},
            "GPU 0 has 20.0 of 24 GiB used by other programs",
        ),
        ("", {"session_ends": SATURDAY_NOON + 30}, "its session ends in a minute"),
        (
            "timeout: {run: 2h}",
            {"session_ends": SATURDAY_NOON + 720},
            "its session ends in 12 min, the job may take 120 min (timeout.run)",
        ),
        ("resources: {cpu: 8}", {}, "needs 8 CPU cores, has 4"),
        (
            "resources: {cpu: 3}",
            {"max_jobs": 2, "running": (node(cpu=2),)},
            "needs 3 CPU cores, has 2 not taken by jobs",
        ),
        ("resources: {memory: 32Gi}", {}, "needs 32 GiB of memory, has 16 GiB"),
        (
            "resources: {memory: 12Gi}",
            {"max_jobs": 2, "running": (node(memory=8 * GIB),)},
            "needs 12 GiB of memory, has 8.5 GiB not taken by jobs",
        ),
        ("resources: {disk: 200Gi}", {}, "needs 200 GiB of free disk, has 100 GiB"),
        ("resources: {labels: {zone: lab}}", {"labels": {"zone": "home"}}, "lacks the label zone=lab"),
    ],
)
def test_a_machine_that_does_not_fit_says_why(rest: str, facts: dict[str, Any], words: str) -> None:
    made = plan(manifest(rest), [machine("box", **facts)], now=SATURDAY_NOON)
    assert why(made) == {"box": words}


def test_manual_choice_and_exclusion_by_name_or_id() -> None:
    machines = [machine("alpha"), machine("beta")]
    assert placed(plan(manifest(), machines, chosen=["beta"])) == ["beta"]
    assert placed(plan(manifest(), machines, chosen=["x-beta"])) == ["beta"]
    assert placed(plan(manifest(), machines, chosen=["!alpha"])) == ["beta"]
    assert why(plan(manifest(), machines[:1], chosen=["beta"])) == {"alpha": "not among the executors chosen"}
    assert why(plan(manifest(), machines[:1], chosen=["!alpha"])) == {"alpha": "excluded by the request"}


def test_gpus_that_other_programs_use_are_left_alone() -> None:
    desk = machine("desk", gpus=2, others={"desk-0": 20 * GIB, "desk-1": GIB // 2})
    made = plan(manifest("resources: {gpu: 1}"), [desk])
    assert isinstance(made, Plan)
    assert made.nodes[0].gpus == ("desk-1",)  # half a GiB is a desktop, not a training
    assert isinstance(plan(manifest("resources: {gpu: '4Gi..:2'}"), [desk]), Plan)  # 4 of 24 GiB are left
    made = plan(manifest("resources: {gpu: 2}"), [desk])
    assert isinstance(made, Waiting)
    assert made.start is not None
    assert made.start.time is None


def with_gpus(one: Machine, gpus: list[Gpu]) -> Machine:
    return replace(one, capabilities=one.capabilities.model_copy(update={"gpus": gpus}))


def test_a_gpu_that_is_not_well_is_given_to_no_job() -> None:
    ill = machine("desk", gpus=2)
    gpus = [gpu.model_copy(update={"problem": "it fell off the bus"}) for gpu in ill.capabilities.gpus]
    half = with_gpus(ill, [gpus[0], ill.capabilities.gpus[1]])
    asked = manifest("resources: {gpu: 1}")
    made = plan(asked, [half])
    assert isinstance(made, Plan)
    assert made.nodes[0].gpus == ("desk-1",)
    both = with_gpus(ill, gpus)
    assert why(plan(asked, [both])) == {"desk": "GPU 0: it fell off the bus; GPU 1: it fell off the bus"}
    assert placed(plan(asked, [both, machine("lab", gpus=2)])) == ["lab"]


def test_conda_is_where_it_is() -> None:
    asked = manifest(training="{script: t.py, requirements: environment.yml}")
    without = machine("box", installers=["uv", "pip"])
    words = "has no conda, mamba or micromamba, which the job's packages need"
    assert why(plan(asked, [without])) == {"box": words}
    assert placed(plan(asked, [without, machine("lab", installers=["uv", "conda"])])) == ["lab"]


def test_half_a_gang_is_none() -> None:
    made = plan(manifest("resources: {nodes: 2}"), [machine("alpha"), machine("beta", running=(node(),))])
    assert why(made) == {
        "alpha": "would fit, but the job needs 2 machines at once and 1 fits",
        "beta": "busy with 1 of 1 jobs",
    }


def test_a_range_of_nodes_takes_what_is_there() -> None:
    machines = [machine(name) for name in "abc"]
    assert placed(plan(manifest("resources: {nodes: '1:4'}"), machines)) == ["a", "b", "c"]
    assert placed(plan(manifest("resources: {nodes: '1:2'}"), machines)) == ["a", "b"]
    assert isinstance(plan(manifest("resources: {nodes: '4:8'}"), machines), Waiting)


def test_the_smaller_and_emptier_machine_is_taken_first() -> None:
    cpu_job = manifest()
    assert placed(plan(cpu_job, [machine("gpu", gpus=1), machine("cpu")])) == ["cpu"]
    busy = machine("a", running=(node(),), max_jobs=4)
    assert placed(plan(cpu_job, [busy, machine("b", max_jobs=4)])) == ["b"]
    assert placed(plan(cpu_job, [machine("a", cpu_percent=90), machine("b", cpu_percent=5)])) == ["b"]
    gpu_job = manifest("resources: {gpu: 1}")
    assert placed(plan(gpu_job, [machine("large", gpus=1, gpu_gib=80), machine("small", gpus=1)])) == [
        "small"
    ]
    assert placed(plan(gpu_job, [machine("eight", gpus=8), machine("one", gpus=1)])) == ["one"]
    assert placed(
        plan(manifest("resources: {gpu: '1..8'}"), [machine("a", gpus=2), machine("b", gpus=8)])
    ) == ["b"]


def test_gpus_are_given_equally_and_one_process_each() -> None:
    made = plan(manifest("resources: {nodes: 2, gpu: '1..8'}"), [machine("a", gpus=4), machine("b", gpus=2)])
    assert isinstance(made, Plan)
    assert [len(one.gpus) for one in made.nodes] == [2, 2]
    assert (made.processes_per_node, made.world_size) == (2, 4)


def test_a_machine_that_would_slow_the_gang_down_is_left_out() -> None:
    machines = [machine("a", gpus=8), machine("b", gpus=1)]
    made = plan(manifest("resources: {nodes: '1:2', gpu: '1..8'}"), machines)
    assert isinstance(made, Plan)
    assert [(one.name, len(one.gpus)) for one in made.nodes] == [("a", 8)]


def test_executors_of_one_host_share_what_it_has() -> None:
    shared = [
        machine(name, gpus=2, gpu_host="h", host_id="h", max_jobs=2, running=running)
        for name, running in (("a", (node("h-0"),)), ("b", ()))
    ]
    made = plan(manifest("resources: {gpu: 1, memory: 6Gi}"), shared)
    assert isinstance(made, Plan)
    assert [one.gpus for one in made.nodes] == [("h-1",)]
    assert isinstance(plan(manifest("resources: {nodes: 2, gpu: 1}"), shared), Waiting)
    assert isinstance(plan(manifest("resources: {nodes: 2, memory: 12Gi}"), shared), Waiting)


# --- what would help ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "chosen", "facts", "words"),
    [
        ("nodes: 3", [], {}, "resources.nodes: 2 would fit now"),
        ("gpu: 4", [], {"gpus": 2}, "resources.gpu: 2 would fit now"),
        ("gpu: '40Gi..:1'", [], {"gpus": 1}, "resources.gpu: 24Gi..:1 would fit now"),
        ("gpu: 1", [], {}, "resources.gpu: 0 would fit now, on CPU"),
        ("nodes: 2, memory: 32Gi", [], {}, "resources.memory: 16Gi would fit now"),
        ("cpu: 64", [], {}, "resources.cpu: 4 would fit now"),
        ("disk: 1Ti", [], {}, "resources.disk: 100Gi would fit now"),
        ("labels: {zone: lab}", [], {}, "without resources.labels zone=lab it would fit now"),
        ("nodes: 1", ["gamma"], {}, "a would take it now, without the choice of executors"),
    ],
)
def test_the_nearest_change_is_named(rest: str, chosen: list[str], facts: dict[str, Any], words: str) -> None:
    machines = [machine("a", **facts), machine("b", **facts)]
    made = plan(manifest(f"resources: {{{rest}}}"), machines, chosen=chosen)
    assert isinstance(made, Waiting)
    assert made.suggestions[0] == words
    assert made.summary()[ADVICE].startswith(words)


def test_nothing_is_suggested_that_would_not_help() -> None:
    board = Board([machine("a", online=False)], 0)
    assert suggest(board, need_of(manifest("resources: {nodes: 3, gpu: 2, cpu: 9}"))) == ()


def test_a_long_list_of_reasons_is_cut_and_counted() -> None:
    made = plan(manifest(), [machine(f"m{number:03}", online=False) for number in range(100)])
    assert isinstance(made, Waiting)
    assert len(made.reasons) == 100
    assert len(made.summary()) == SHOWN + 1
    assert made.summary()[ALL] == "80 more: offline"


@pytest.mark.parametrize(("size", "text"), [(2**34, "16Gi"), (2**20 * 300, "300Mi"), (24e9, "22888Mi")])
def test_sizes_are_written_as_in_a_manifest(size: float, text: str) -> None:
    assert size_text(size) == text


# --- when -----------------------------------------------------------------------------------------------


def test_the_start_is_estimated_from_what_runs() -> None:
    two = need_of(manifest("resources: {nodes: 2}"))
    machines = [machine("a", running=(node(ends=500.0),)), machine("b", running=(node(ends=900.0),))]
    assert estimate(Board(machines, 100), two).time == 900.0
    assert estimate(Board([*machines, machine("c")], 100), two).time == 500.0
    late = [machine("a", running=(node(ends=50.0),)), machine("b")]
    assert estimate(Board(late, 100), two).time is None  # it takes longer than usual: nobody knows


def test_an_unknown_start_is_said_to_be_unknown() -> None:
    one = need_of(manifest())
    assert estimate(Board([machine("a", running=(node(),))], 0), one).words.startswith(
        "unknown: nothing tells"
    )
    assert estimate(Board([machine("a", online=False)], 0), one).words.startswith("unknown: no machines")


# --- parameters -----------------------------------------------------------------------------------------


def params(scale: str, values: str) -> Any:
    return manifest(f"distributed: {{scale: {scale}}}\n", training=f"{{script: t.py, params: {values}}}")


def test_batch_size_is_divided_and_the_plan_says_so() -> None:
    wanted = params("{batch_size: divide}", "{batch_size: 64, per_device_train_batch_size: 10, epochs: 3}")
    after, changes, notices = adjust(wanted, 4)
    assert after == {"batch_size": 16, "per_device_train_batch_size": 2, "epochs": 3}
    assert [str(change) for change in changes] == [
        "batch_size: 64 becomes 16 (divided by 4 processes)",
        "per_device_train_batch_size: 10 becomes 2 (divided by 4 processes)",
    ]
    assert notices == (
        "per_device_train_batch_size 10 is not a multiple of 4 processes: together they train with 8",
    )


def test_nodes_other_than_the_first_write_elsewhere() -> None:
    wanted = params("{}", "{output_dir: out/}")
    after, changes, _ = adjust(wanted, 3, 3)
    assert after == {"output_dir": "out/"}
    assert [(one.before, one.after) for one in changes] == [("out/", "out/rank-1 to rank-2")]
    assert [of_node(after, changes, rank)["output_dir"] for rank in range(3)] == [
        "out/",
        "out/rank-1",
        "out/rank-2",
    ]
    assert adjust(wanted, 2, 1)[1] == (), "processes of one node share it"
    assert adjust(params("{output_dir: keep}", "{output_dir: out}"), 2, 2)[1] == ()


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.4), ("sqrt", 0.2), ("keep", 0.1)])
def test_the_learning_rate_follows_the_rule(rule: str, expected: float) -> None:
    wanted = params(f"{{learning_rate: {rule}, batch_size: keep}}", "{learning_rate: 0.1, lr: 0.1}")
    after, _, notices = adjust(wanted, 4)
    assert after == pytest.approx({"learning_rate": expected, "lr": expected})
    assert notices == ()


def test_scaling_both_is_done_as_told_and_noticed() -> None:
    after, _, notices = adjust(params("{learning_rate: linear}", "{batch_size: 8, lr: 0.1}"), 2)
    assert after == {"batch_size": 4, "lr": 0.2}
    assert len(notices) == 1


def test_one_process_changes_nothing() -> None:
    assert adjust(params("{learning_rate: linear}", "{lr: 0.1, batch_size: 3}"), 1)[1:] == ((), ())
