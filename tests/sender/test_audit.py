"""The audit log on real databases: whoever changes what was noted is found out, and told the row."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.core import make_sender
from support.databases import KINDS, database_url
from trainforge.sender.fence import Fence
from trainforge.sender.schema_trust import audit
from trainforge.sender.serve import note_settings
from trainforge.sender.store import Store
from trainforge.sender.store_audit import record


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    for url in database_url(request.param):
        store = Store.open(url, tmp_path)
        for n in range(1, 8):
            store.audit(
                "person:ann", "job.stopped", f"job-{n}", {"reason": "too slow", "n": n}, now=1e9 + n / 3
            )
        yield store
        store.close()


def change(store: Store, *statements: sa.Executable) -> None:
    with store.write() as c:
        for statement in statements:
            c.execute(statement)


def rechain(store: Store) -> None:
    """What somebody would do who knows the program and can write the database alone."""
    with store.write() as c:
        rows = c.execute(sa.select(audit).order_by(audit.c.n)).mappings().all()
        c.execute(sa.delete(audit))
        for row in rows:
            said = {name: row[name] for name in ("actor", "action", "subject", "detail")}
            record(c, **said, now=row["time"])
        c.info["audited"].clear()


def test_a_log_that_nobody_touched_holds(store: Store) -> None:
    verdict = store.verify_audit()
    assert (verdict.rows, verdict.problems) == (7, ())
    assert store.verify_audit(verdict.head).problems == ()
    newest = store.audit_rows(limit=2)
    assert [row["subject"] for row in newest] == ["job-7", "job-6"]
    assert [row["n"] for row in store.audit_rows(before=3)] == [2, 1]


def edit(n: int, **values: object) -> Callable[[Store], None]:
    return lambda store: change(store, sa.update(audit).where(audit.c.n == n).values(values))


def delete(*ns: int) -> Callable[[Store], None]:
    return lambda store: change(store, sa.delete(audit).where(audit.c.n.in_(ns)))


def edit_and_rechain(store: Store) -> None:
    edit(4, actor="person:bob")(store)
    rechain(store)


TAMPERED: dict[str, tuple[Callable[[Store], None], str]] = {
    "actor": (edit(4, actor="person:bob"), "row 4 was changed"),
    "time": (edit(2, time=5.0), "row 2 was changed"),
    "detail": (edit(7, detail={}), "row 7 was changed"),
    "hash": (edit(3, hash="0" * 64), "row 3 was changed"),
    "middle": (delete(3, 4), "rows 3 to 4 are missing"),
    "first": (delete(1), "row 1 is missing"),
    "tail": (delete(6, 7), "rows 6 to 7 are missing"),
    "all": (delete(*range(8)), "rows 1 to 7 are missing"),
    "rechained": (edit_and_rechain, "row 4 differs from the hash noted"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_changed_log_is_found_out_and_the_row_named(store: Store, name: str) -> None:
    tamper, words = TAMPERED[name]
    head = store.verify_audit().head
    tamper(store)
    assert any(words in problem for problem in store.verify_audit().problems)
    assert store.audit_heads
    store.audit_heads.unlink()  # with the file gone too, a head that was kept elsewhere still tells
    assert store.verify_audit(head).problems


def test_a_tail_that_was_written_over_is_found_out(store: Store) -> None:
    change(store, sa.delete(audit).where(audit.c.n > 5))
    store.audit("person:bob", "login", now=2e9)
    assert "row 6 differs from the hash noted beside the database: it was written anew" in (
        store.verify_audit().problems
    )


def test_a_row_and_what_it_tells_about_are_kept_together(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.write() as c:
        record(c, "person:ann", "token.created", now=1.0)
        raise ZeroDivisionError
    assert store.verify_audit().rows == 7
    assert store.verify_audit().problems == ()


def test_many_write_at_once(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.audit("executor:x", "executor.joined", str(n), now=2.0), range(40)))
    assert store.verify_audit().rows == 47
    assert store.verify_audit().problems == ()


def test_a_line_that_a_crash_cut_off_says_nothing(store: Store) -> None:
    assert store.audit_heads
    text = store.audit_heads.read_text()
    store.audit_heads.write_text(text[:-20])
    assert store.verify_audit().problems == ()
    assert store.audit_heads.stat().st_mode & 0o777 == 0o600


def test_a_restored_backup_is_noted_and_not_taken_for_tampering(tmp_path: Path) -> None:
    store = Store.open("", tmp_path)
    fence = Fence(store, tmp_path / "fence.json")
    store.audit("person:ann", "login", now=1.0)
    store.close()
    shutil.copy(tmp_path / "trainforge.db", tmp_path / "backup.db")
    store = Store.open("", tmp_path)
    Fence(store, tmp_path / "fence.json").next()
    store.audit("person:ann", "executor.removed", "x", now=2.0)
    store.close()
    for file in tmp_path.glob("trainforge.db*"):
        file.unlink()
    shutil.copy(tmp_path / "backup.db", tmp_path / "trainforge.db")
    store = Store.open("", tmp_path)
    assert "row 2 is missing" in store.verify_audit().problems
    assert Fence(store, tmp_path / "fence.json").incarnation == fence.incarnation + 1
    assert store.verify_audit().problems == ()
    assert store.audit_rows()[0]["action"] == "database.restored"
    assert (tmp_path / "audit.heads.before-2").exists()
    store.close()


def test_settings_that_were_changed_between_two_starts_are_noted(tmp_path: Path) -> None:
    for settings in ({}, {}, {"triggers_per_hour": 7, "git_token": "very-secret-token"}):
        sender = make_sender(tmp_path, **settings)
        note_settings(sender)
        rows = sender.store.audit_rows()
        sender.store.close()
    (row,) = rows
    assert (row["actor"], row["action"]) == ("sender", "settings.changed")
    assert row["detail"] == {"triggers_per_hour": 7, "git_token": "********"}
