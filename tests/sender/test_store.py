"""The store on real databases: schema, fencing, accounting, and the same behaviour on PostgreSQL."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from support.core import MACHINE
from support.databases import KINDS, database_url
from trainforge.config.errors import Conflict, NotTrusted, SettingsError
from trainforge.config.messages import Heartbeat, JoinRequest, Load
from trainforge.sender import migrate
from trainforge.sender.database import make_engine
from trainforge.sender.fence import Fence
from trainforge.sender.migrate import back_up
from trainforge.sender.schema import jobs
from trainforge.sender.schema_trust import metadata
from trainforge.sender.store import Store
from trainforge.sender.store_commands import MOST_OPEN, Asked
from trainforge.sender.store_events import DELIVERY_LIFE_S, NewEvent, NewJob, Noted, Repo
from trainforge.sender.store_reports import Pull
from trainforge.sender.store_visits import Admitted, Visit

COMMIT = "a" * 40


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from database_url(request.param)


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[Store]:
    store = Store.open(url, tmp_path)
    yield store
    store.close()


def add_job(store: Store, name: str = "a", branch: str = "main", old: str = "") -> list[str] | None:
    job = NewJob(name * 26, "builtin:p", COMMIT, "trainforge.yaml", COMMIT, "push")
    event = NewEvent("push", "builtin:p", "p", "job", ref=branch, old=old, new=COMMIT)
    return store.record_push(event, [job], 1.0)


@pytest.fixture
def project(store: Store) -> Repo:
    return store.add_repository(Repo("builtin:p", "p", "", "builtin"), 1.0)


def join(store: Store, name: str = "alpha") -> None:
    store.add_join_token("t", 1.0, 100.0)
    request = JoinRequest(token="t", name=name, public_key={}, capabilities=MACHINE)
    store.join("t", f"x-{name}", request, 2.0)


# --- schema -----------------------------------------------------------------------------------------------


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(store: Store) -> None:
    with store.engine.connect() as c:
        made = {"include_object": lambda _o, name, *_: store.is_sqlite or name != "ix_jobs_listing"}
        assert compare_metadata(MigrationContext.configure(c, opts=made), metadata) == []
        assert migrate.current(c) == migrate.HEAD


def test_the_newest_migration_is_the_one_named() -> None:
    steps = sorted(path.name[:4] for path in (migrate.FOLDER / "versions").glob("[0-9]*.py"))
    assert steps[-1] == migrate.HEAD


def test_opening_again_changes_nothing(store: Store, url: str, tmp_path: Path, project: Repo) -> None:
    again = Store.open(url, tmp_path)
    assert again.repositories() == [project]
    again.close()


def test_a_database_of_a_newer_program_is_refused(store: Store, url: str, tmp_path: Path) -> None:
    with store.write() as c:
        c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SettingsError, match="schema 9999"):
        Store.open(url, tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trainforge.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(SettingsError, match="cannot be used"):
        Store.open("", tmp_path)


def test_a_damaged_page_is_refused_with_what_to_do(tmp_path: Path) -> None:
    store = Store.open("", tmp_path)
    for number in range(200):
        store.set_meta(f"key{number}", "x" * 400)
    store.close()
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / "monday.db").touch()
    with (tmp_path / "trainforge.db").open("r+b") as file:
        file.seek(-8192, 2)
        file.write(b"\xff" * 8192)
    with pytest.raises(SettingsError) as told:
        Store.open("", tmp_path)
    assert "monday.db" in told.value.hint
    assert "trainforge.db-wal" in told.value.hint


def test_a_database_is_copied_before_its_schema_changes(tmp_path: Path) -> None:
    Store.open("", tmp_path).close()
    assert not (tmp_path / "backups").exists()
    engine = make_engine(f"sqlite:///{tmp_path / 'trainforge.db'}")
    with engine.begin() as c:
        c.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    copy = back_up(engine, tmp_path / "backups")
    assert copy is not None
    assert back_up(engine, tmp_path / "backups") == copy
    engine.dispose()
    with contextlib.closing(sqlite3.connect(copy)) as kept:
        assert kept.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        assert kept.execute("PRAGMA quick_check").fetchall() == [("ok",)]


def test_unknown_databases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not supported"):
        Store.open("mysql://x/y", tmp_path)


def test_sqlite_is_durable(tmp_path: Path) -> None:
    store = Store.open("", tmp_path)
    with store.read() as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert c.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    store.close()


# --- events -----------------------------------------------------------------------------------------------


def test_a_head_is_handled_once(store: Store, project: Repo) -> None:
    assert add_job(store) == ["a" * 26]
    assert add_job(store) is None
    assert store.heads("builtin:p") == {"main": COMMIT}
    assert list(store.versions()) == ["a" * 26]


def test_many_hints_at_once_handle_a_head_once(store: Store, project: Repo) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: add_job(store), range(16)))
    assert [jobs for jobs in made if jobs] == [["a" * 26]]


def test_a_delivery_is_new_once(store: Store) -> None:
    assert [store.first_delivery("github", "d1", 1.0) for _ in range(2)] == [True, False]


def test_a_push_is_noted_with_its_delivery_until_it_has_led_to_an_event(store: Store, project: Repo) -> None:
    first, second = (Noted("builtin:p", "main", "", commit * 40) for commit in "ab")
    assert store.first_delivery("github", "d2", 2.0, second)
    assert store.first_delivery("github", "d1", 1.0, first)
    assert not store.first_delivery("github", "d1", 3.0, Noted("builtin:p", "main", "", "c" * 40))
    assert store.noted_pushes("builtin:p") == [first, second]
    assert store.noted_pushes("builtin:other") == []
    add_job(store)  # of the first one's commit
    assert store.noted_pushes("builtin:p") == [second]
    assert store.first_delivery("github", "d3", 4.0, first)
    assert store.noted_pushes("builtin:p") == [second]


def test_a_noted_push_leads_to_one_event(store: Store, project: Repo) -> None:
    store.first_delivery("github", "d1", 1.0, Noted("builtin:p", "main", "", COMMIT))
    event = NewEvent("push", "builtin:p", "p", "ignored", ref="main", new=COMMIT)
    assert [store.record_noted(event, [], 2.0) for _ in range(2)] == [[], None]


def test_a_delivery_is_forgotten_when_nobody_can_repeat_it(store: Store) -> None:
    assert store.first_delivery("github", "d1", 1.0)
    assert store.first_delivery("github", "d2", 2.0 + DELIVERY_LIFE_S)
    with store.read() as c:
        assert c.exec_driver_sql("SELECT delivery FROM deliveries").scalars().all() == ["d2"]


def test_a_repositorys_name_is_its_own(store: Store, project: Repo) -> None:
    assert store.add_repository(Repo("builtin:p", "p", "", "builtin"), 2.0) == project
    with pytest.raises(Conflict):
        store.add_repository(Repo("git:other", "p", "https://x/y", "remote"), 2.0)


def test_a_stop_is_noted_once(store: Store, project: Repo) -> None:
    (job,) = add_job(store) or [""]
    store.request_stop(job, "stopped", "first", 2.0)
    store.request_stop(job, "stopped", "second", 3.0)
    facts, row = store.facts(job)
    assert facts.stop is not None
    assert facts.stop.reason == "first"
    assert row["version"] == 1


def test_steps_on_outdated_facts_are_not_applied(store: Store, project: Repo) -> None:
    (job,) = add_job(store) or [""]
    facts, _ = store.facts(job)
    store.request_stop(job, "stopped", "", 2.0)
    assert store.apply(facts, [], 3.0) is None


# --- executors ------------------------------------------------------------------------------------------


def test_a_join_token_is_spent_with_the_joining(store: Store) -> None:
    join(store)
    request = JoinRequest(token="t", name="beta", public_key={}, capabilities=MACHINE)
    with pytest.raises(NotTrusted):
        store.join("t", "x-beta", request, 3.0)
    store.add_join_token("t2", 1.0, 100.0)
    with pytest.raises(Conflict):
        store.join("t2", "x-beta", request.model_copy(update={"name": "alpha"}), 3.0)
    store.join("t2", "x-beta", request, 3.0)


def test_a_proof_is_used_once_and_forgotten_when_expired(store: Store) -> None:
    first, other, later = Visit("x", "j", 10.0), Visit("y", "j", 10.0), Visit("x", "other", 20.0)
    assert store.admit([first, first, other], 1.0, 90) == [Admitted(), None, Admitted()]
    assert store.admit([first], 2.0, 90) == [None]
    assert store.admit([later], 11.0, 90) == [Admitted()]
    with store.read() as c:
        assert c.exec_driver_sql("SELECT count(*) FROM proofs").scalar() == 1


def test_an_executor_is_online_by_its_heartbeats(store: Store) -> None:
    join(store)
    assert [machine.online for machine in store.machines(3.0, 30)] == [False]
    beat = Heartbeat(capabilities=MACHINE, load=Load())

    def changed(beat: Heartbeat, now: float) -> bool:
        (admitted,) = store.admit([Visit("x-alpha", str(now), now + 300, beat)], now, 90)
        assert admitted is not None
        assert not admitted.unknown
        return admitted.changed

    assert changed(beat, 10.0)
    assert not changed(beat, 20.0)
    assert [machine.online for machine in store.machines(50.0, 30)] == [True]
    assert [machine.online for machine in store.machines(51.0, 30)] == [False]
    last = beat.model_copy(update={"draining": True})
    assert changed(last, 60.0)
    assert [machine.online for machine in store.machines(60.0, 30)] == [False]
    assert changed(beat, 61.0)
    assert [machine.online for machine in store.machines(61.0, 30)] == [True]


# --- fencing ----------------------------------------------------------------------------------------------


def test_tokens_only_rise_across_restarts(store: Store, tmp_path: Path) -> None:
    fence = Fence(store, tmp_path / "fence.json")
    tokens = [fence.next(), fence.next()]
    again = Fence(store, tmp_path / "fence.json")
    tokens.append(again.next())
    assert [(token.incarnation, token.number) for token in tokens] == [(1, 1), (1, 2), (1, 3)]


def test_a_restored_backup_gets_a_higher_incarnation(tmp_path: Path) -> None:
    store = Store.open("", tmp_path)
    fence = Fence(store, tmp_path / "fence.json")
    fence.next()
    backup = tmp_path / "backup.db"
    with sqlite3.connect(tmp_path / "trainforge.db") as source, sqlite3.connect(backup) as target:
        source.backup(target)
    source.close()
    target.close()
    last = fence.next()
    store.close()
    for file in tmp_path.glob("trainforge.db*"):
        file.unlink()
    shutil.copy(backup, tmp_path / "trainforge.db")
    store = Store.open("", tmp_path)
    token = Fence(store, tmp_path / "fence.json").next()
    store.close()
    assert (token.incarnation, token.number) > (last.incarnation, last.number)
    assert token.incarnation == 2


def test_without_the_fence_file_the_clock_gives_an_incarnation_that_was_not_used(
    store: Store, tmp_path: Path
) -> None:
    Fence(store, tmp_path / "fence.json").next()
    (tmp_path / "fence.json").unlink()
    assert Fence(store, tmp_path / "fence.json", lambda: 4000.0).incarnation == 1001


# --- what GitHub is told ----------------------------------------------------------------------------------


def test_what_github_is_to_be_told_is_remembered_until_it_was(store: Store, project: Repo) -> None:
    (job,) = add_job(store) or []
    store.begin_reports(10.0)
    ((row, told),) = store.reportable({project.id: 0.0})
    assert (row["id"], told) == (job, None)
    assert store.reportable({project.id: 50.0}) == [], "it is older than the connection"
    store.note_reports([job], 10.0)
    store.begin_report(job, 11.0)
    store.begin_report(job, 12.0)
    store.reported(job, "running:1", 7, due=20.0, done=False)
    ((row, told),) = store.reportable({project.id: 50.0})
    assert told is not None
    assert (told["begun"], told["told"], told["remote_id"]) == (11.0, "running:1", 7)
    store.reported(job, "completed:2", 7, due=0.0, done=True)
    assert store.reportable({project.id: 0.0}) == []
    assert [row["id"] for row in store.jobs_at(project.id, COMMIT)] == [job]
    assert not store.newer_job(store.job(job))
    assert store.durations(project.id, "trainforge.yaml") == []


def test_a_job_is_compared_with_its_pull_requests_base(store: Store, project: Repo) -> None:
    (job,) = add_job(store) or []
    pull = Pull(project.id, 3, "b" * 40, "change", "dev", COMMIT, fork=False, open=True)
    store.hint_pull(pull, 1.0)
    store.put_pull(pull, 2.0)
    assert (store.base_ref(project.id, "b" * 40), store.base_ref(project.id, COMMIT)) == (
        "refs/heads/dev",
        "",
    )
    store.change_pull(project.id, 3, stale=False)
    assert [row["number"] for row in store.live_pulls(project.id)] == [3]
    store.put_pull(replace(pull, open=False), 3.0)
    assert (store.live_pulls(project.id), store.base_ref(project.id, "b" * 40)) == ([], "refs/heads/dev")
    store.put_pull(replace(pull, number=4, base_ref="main"), 3.0)
    assert store.base_ref(project.id, "b" * 40) == "refs/heads/main", "the open one"
    row = store.job(job)
    with store.write() as c:
        c.execute(sa.update(jobs).values(state="completed", metrics={"loss": 1.0}))
    assert store.base_result(row, row["ref"]) is None, "not with the same commit"
    found = store.base_result({**row, "commit": "b" * 40}, row["ref"])  # type: ignore[arg-type]
    assert found is not None
    assert (found.job, found.metrics) == (job, {"loss": 1.0})


def test_a_command_counts_once_and_only_so_many_wait(store: Store, project: Repo) -> None:
    asked = Asked(project.id, "comment:1", "ada", "/trainforge run", comment_id=1, number=3)
    assert store.add_command(asked, 1.0)
    assert not store.add_command(asked, 2.0)
    assert store.open_commands(project.id, 2.0) == [asked]
    store.acted_on(asked, "rocket", "", 3.0)
    (open_,) = store.open_commands(project.id, 3.0)
    assert (open_.acted, open_.reaction) == (True, "rocket")
    store.answered(asked, 4.0)
    assert store.open_commands(project.id, 5.0) == []
    made = [store.add_command(replace(asked, origin=f"comment:{n}"), 5.0) for n in range(2, 70)]
    assert made.count(True) == MOST_OPEN
