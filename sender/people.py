"""The people of a sender: accounts with roles; their tokens, one-time links and sessions, as digests alone.

What somebody may do is read anew at every request, so a role that changes, an account that is removed or a
token that is revoked counts from that moment on. Every change is noted in the audit log with it.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from trainforge.config.errors import Conflict, Forbidden, MessageInvalid, NotFound
from trainforge.config.trust import digest_secret
from trainforge.config.views import ROLES, Role, TokenView, UserView
from trainforge.sender.database import Database
from trainforge.sender.schema import access_tokens, login_links, sessions
from trainforge.sender.schema_trust import users
from trainforge.sender.store_audit import SENDER, record

TOKEN_PREFIX = "tfp_"  # noqa: S105 - a prefix that tells what leaked, not a secret
FIRST_ADMIN = "admin"
LINK_LIFE_S = 15 * 60
INVITATION_LIFE_S = 24 * 3600
SESSION_LIFE_S = 14 * 24 * 3600
SESSION_IDLE_S = 3 * 24 * 3600
SEEN_EVERY_S = 60.0
MAX_SECRET = 128
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Scope:
    """The one commit of one repository that a workflow run may plan or, with `run`, have trained."""

    repository: str
    repository_id: str
    ref: str
    commit: str
    run: bool


@dataclass(frozen=True)
class Person:
    """Who asks. `cookie` tells that a browser sent the proof by itself, wherever the request came from;
    a change is then only made with `csrf`, which pages of ours alone can know."""

    name: str
    role: Role
    user: int | None = None
    cookie: bool = False
    csrf: str = ""
    scope: Scope | None = None

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)

    @property
    def actor(self) -> str:
        """As the audit log names them."""
        return self.name if self.scope else f"person:{self.name}"


@dataclass(frozen=True)
class Account:
    id: int
    name: str
    role: Role
    password: str | None


def account_name(name: str) -> str:
    """Names do not differ by case alone.

    Raises:
        MessageInvalid: not a name.
    """
    lower = name.strip().lower()
    if not _NAME.fullmatch(lower):
        raise MessageInvalid(
            f"{name[:80]!r} cannot be the name of an account",
            hint="up to 63 letters, digits, '.', '_' or '-', a letter or digit first",
        )
    return lower


class People:
    """Every method is one transaction. `by` is who asks for a change, for the audit log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- accounts -------------------------------------------------------------------------------------

    def ensure_admin(self, now: float) -> None:
        """An account that may do everything exists from the first start on; it gets in by link or token."""
        with self._database.write() as c:
            if c.execute(sa.select(users.c.id).where(users.c.role == "admin").limit(1)).first() is None:
                c.execute(users.insert().values(name=FIRST_ADMIN, role="admin", created=now))
                record(c, SENDER, "user.created", FIRST_ADMIN, {"role": "admin"}, now=now)

    def add_user(self, name: str, role: Role, now: float, *, by: str = SENDER) -> UserView:
        """Raises Conflict: there is one of that name. MessageInvalid: not a name."""
        name = account_name(name)
        with self._database.write() as c:
            if not self._database.add_new(c, users, {"name": name, "role": role, "created": now}):
                raise Conflict(f"there is an account {name} already", hint="`trainforge user list` shows all")
            record(c, by, "user.created", name, {"role": role}, now=now)
            return _user_view(_named(c, name))

    def users(self) -> list[UserView]:
        with self._database.read() as c:
            return [_user_view(row) for row in c.execute(sa.select(users).order_by(users.c.name))]

    def account(self, name: str) -> Account:
        """Raises NotFound."""
        with self._database.read() as c:
            row = _named(c, name)
        return Account(row.id, row.name, row.role, row.password)

    def first_admin(self) -> Account:
        """Raises NotFound: there is none yet."""
        with self._database.read() as c:
            row = _first_admin(c)
        return Account(row.id, row.name, row.role, row.password)

    def has_passwords(self) -> bool:
        """Whether people here use accounts, and not the printed link alone."""
        query = sa.select(users.c.id).where(users.c.password.is_not(None)).limit(1)
        with self._database.read() as c:
            return c.execute(query).first() is not None

    def set_role(self, name: str, role: Role, now: float, *, by: str = SENDER) -> UserView:
        """Raises NotFound. Conflict: it is the only admin."""
        with self._database.write() as c:
            row = _named(c, name)
            if role != "admin":
                _keep_an_admin(c, row)
            c.execute(users.update().where(users.c.id == row.id).values(role=role))
            record(c, by, "user.role", row.name, {"from": row.role, "to": role}, now=now)
            return _user_view(_named(c, row.name))

    def remove_user(self, name: str, now: float, *, by: str = SENDER) -> UserView:
        """Their sessions, links and tokens end with the account.

        Raises:
            NotFound. Conflict: it is the only admin.
        """
        with self._database.write() as c:
            row = _named(c, name)
            _keep_an_admin(c, row)
            tokens = access_tokens.c
            mine = sa.and_(tokens.user_id == row.id, tokens.revoked.is_(None))
            c.execute(access_tokens.update().where(mine).values(revoked=now))
            c.execute(users.delete().where(users.c.id == row.id))
            record(c, by, "user.removed", row.name, now=now)
            return _user_view(row)

    def set_password(self, name: str, hashed: str, now: float, *, by: str = SENDER) -> None:
        """Whoever is logged in with the old one is logged out, and links that were given out end."""
        with self._database.write() as c:
            row = _named(c, name)
            c.execute(users.update().where(users.c.id == row.id).values(password=hashed))
            c.execute(sessions.delete().where(sessions.c.user_id == row.id))
            c.execute(login_links.delete().where(login_links.c.user_id == row.id))
            record(c, by, "user.password", row.name, now=now)

    def renew_hash(self, user: int, old: str, new: str) -> None:
        """The same password, hashed as is usual today."""
        with self._database.write() as c:
            known = sa.and_(users.c.id == user, users.c.password == old)
            c.execute(users.update().where(known).values(password=new))

    # --- access tokens --------------------------------------------------------------------------------

    def new_token(
        self,
        name: str,
        now: float,
        life_s: float | None = None,
        *,
        role: Role = "admin",
        user: int | None = None,
        by: str = SENDER,
    ) -> str:
        """A new access token: shown once, never stored. Without a `user` it belongs to no account."""
        token = TOKEN_PREFIX + secrets.token_hex(32)
        expires = now + life_s if life_s is not None else None
        row = {"name": name, "digest": digest_secret(token), "created": now, "expires": expires}
        with self._database.write() as c:
            new = access_tokens.insert().values(row | {"role": role, "user_id": user})
            number = c.execute(new.returning(access_tokens.c.id)).scalar_one()
            record(c, by, "token.created", str(number), {"name": name, "role": role}, now=now)
        return token

    def has_tokens(self) -> bool:
        query = sa.select(access_tokens.c.id).where(access_tokens.c.revoked.is_(None)).limit(1)
        with self._database.read() as c:
            return c.execute(query).first() is not None

    def by_token(self, token: str, now: float) -> Person | None:
        """A token may do what it was made for, and never more than its owner may now."""
        if not token.startswith(TOKEN_PREFIX) or len(token) > MAX_SECRET:
            return None
        t = access_tokens.c
        query = (
            sa.select(t.name, t.role, t.user_id, users.c.name.label("owner"), users.c.role.label("most"))
            .join_from(access_tokens, users, users.c.id == t.user_id, isouter=True)
            .where(
                t.digest == digest_secret(token),
                t.revoked.is_(None),
                sa.or_(t.expires.is_(None), t.expires > now),
            )
        )
        with self._database.read() as c:
            row = c.execute(query).first()
        if row is None or (row.user_id is not None and row.owner is None):
            return None
        if row.user_id is None:
            return Person(row.name, row.role)
        return Person(row.owner, min(row.role, row.most, key=ROLES.index), row.user_id)

    def tokens(self, user: int | None = None) -> list[TokenView]:
        """Those in force or expired, of one account or of all; the secrets are not known here."""
        t = access_tokens.c
        query = (
            sa.select(access_tokens, users.c.name.label("owner"))
            .join_from(access_tokens, users, users.c.id == t.user_id, isouter=True)
            .where(t.revoked.is_(None))
            .order_by(t.id)
        )
        with self._database.read() as c:
            rows = c.execute(query if user is None else query.where(t.user_id == user)).all()
        return [
            TokenView(
                id=row.id, name=row.name, role=row.role, user=row.owner or "",
                created=row.created, expires=row.expires,
            )
            for row in rows
        ]  # fmt: skip

    def revoke(self, number: int, now: float, *, owner: int | None, by: str) -> None:
        """By its number; of `owner` alone, unless that is None.

        Raises:
            NotFound: no such token in force.
        """
        t = access_tokens.c
        change = access_tokens.update().where(t.id == number, t.revoked.is_(None)).values(revoked=now)
        with self._database.write() as c:
            if c.execute(change if owner is None else change.where(t.user_id == owner)).rowcount != 1:
                raise NotFound(f"there is no token {number}", hint="`trainforge token list` shows them")
            record(c, by, "token.revoked", str(number), now=now)

    # --- one-time links -------------------------------------------------------------------------------

    def new_link(self, now: float, name: str = "", life_s: float = LINK_LIFE_S, *, by: str = SENDER) -> str:
        """The secret of a link that logs somebody in once, and lets them set a password.

        Without a name it is for the first admin. Raises NotFound.
        """
        secret = secrets.token_urlsafe(32)
        with self._database.write() as c:
            row = _named(c, name) if name else _first_admin(c)
            c.execute(login_links.delete().where(login_links.c.expires < now))
            link = {"digest": digest_secret(secret), "user_id": row.id, "created": now}
            c.execute(login_links.insert().values(link | {"expires": now + life_s}))
            record(c, by, "link.created", row.name, now=now)
        return secret

    def use_link(self, secret: str, now: float) -> str | None:
        """Whom it logs in, if this is the one time that the link works."""
        if not secret or len(secret) > MAX_SECRET:
            return None
        t = login_links.c
        change = (
            login_links.update()
            .where(t.digest == digest_secret(secret), t.used.is_(None), t.expires > now)
            .values(used=now)
            .returning(t.user_id)
        )
        with self._database.write() as c:
            user = c.execute(change).scalar()
            name = c.execute(sa.select(users.c.name).where(users.c.id == user)).scalar()
        return str(name) if name is not None else None

    def link_name(self, secret: str, now: float) -> str:
        """Whom a link would log in; empty where it works no more. The link is as good as before."""
        t = login_links.c
        mine = (t.digest == digest_secret(secret[:MAX_SECRET]), t.used.is_(None), t.expires > now)
        query = sa.select(users.c.name).join_from(login_links, users, users.c.id == t.user_id).where(*mine)
        with self._database.read() as c:
            return str(c.execute(query).scalar() or "")

    # --- sessions -------------------------------------------------------------------------------------

    def new_session(self, name: str, now: float, *, how: str, replaces: str = "") -> str:
        """The value of a browser's cookie; never one that the browser came with, which ends.

        Raises:
            NotFound: the account was removed meanwhile.
        """
        secret = secrets.token_urlsafe(32)
        s = sessions.c
        with self._database.write() as c:
            row = _named(c, name)
            over = sa.or_(s.expires < now, s.seen < now - SESSION_IDLE_S, s.digest == digest_secret(replaces))
            c.execute(sessions.delete().where(over))
            made = {"digest": digest_secret(secret), "user_id": row.id, "created": now, "seen": now}
            c.execute(sessions.insert().values(made | {"expires": now + SESSION_LIFE_S}))
            c.execute(users.update().where(users.c.id == row.id).values(seen=now))
            record(c, f"person:{row.name}", "login", row.name, {"by": how}, now=now)
        return secret

    def by_session(self, secret: str, now: float) -> Person | None:
        if not secret or len(secret) > MAX_SECRET:
            return None
        s, digest = sessions.c, digest_secret(secret)
        query = (
            sa.select(users.c.id, users.c.name, users.c.role, s.seen)
            .join_from(sessions, users, users.c.id == s.user_id)
            .where(s.digest == digest, s.expires > now, s.seen > now - SESSION_IDLE_S)
        )
        with self._database.read() as c:
            row = c.execute(query).first()
        if row is None:
            return None
        if row.seen < now - SEEN_EVERY_S:
            # A full disk must not keep anybody from looking at the pages.
            with contextlib.suppress(sa.exc.OperationalError), self._database.write() as c:
                c.execute(sessions.update().where(s.digest == digest).values(seen=now))
        return Person(row.name, row.role, row.id, cookie=True, csrf=digest_secret(f"csrf:{secret}"))

    def end_session(self, secret: str) -> None:
        with self._database.write() as c:
            c.execute(sessions.delete().where(sessions.c.digest == digest_secret(secret)))

    def end_sessions(self, name: str, now: float, *, by: str) -> None:
        """Log out everywhere; links that were given out end too."""
        with self._database.write() as c:
            row = _named(c, name)
            c.execute(sessions.delete().where(sessions.c.user_id == row.id))
            c.execute(login_links.delete().where(login_links.c.user_id == row.id))
            record(c, by, "logout.everywhere", row.name, now=now)


def _named(c: Connection, name: str) -> Row[tuple[object, ...]]:
    row = c.execute(sa.select(users).where(users.c.name == name.strip().lower())).first()
    if row is None:
        raise NotFound(f"there is no account {name[:80]!r}", hint="`trainforge user list` shows them")
    return row


def _first_admin(c: Connection) -> Row[tuple[object, ...]]:
    query = sa.select(users).where(users.c.role == "admin").order_by(users.c.id).limit(1)
    row = c.execute(query).first()
    if row is None:
        raise NotFound("there is no account of an admin", hint="the sender makes one when it starts")
    return row


def _keep_an_admin(c: Connection, row: Row[tuple[object, ...]]) -> None:
    others = sa.select(users.c.id).where(users.c.role == "admin", users.c.id != row.id).limit(1)
    if row.role == "admin" and c.execute(others).first() is None:
        raise Conflict(f"{row.name} is the only admin", hint="make somebody else an admin first")


def _user_view(row: Row[tuple[object, ...]]) -> UserView:
    return UserView(
        name=row.name, role=row.role, password=row.password is not None, created=row.created, seen=row.seen
    )


def grantable(person: Person, role: Role) -> Role:
    """Nobody hands out more than they may do themselves.

    Raises:
        Forbidden: `role` is more.
    """
    if not person.may(role):
        raise Forbidden(f"{person.name} is {person.role} and cannot make a token of the role {role}")
    return role
