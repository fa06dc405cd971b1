"""The life of a job as a table and as properties over random facts, on the real store."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.core import MACHINE
from support.databases import prepared
from trainforge.config.manifest import parse_manifest
from trainforge.config.messages import (
    OUTCOMES,
    Ended,
    FencingToken,
    Finished,
    Heartbeat,
    JobState,
    JoinRequest,
    JournalBatch,
    Load,
    NodeKey,
    Outcome,
    Published,
    Reached,
    Ready,
    Record,
    RunOrder,
)
from trainforge.sender import lifecycle as life
from trainforge.sender.facts import (
    FIRST_REST_S,
    LONGEST_REST_S,
    AttemptFacts,
    Company,
    JobFacts,
    NodeFacts,
    Policy,
    Result,
    Stop,
)
from trainforge.sender.planner import Plan, plan
from trainforge.sender.store import Store
from trainforge.sender.store_events import NewEvent, NewJob, Repo
from trainforge.sender.store_visits import Visit

STATES: tuple[JobState, ...] = get_args(JobState)
COMMIT = "a" * 40
JOB = "j" * 26
POLICY = Policy(lost_after=600, offer_timeout=90)

ALLOWED = {
    "pending": "planning completed failed cancelled",
    "planning": "dispatching completed failed cancelled",
    "dispatching": "running completed failed cancelled",
    "running": "dispatching completed failed cancelled",
    "completed": "",
    "failed": "",
    "cancelled": "",
}


@pytest.mark.parametrize("old", STATES)
@pytest.mark.parametrize("new", STATES)
def test_the_table_of_transitions(old: JobState, new: JobState) -> None:
    assert life.is_legal(old, new) == (new in ALLOWED[old].split())


# --- single decisions -------------------------------------------------------------------------------------


def node(rank: int = 0, **facts: Any) -> NodeFacts:
    defaults: dict[str, Any] = {
        "executor": f"x{rank}", "name": f"box{rank}", "created": 0.0, "lease_until": 90.0, "heard": True,
        "ordered": frozenset({"run"}), "accepted": frozenset({"run"}),
    }  # fmt: skip
    return NodeFacts(rank=rank, **(defaults | facts))


def job(*nodes: NodeFacts, attempt: dict[str, Any] | None = None, **facts: Any) -> JobFacts:
    defaults: dict[str, Any] = {"id": JOB, "state": "running", "version": 1, "created": 0.0}
    if nodes:
        about: dict[str, Any] = {"number": 1, "state": "running", "created": 0.0} | (attempt or {})
        defaults["attempt"] = AttemptFacts(nodes=nodes, **about)
    return JobFacts(**(defaults | facts))


def steps(facts: JobFacts, now: float = 10.0, policy: Policy = POLICY) -> list[life.Step]:
    return life.next_steps(facts, policy, now)


ENDED = Ended(exit_code=0)
FAILED = Ended(exit_code=1, code="script_failed", reason="ValueError")
PUBLISHED = Published(branch="r", path="p", commit=COMMIT, outcome="completed")


@pytest.mark.parametrize("state", sorted(OUTCOMES))
def test_nothing_follows_an_ending(state: Any) -> None:
    facts = job(node(published=PUBLISHED), state=state, stop=Stop("stopped", ""), ending="completed")
    assert steps(facts) == []


@pytest.mark.parametrize("state", [state for state in STATES if state not in OUTCOMES])
@pytest.mark.parametrize("outcome", sorted(OUTCOMES))
def test_a_result_on_the_remote_is_the_last_word(state: Any, outcome: Outcome) -> None:
    facts = job(state=state, result=Result(outcome, COMMIT), stop=Stop("stopped", ""))
    assert steps(facts) == [life.Finish(outcome)]


def test_an_executor_saying_published_only_makes_the_sender_look() -> None:
    facts = job(node(ended=ENDED, published=PUBLISHED), ending="completed")
    assert steps(facts) == [life.LookAtRemote(COMMIT)]


def test_a_refusal_is_planned_anew_and_is_no_try() -> None:
    refused = node(1, ended=Ended(code="policy_refused", reason="box1: its owner rejected it"))
    (stop,) = steps(job(node(0), refused))
    assert isinstance(stop, life.Give) and stop.rank == 0
    over = job(node(0, ended=Ended(code="peer_failed")), refused)
    *forgets, closed, again = steps(over)
    assert len(forgets) == 2
    assert closed == life.MarkAttempt("superseded", "policy_refused", "box1: its owner rejected it")
    assert again == life.SetState("dispatching")


def test_an_end_that_is_decided_cannot_be_stopped() -> None:
    facts = job(node(ended=ENDED), ending="completed", stop=Stop("stopped", ""))
    (step,) = steps(facts)
    assert isinstance(step, life.Give)
    assert step.body.kind == "publish"


def test_rank_0_publishes_until_it_is_lost() -> None:
    facts = job(node(ended=FAILED, lease_until=90, ordered=frozenset({"run", "publish"})), ending="failed")
    assert steps(facts, 690) == []
    assert steps(facts, 691) == [life.PublishHere()]


UNHEARD = "box0 was not heard of any more before it published"


def test_a_completed_training_whose_files_are_lost_is_looked_for_first() -> None:
    first = node(ended=ENDED, lease_until=90, ordered=frozenset({"run", "publish"}))
    assert steps(job(first, ending="completed"), 690) == []
    assert steps(job(first, ending="completed"), 691) == [life.FindResult("lost", UNHEARD)]
    removed = node(ended=ENDED, revoked=True)
    (step,) = steps(job(removed, ending="completed"))
    assert isinstance(step, life.FindResult)


def test_a_completed_training_whose_files_are_lost_is_tried_again_and_then_fails() -> None:
    first = node(ended=ENDED, lease_until=90, ordered=frozenset({"run", "publish", "forget"}))
    blamed = {"code": "lost", "reason": UNHEARD}
    facts = job(first, attempt=blamed, ending="completed")
    again = [life.Reopen(), life.MarkAttempt("lost", "lost", UNHEARD), life.SetState("dispatching")]
    assert steps(facts, 691) == again
    assert steps(facts, 60) == again  # it came back: too late
    failed = [life.Decide("failed", "lost", UNHEARD)]
    assert steps(job(first, attempt=blamed, ending="completed", tried=1), 691) == failed
    assert steps(facts, 691, Policy(retry_on=frozenset({"out_of_memory"}))) == failed
    assert steps(job(first, attempt=blamed, ending="failed", tried=1), 691) == [life.PublishHere()]


def test_the_sender_publishes_when_rank_0_will_not() -> None:
    refused = node(ended=ENDED, ordered=frozenset({"publish"}), refused={"publish": "gone"})
    assert steps(job(refused, ending="failed")) == [life.PublishHere()]
    broken = node(ended=ENDED, finished=Finished(state="failed", code="internal"))
    assert steps(job(broken, ending="failed")) == [life.PublishHere()]


def test_a_blocked_result_ends_the_job_without_one() -> None:
    blocked = node(ended=ENDED, finished=Finished(state="failed", code="publish_blocked", reason="GH013"))
    assert steps(job(blocked, ending="completed")) == [life.Block("GH013")]
    *_, finish = steps(job(blocked, ending="completed", publish_blocked="GH013"))
    assert finish == life.Finish("failed", "publish_blocked", "GH013")
    unread = job(blocked, ending="failed", code="checkout_failed", reason="no.", publish_blocked="GH013")
    *_, finish = steps(unread)
    words = "checkout_failed: no; the remote refuses the result, too: GH013"
    assert finish == life.Finish("failed", "publish_blocked", words)


def test_a_lease_that_ended_is_not_yet_a_lost_node() -> None:
    facts = job(node(lease_until=90))
    assert steps(facts, 690) == []
    assert steps(facts, 691) == [life.Blame("lost", "box0 was not heard of any more")]


def test_an_attempt_given_up_as_lost_stays_lost() -> None:
    """The executor comes back while the others are being stopped: too late."""
    facts = job(node(0), node(1), attempt={"code": "lost", "reason": "box1"})
    given = steps(facts)
    assert [step.rank for step in given if isinstance(step, life.Give)] == [0, 1]


def test_a_lost_job_is_tried_again_and_then_fails() -> None:
    facts = job(node(lease_until=0), attempt={"code": "lost", "reason": "box0"})
    again = steps(facts, 1000)
    assert life.MarkAttempt("lost", "lost", "box0") in again
    assert again[-1] == life.SetState("dispatching")
    spent = job(node(lease_until=0), attempt={"code": "lost", "reason": "box0"}, tried=1)
    assert steps(spent, 1000) == [life.Decide("failed", "lost", "box0")]


def test_an_offer_that_nobody_takes_costs_no_retry() -> None:
    waiting = node(heard=False, accepted=frozenset())
    assert steps(job(waiting, attempt={"state": "offered"}), 90) == []
    (blame,) = steps(job(waiting, attempt={"state": "offered"}), 91)
    assert isinstance(blame, life.Blame)
    assert blame.code == life.OFFER_EXPIRED
    facts = job(waiting, attempt={"state": "offered", "code": blame.code}, state="dispatching", tried=5)
    assert steps(facts, 92) == [life.MarkAttempt("superseded", "", "")]


def test_an_offer_lasts_for_as_long_as_somebody_may_hold_its_lease() -> None:
    """After a restart leases are given anew: who took it before a backup was restored can still say so."""
    waiting = node(heard=False, accepted=frozenset(), lease_until=300.0)
    assert steps(job(waiting, attempt={"state": "offered"}), 300) == []
    assert steps(job(waiting, attempt={"state": "offered"}), 301) != []


def test_the_first_failing_node_decides() -> None:
    nodes = (
        node(0, ended=Ended(code="peer_failed", reason="x"), ended_at=1.0),
        node(1, ended=Ended(code="script_failed", reason="late"), ended_at=3.0),
        node(2, ended=Ended(code="out_of_memory", reason="first"), ended_at=2.0),
    )
    assert steps(job(*nodes)) == [life.Decide("failed", "out_of_memory", "first")]


def test_a_node_that_failed_stops_its_peers() -> None:
    (step,) = steps(job(node(0), node(1, ended=FAILED, ended_at=1.0)))
    assert isinstance(step, life.Give)
    assert (step.rank, step.body.kind) == (0, "stop")


def test_stopping_waits_for_the_nodes_within_their_leases() -> None:
    facts = job(node(0), node(1, ended=Ended(code="stopped")), stop=Stop("stopped", "enough"))
    (step,) = steps(facts)
    assert isinstance(step, life.Give)
    assert step.rank == 0
    told = job(node(0, ordered=frozenset({"run", "stop"})), stop=Stop("stopped", "enough"))
    assert steps(told, 90) == []
    assert steps(told, 91) == [life.Decide("cancelled", "stopped", "enough")]


def test_training_that_ended_well_before_the_stop_is_completed() -> None:
    assert steps(job(node(ended=ENDED), stop=Stop("stopped", ""))) == [life.Decide("completed")]


def test_no_common_address_is_told_per_machine() -> None:
    facts = job(
        node(0, ready=Ready(addresses=["10.0.0.1"], port=4000)),
        node(
            1, ready=Ready(), reached=Reached(failures={"10.0.0.1": "refused"}), ordered=frozenset({"probe"})
        ),
    )
    assert steps(facts) == [
        life.Blame("rendezvous_unreachable", "box1 cannot reach box0 (10.0.0.1: refused)")
    ]


def test_a_broken_connection_is_not_the_cause_where_another_failed_by_itself() -> None:
    facts = job(
        node(0, ended=Ended(code="connection_lost", reason="closed by peer"), ended_at=1.0),
        node(1, ended=Ended(code="script_failed", reason="ValueError"), ended_at=2.0),
    )
    assert steps(facts) == [life.Decide("failed", "script_failed", "ValueError")]


def test_every_pair_of_nodes_is_probed_and_the_parted_one_named() -> None:
    ready = [Ready(addresses=[f"10.0.0.{rank}"], port=4000 + rank, nonce="n") for rank in range(3)]
    asked = steps(job(*(node(rank, ready=ready[rank]) for rank in range(3))))
    tried = {step.rank: sorted(step.body.peers) for step in asked if isinstance(step, life.Give)}  # type: ignore[union-attr]
    assert tried == {1: [], 2: [1]}
    met = {"10.0.0.0": "10.0.0.9"}
    said = [None, Reached(reached=met), Reached(reached=met, unmet={1: {"10.0.0.1": "no route"}})]
    facts = job(
        *(
            node(rank, ready=ready[rank], reached=said[rank], ordered=frozenset({"probe"}))
            for rank in range(3)
        )
    )
    reason = "box2 cannot reach box1 (10.0.0.1: no route)"
    assert steps(facts) == [life.Blame("rendezvous_unreachable", reason)]


def test_a_job_that_waited_too_long_fails() -> None:
    policy = Policy(queue_timeout=60)
    assert steps(job(state="planning", queued=10.0), 71, policy) == [
        life.Decide("failed", "timeout_queue", "no executors fitted within 60 s")
    ]
    assert steps(job(state="planning", queued=10.0), 70, policy) == [life.Place()]


def test_a_job_that_hangs_in_preparing_is_given_up_some_time_after_its_limit() -> None:
    policy = Policy(setup_timeout=100, offer_timeout=90)
    hanging = node(lease_until=1e9)
    assert steps(job(hanging), 250, policy) == []
    (blame,) = steps(job(hanging), 251, policy)
    assert blame == life.Blame("timeout_setup", "box0 was not ready within 100 s")
    assert steps(job(node(lease_until=1e9, ready=Ready())), 251, policy) == []


# --- other jobs, and rest ---------------------------------------------------------------------------------


def test_a_job_that_is_held_by_others_waits_without_a_time_limit() -> None:
    policy = Policy(queue_timeout=60, max_parallel=1)
    group = Company(group="nightly", older=("job aaaa", "job bbbb"), placed=("job cccc (lr=1)",))
    (wait,) = steps(job(state="planning", queued=0.0, company=group), 1e6, policy)
    assert wait == life.Wait(
        {
            "concurrency": "job aaaa of the group nightly goes first (and 1 more)",
            "matrix": "job cccc (lr=1) runs, and max_parallel is 1",
        },
        held=True,
    )
    assert steps(job(state="planning"), 1e6, policy) == [life.Queue()], "the clock begins to run"


def test_a_failure_in_the_matrix_stops_the_others_if_it_is_fast() -> None:
    company = Company(failed="job aaaa (lr=1)")
    asked = life.RequestStop("matrix_failed", "job aaaa (lr=1) of the same matrix failed")
    assert steps(job(node(), company=company)) == [asked]
    assert steps(job(state="pending", company=company)) == [asked]
    assert steps(job(node(), company=company), policy=Policy(fail_fast=False)) == []
    assert steps(job(node(ended=ENDED), ending="completed", company=company)) != [asked]


def test_a_newer_job_of_the_group_takes_the_place_of_older_ones() -> None:
    company = Company(group="g", newer="job aaaa")
    asked = life.RequestStop("superseded", "job aaaa of the group g is newer")
    assert steps(job(node(), company=company)) == [asked]
    (decided,) = steps(job(state="planning", company=company, stop=Stop("superseded", "newer")))
    assert decided == life.Decide("cancelled", "superseded", "newer")


@pytest.mark.parametrize("code", ["disk_full", "policy_refused"])
def test_what_a_machine_cannot_do_is_tried_elsewhere_and_costs_no_try(code: str) -> None:
    given_up = job(node(ended=Ended(code=code, reason="[Errno 28]")), tried=5)
    forget, closed, again = steps(given_up)
    assert (forget.rank, forget.body.kind) == (0, "forget")
    assert closed == life.MarkAttempt("superseded", code, "[Errno 28]")
    assert again == life.SetState("dispatching")


def test_a_failed_job_rests_before_it_is_tried_again() -> None:
    over = {"state": "lost", "ended": 100.0, "code": "lost", "reason": "box0 was not heard of any more"}
    assert steps(job(node(), attempt=over, state="dispatching", tried=1, queued=0.0), 100) == [life.Place()]
    script = over | {"code": "script_failed"}  # whose cause needs time to pass
    assert isinstance(steps(job(node(), attempt=script, tried=1, queued=0.0), 100)[0], life.Wait)
    facts = job(node(), attempt=over, state="dispatching", tried=2, queued=0.0)
    rest = POLICY.rest(JOB, 2)
    (wait,) = steps(facts, 100 + rest - 0.01)
    assert isinstance(wait, life.Wait)
    assert not wait.held
    assert wait.reasons["retry"].startswith("attempt 2 begins at 1970-01-01 00:01:4")
    assert "lost: box0" in wait.reasons["retry"]
    assert steps(facts, 100 + rest) == [life.Place()]
    superseded = job(node(), attempt=over | {"state": "superseded"}, state="dispatching", queued=0.0)
    assert steps(superseded, 100) == [life.Place()]


@given(st.text(min_size=1, max_size=26), st.integers(1, 40))
def test_rests_grow_to_a_limit_and_are_the_same_for_the_same_job(name: str, tried: int) -> None:
    rest = Policy.rest(name, tried)
    usual = min(FIRST_REST_S * 2 ** (tried - 1), LONGEST_REST_S)
    assert 0.75 * usual <= rest <= 1.25 * usual
    assert rest == Policy.rest(name, tried)


# --- random lives -------------------------------------------------------------------------------------------

FACTS = st.sampled_from(
    [
        "ready", "reached", "started", "ended", "failed", "lost", "published", "finished", "blocked",
        "accept", "heartbeat", "stop", "revoke", "refuse", "result", "false-result", "tick", "later",
    ]
)  # fmt: skip


class World:
    """A job on the real store; random facts come in, the life cycle is asked, its steps are applied."""

    def __init__(self, store: Store, nodes: int) -> None:
        self.store, self.now = store, 1000.0
        self.manifest = parse_manifest(
            f"project: {{name: p}}\ntraining: {{script: t.py}}\nresources: {{nodes: {nodes}}}\n"
        )
        self.fence, self.beats = 0, 0
        self.states: list[JobState] = ["pending"]
        self.endings: list[str] = []
        store.add_repository(Repo("builtin:p", "p", "", "builtin"), self.now)
        event = NewEvent("push", "builtin:p", "p", "job")
        new = NewJob(JOB, "builtin:p", COMMIT, "trainforge.yaml", COMMIT, "push")
        store.record_request(event, [new], self.now)
        for number in range(3):
            self.join(number)

    def join(self, number: int) -> None:
        executor = f"x{number}"
        self.store.add_join_token(str(number), self.now, self.now + 10)
        request = JoinRequest(token="t", name=f"box{number}", public_key={}, capabilities=MACHINE)
        self.store.join(str(number), executor, request, self.now)
        self.beat(executor)

    def beat(self, executor: str, *keys: NodeKey) -> None:
        beat = Heartbeat(capabilities=MACHINE, load=Load(), nodes=list(keys))
        self.beats += 1
        self.store.admit([Visit(executor, str(self.beats), self.now + 300, beat)], self.now, 90)

    def settle(self) -> None:
        for _ in range(60):
            facts, _ = self.store.facts(JOB)
            given = life.next_steps(facts, POLICY, self.now)
            assert not (facts.ending == "completed" and life.PublishHere() in given), "without its files"
            given = [
                life.Blame(step.code, step.reason) if isinstance(step, life.FindResult) else step
                for step in given
            ]
            outside = [step for step in given if isinstance(step, life.Wait | life.Place | life.RemoteStep)]
            inside = [step for step in given if step not in outside]
            if inside:
                assert self.store.apply(facts, inside, self.now) is not None
                self.watch(inside)
            elif not (outside and isinstance(outside[0], life.Place) and self.place(facts)):
                return
        raise AssertionError("the life cycle does not come to rest")

    def watch(self, applied: list[life.Step]) -> None:
        for step in applied:
            if isinstance(step, life.SetState | life.Finish):
                assert life.is_legal(self.states[-1], step.state)
                self.states.append(step.state)
            if isinstance(step, life.Decide):
                self.endings.append(step.outcome)
            if isinstance(step, life.Reopen):
                assert self.endings.pop() == "completed"

    def place(self, facts: JobFacts) -> bool:
        made = plan(self.manifest, self.store.machines(self.now, 1e9))
        if not isinstance(made, Plan):
            return False
        self.fence += 1
        run = RunOrder(
            repository={"id": "builtin:p", "name": "p", "url": "u"}, ref="", commit=COMMIT,
            manifest_path="m", manifest_blob=COMMIT, project="p", nodes=len(made.nodes),
            processes_per_node=1, results_branch="r", lease_ttl=90,
        )  # fmt: skip
        runs = {placed.rank: run for placed in made.nodes}
        assert self.store.place(facts, made, runs, FencingToken(incarnation=1, number=self.fence), self.now)
        if self.states[-1] == "planning":
            self.states.append("dispatching")
        return True

    def fact(self, kind: str, rank: int) -> None:  # noqa: C901
        facts, _ = self.store.facts(JOB)
        self.now += {"tick": 1, "later": 100, "lost": 800}.get(kind, 0)
        if kind == "stop" and not facts.ending and facts.state not in OUTCOMES:
            self.store.request_stop(JOB, "stopped", "", self.now)
        if kind == "result" and facts.ending:
            self.store.note_result(JOB, Result(facts.ending, COMMIT), [])
        if kind == "false-result" and facts.ending:
            self.store.note_result(JOB, Result("failed", COMMIT), [])
        if facts.attempt is None:
            return
        member = facts.attempt.nodes[rank % len(facts.attempt.nodes)]
        key = NodeKey(job=JOB, attempt=facts.attempt.number, rank=member.rank)
        if kind == "heartbeat":
            self.beat(member.executor, key)
        elif kind == "revoke" and rank == 3:
            self.store.revoke(member.executor, self.now)
        elif kind in {"accept", "refuse"}:
            for order in self.store.open_orders(member.executor):
                if kind == "accept":
                    self.store.accept_orders(member.executor, [order.id], self.now, 90)
                elif rank == 2:
                    self.store.refuse_order(member.executor, order.id, "no", self.now)
        elif kind in RECORDS and facts.attempt.live:
            self.say(member.executor, key, *RECORDS[kind])

    def say(self, executor: str, key: NodeKey, kind: Any, data: dict[str, Any]) -> None:
        row = self.store.check_node(executor, key)
        with self.store.read() as c:
            number = c.exec_driver_sql("SELECT max(token_number) FROM attempts").scalar()
        record = Record(n=row["acknowledged"] + 1, time=self.now, kind=kind, data=data)
        token = FencingToken(incarnation=1, number=number)
        batch = JournalBatch(token=token, after=row["acknowledged"], records=[record])
        self.store.append_journal(executor, key, batch, self.now, 90)


RECORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ready": ("ready", {"addresses": ["a", "b"], "port": 4000, "nonce": "n"}),
    "reached": ("reached", {"reached": {"b": "c"}}),
    "started": ("started", {"argv": [], "processes": 1, "pid": 1}),
    "ended": ("ended", {"exit_code": 0}),
    "failed": ("ended", {"exit_code": 1, "code": "script_failed", "reason": "x"}),
    "published": ("published", {"branch": "r", "path": "p", "commit": COMMIT, "outcome": "completed"}),
    "finished": ("finished", {"state": "failed", "code": "internal"}),
    "blocked": ("finished", {"state": "failed", "code": "publish_blocked", "reason": "no"}),
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(1, 2), st.lists(st.tuples(FACTS, st.integers(0, 3)), max_size=40))
def test_random_facts_lead_along_legal_transitions_to_one_ending(
    nodes: int, facts: list[tuple[str, int]]
) -> None:
    with TemporaryDirectory() as folder:
        store = Store.open("", prepared(Path(folder)))
        try:
            world = World(store, nodes)
            world.settle()
            for kind, rank in facts:
                world.fact(kind, rank)
                world.settle()
            drive_to_the_end(world)
        finally:
            store.close()
    assert len(world.endings) == 1 or world.endings == ["completed", "failed"]
    assert [state for state in world.states if state in OUTCOMES] == world.states[-1:]


def drive_to_the_end(world: World) -> None:
    """Whatever has happened: once somebody stops the job, it ends."""
    for _ in range(8):
        world.fact("stop", 0)
        world.fact("lost", 0)
        world.settle()
        world.fact("result", 0)
        world.settle()
