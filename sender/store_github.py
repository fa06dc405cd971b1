"""Which repositories are connected to GitHub, by which App or token, and what came from there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from trainforge.config.errors import NotFound
from trainforge.sender import schema as s
from trainforge.sender import schema_github as g
from trainforge.sender.database import Database
from trainforge.sender.store_audit import record


@dataclass(frozen=True)
class Connection:
    """`app_id` None: by a token; `hook_id` None: the App's own hook tells of it."""

    repository_id: str
    full_name: str
    number: int
    api_url: str
    app_id: int | None
    hook_id: int | None
    by: str
    connected: float
    delivered: float | None = None
    pinged: float | None = None
    swept: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class App:
    """A GitHub App of this sender's. `url` is its page, `slug` its name in addresses."""

    id: int
    api_url: str
    slug: str
    url: str
    by: str
    created: float
    pinged: float | None = None
    swept: float | None = None


class GitHubStore(Database):
    # --- connections ------------------------------------------------------------------------------------

    def connect(self, connection: Connection, actor: str) -> None:
        """Put a connection in the place of what there was."""
        t = g.github_connections
        row = asdict(connection)
        key = {"repository_id": row.pop("repository_id")}
        how = {"as": connection.full_name, "by": "app" if connection.app_id else "token"}
        with self.write() as c:
            put = self.insert(t).values(**key, **row)
            c.execute(put.on_conflict_do_update(index_elements=list(key), set_=row))
            record(c, actor, "github.connected", connection.repository_id, how, now=connection.connected)

    def disconnect(self, repository_id: str, actor: str, now: float) -> None:
        """Raises NotFound."""
        t = g.github_connections
        with self.write() as c:
            gone = c.execute(sa.delete(t).where(t.c.repository_id == repository_id)).rowcount
            if not gone:
                raise NotFound(f"{repository_id} is not connected to GitHub")
            record(c, actor, "github.disconnected", repository_id, {}, now=now)

    def connections(self) -> list[Connection]:
        t = g.github_connections
        with self.read() as c:
            return [Connection(**row) for row in c.execute(sa.select(t).order_by(t.c.full_name)).mappings()]

    def connection(self, repository_id: str) -> Connection | None:
        return self._connection(g.github_connections.c.repository_id == repository_id)

    def connection_of_hook(self, hook_id: int) -> Connection | None:
        return self._connection(g.github_connections.c.hook_id == hook_id)

    def connection_of_number(self, number: int) -> Connection | None:
        return self._connection(g.github_connections.c.number == number)

    def _connection(self, where: sa.ColumnElement[bool]) -> Connection | None:
        with self.read() as c:
            row = c.execute(sa.select(g.github_connections).where(where).limit(1)).mappings().first()
        return None if row is None else Connection(**row)

    def note_connection(self, repository_id: str, **columns: Any) -> None:
        """What is seen of it: `delivered`, `pinged`, `swept`, `problem`."""
        t = g.github_connections
        with self.write() as c:
            c.execute(sa.update(t).where(t.c.repository_id == repository_id).values(columns))

    def rename_connection(self, repository_id: str, full_name: str, url: str, now: float) -> None:
        """The repository goes by another name at GitHub; here it keeps its own id and name."""
        t, r = g.github_connections, s.repositories
        with self.write() as c:
            c.execute(sa.update(t).where(t.c.repository_id == repository_id).values(full_name=full_name))
            c.execute(sa.update(r).where(r.c.id == repository_id).values(url=url))
            record(c, "github", "github.renamed", repository_id, {"as": full_name}, now=now)

    # --- Apps -------------------------------------------------------------------------------------------

    def add_app(self, app: App, actor: str) -> None:
        t = g.github_apps
        row = asdict(app)
        with self.write() as c:
            put = self.insert(t).values(**row)
            c.execute(put.on_conflict_do_update(index_elements=["id"], set_=row))
            record(c, actor, "github.app_added", str(app.id), {"slug": app.slug}, now=app.created)

    def apps(self) -> list[App]:
        t = g.github_apps
        with self.read() as c:
            return [App(**row) for row in c.execute(sa.select(t).order_by(t.c.created)).mappings()]

    def app(self, number: int) -> App | None:
        return next((app for app in self.apps() if app.id == number), None)

    def note_app(self, number: int, **columns: Any) -> None:
        t = g.github_apps
        with self.write() as c:
            c.execute(sa.update(t).where(t.c.id == number).values(columns))

    # --- deliveries -------------------------------------------------------------------------------------

    def knows_delivery(self, source: str, delivery: str) -> bool:
        t = s.deliveries
        query = sa.select(t.c.delivery).where(t.c.source == source, t.c.delivery == delivery)
        with self.read() as c:
            return c.execute(query).first() is not None
