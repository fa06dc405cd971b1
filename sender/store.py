"""The sender's working memory: every method is one transaction, and nobody else writes these tables.

The parts are by subject (`store_audit`, `store_documents`, `store_events`, `store_executors`, `store_jobs`,
`store_journal`, `store_secrets`); this module joins them and brings the schema up to date.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from trainforge.config.errors import SettingsError
from trainforge.config.failpoints import failpoint
from trainforge.sender.database import database_url
from trainforge.sender.migrate import back_up, migrate
from trainforge.sender.store_audit import AuditStore
from trainforge.sender.store_commands import CommandStore
from trainforge.sender.store_deadlines import DeadlineStore
from trainforge.sender.store_documents import DocumentStore
from trainforge.sender.store_executors import ExecutorStore
from trainforge.sender.store_github import GitHubStore
from trainforge.sender.store_listing import ListingStore
from trainforge.sender.store_notices import NoticeStore
from trainforge.sender.store_queue import QueueStore
from trainforge.sender.store_reports import ReportStore
from trainforge.sender.store_results import ResultStore
from trainforge.sender.store_schedules import ScheduleStore
from trainforge.sender.store_secrets import SecretStore

BACKUPS = "backups"  # below the data directory


class Store(
    AuditStore,
    DocumentStore,
    ScheduleStore,
    ExecutorStore,
    SecretStore,
    ResultStore,
    QueueStore,
    DeadlineStore,
    ListingStore,
    NoticeStore,
    GitHubStore,
    ReportStore,
    CommandStore,
):
    @classmethod
    def open(cls, url: str, data_dir: Path) -> Store:
        """Connect, check and migrate. `url` may be empty: SQLite in the data directory.

        Raises:
            SettingsError: the database cannot be used.
        """
        store = cls(database_url(url, data_dir))
        try:
            if store.is_sqlite:
                data_dir.mkdir(parents=True, exist_ok=True)
                store.check(data_dir)
                back_up(store.engine, data_dir / BACKUPS)
            migrate(store.engine)
            store.audit_heads = data_dir / "audit.heads"
        except SettingsError:
            store.close()
            raise
        except sa.exc.DatabaseError as error:
            store.close()
            hint = restoring(data_dir) if store.is_sqlite else "check database_url"
            if "locked" in str(error.orig):
                hint = "another program has it open: end that one"
            raise SettingsError(f"the database cannot be used: {error.orig}", hint=hint) from error
        return store

    def check(self, data_dir: Path) -> None:
        """Refuse a damaged SQLite file before anything is built upon it."""
        failpoint("41.sender.check")
        with self.read() as c:
            verdict = c.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if verdict != "ok":
            raise SettingsError(f"the database is damaged: {verdict}", hint=restoring(data_dir))


def restoring(data_dir: Path) -> str:
    """What somebody does whose database is damaged."""
    kept = sorted((data_dir / BACKUPS).glob("*.db"), key=lambda path: path.stat().st_mtime)
    newest = f"a copy, such as {kept[-1]}," if kept else "a backup of yours"
    return (
        f"move trainforge.db, trainforge.db-wal and trainforge.db-shm out of {data_dir} and put {newest} "
        "there as trainforge.db; jobs that have ended since are recognised from the results branches"
    )
