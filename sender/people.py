"""The credentials of people, stored as digests alone: access tokens, one-time login links, sessions."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import sqlalchemy as sa

from trainforge.config.trust import digest_secret
from trainforge.sender.database import Database
from trainforge.sender.schema import access_tokens, login_links, sessions

TOKEN_PREFIX = "tfp_"  # noqa: S105 - a prefix that tells what leaked, not a secret
LINK_LIFE_S = 15 * 60
SESSION_LIFE_S = 14 * 24 * 3600
MAX_SECRET = 128


@dataclass(frozen=True)
class Person:
    """Who asks. `cookie` tells that a browser sent the proof by itself, wherever the request came from."""

    name: str
    cookie: bool = False


class People:
    """Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def new_token(self, name: str, now: float, life_s: float | None = None) -> str:
        """A new access token: shown once, never stored."""
        token = TOKEN_PREFIX + secrets.token_hex(32)
        expires = now + life_s if life_s is not None else None
        row = {"name": name, "digest": digest_secret(token), "created": now, "expires": expires}
        with self._database.write() as connection:
            connection.execute(access_tokens.insert().values(row))
        return token

    def has_tokens(self) -> bool:
        query = sa.select(access_tokens.c.id).where(access_tokens.c.revoked.is_(None)).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def by_token(self, token: str, now: float) -> Person | None:
        if not token.startswith(TOKEN_PREFIX) or len(token) > MAX_SECRET:
            return None
        columns = access_tokens.c
        query = sa.select(columns.name).where(
            columns.digest == digest_secret(token),
            columns.revoked.is_(None),
            sa.or_(columns.expires.is_(None), columns.expires > now),
        )
        with self._database.read() as connection:
            name = connection.execute(query).scalar()
        return Person(name) if name is not None else None

    def revoke_token(self, token: str, now: float) -> bool:
        change = (
            access_tokens.update()
            .where(access_tokens.c.digest == digest_secret(token), access_tokens.c.revoked.is_(None))
            .values(revoked=now)
        )
        with self._database.write() as connection:
            return connection.execute(change).rowcount == 1

    def new_link(self, now: float) -> str:
        """The secret of a login link that works once, within a quarter of an hour."""
        secret = secrets.token_urlsafe(32)
        row = {"digest": digest_secret(secret), "created": now, "expires": now + LINK_LIFE_S}
        with self._database.write() as connection:
            connection.execute(login_links.delete().where(login_links.c.expires < now - LINK_LIFE_S))
            connection.execute(login_links.insert().values(row))
        return secret

    def use_link(self, secret: str, now: float) -> bool:
        """Whether this is the one time that the link works."""
        if not secret or len(secret) > MAX_SECRET:
            return False
        columns = login_links.c
        change = (
            login_links.update()
            .where(columns.digest == digest_secret(secret), columns.used.is_(None), columns.expires > now)
            .values(used=now)
        )
        with self._database.write() as connection:
            return connection.execute(change).rowcount == 1

    def new_session(self, now: float) -> str:
        """The value of a browser's cookie."""
        secret = secrets.token_urlsafe(32)
        row = {"digest": digest_secret(secret), "created": now, "expires": now + SESSION_LIFE_S}
        with self._database.write() as connection:
            connection.execute(sessions.delete().where(sessions.c.expires < now))
            connection.execute(sessions.insert().values(row))
        return secret

    def by_session(self, secret: str, now: float) -> Person | None:
        if not secret or len(secret) > MAX_SECRET:
            return None
        query = sa.select(sessions.c.created).where(
            sessions.c.digest == digest_secret(secret), sessions.c.expires > now
        )
        with self._database.read() as connection:
            found = connection.execute(query).first()
        return Person("browser", cookie=True) if found is not None else None

    def end_session(self, secret: str) -> None:
        with self._database.write() as connection:
            connection.execute(sessions.delete().where(sessions.c.digest == digest_secret(secret)))
